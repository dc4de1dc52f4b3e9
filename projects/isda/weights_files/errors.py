"""Errors of files of weights that cannot be used."""

from isda.errors import UserError

__all__ = ["WeightsError"]


class WeightsError(UserError, ValueError):
    """Weights that cannot be used; the message says why and what to do."""
