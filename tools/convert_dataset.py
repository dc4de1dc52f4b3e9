#!/usr/bin/env python
"""``isda convert dataset``, under the name that it has in a checkout."""

from isda.cli import program

if __name__ == "__main__":
    program("convert", "dataset")
