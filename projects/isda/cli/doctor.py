"""Check the installation: packages, kernels, devices, and what to do about the rest.

Exit status: 0 everything works, if perhaps slower than it could, 1 something has to be acted on.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    from isda import doctor

    report = doctor.examine()
    print(report)
    return 1 if report.problems else 0
