"""``python -m isda``: the command of :mod:`isda.cli` where none is installed."""

import sys

from isda.cli import program

if __name__ == "__main__":
    sys.argv[0] = "isda"  # as a training notes the command that started it
    program()
