#!/usr/bin/env python
"""``isda report``, under the name that it has in a checkout."""

from isda.cli import program

if __name__ == "__main__":
    program("report")
