"""``--import MODULE``: Python of the user's that registers data sets, models or backbones."""

import argparse
import importlib
import sys

__all__ = ["add_import_argument", "import_named"]


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import", dest="module", help="Python module to import first: it registers your data"
    )


def import_named(args: argparse.Namespace) -> None:
    """
    Raises:
        ImportError: there is no such module in the working directory or among those installed.
    """
    if args.module:
        sys.path.insert(0, "")  # the working directory, where such a module lies
        importlib.import_module(args.module)
