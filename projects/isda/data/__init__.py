"""Data sets: what is embedded, how it is registered, checked and mapped to the model's input."""

from isda.data import builtin  # noqa: F401  (registers the embedded data sets)
