"""``python -m isda``: the command of :mod:`isda.cli` where none is installed."""

from isda.cli import program

if __name__ == "__main__":
    program()
