#!/usr/bin/env python
"""``isda check``, under the name that it has in a checkout."""

from isda.cli import program

if __name__ == "__main__":
    program("check")
