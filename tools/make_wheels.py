#!/usr/bin/env python
"""Build what others can install without this checkout: `make wheel`.

    python tools/make_wheels.py --output dist

writes the source distribution, a wheel without compiled kernels, which installs everywhere and
computes deformable attention in PyTorch, and one with the kernels, for this kind of machine. pip
takes the second where it fits. Both wheels are built out of the source distribution, so they hold
neither leftovers of earlier builds nor files that it lacks.

ISDA_BUILD=cuda has the CUDA kernels compiled as well; docs/INSTALL.md says what that needs.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ("none", "cpu", "cuda")


class WheelError(Exception):
    """Something that is needed could not be built; the message says what and why."""


def build_all(output: Path, kernels: list[str]) -> list[Path]:
    """Build the source distribution, and a wheel for each of ``kernels``, values of ISDA_BUILD.

    Returns:
        The files, the source distribution first.

    Raises:
        WheelError: one of them cannot be built.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = build_source_distribution(Path(folder) / "source")
        files = [output / source.name]
        files[0].write_bytes(source.read_bytes())
        for choice in kernels:
            tree = unpack(source, Path(folder) / choice)
            files.append(build_wheel(tree, output, choice))
    return files


def build_source_distribution(folder: Path) -> Path:
    folder.mkdir(parents=True)
    # Its list of files would bring back those that have been deleted since the last time.
    options = ["egg_info", "--egg-base", str(folder), "sdist", "--formats=gztar"]
    run([sys.executable, "setup.py", "-q", *options, "--dist-dir", str(folder)], "none", ROOT)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def unpack(source: Path, folder: Path) -> Path:
    shutil.unpack_archive(source, folder)
    (tree,) = folder.iterdir()
    return tree


def build_wheel(tree: Path, output: Path, choice: str) -> Path:
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.whl")}
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(output)]
    run([sys.executable, "-m", "pip", "wheel", "-q", *options, "."], choice, tree)
    (wheel,) = (p for p in output.glob("*.whl") if before.get(p) != p.stat().st_mtime_ns)
    return wheel


def run(command: list[str], choice: str, folder: Path) -> None:
    """Run a build with ISDA_BUILD set to ``choice``; what it says is shown if it fails."""
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "ISDA_BUILD": choice},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        raise WheelError(f"building with ISDA_BUILD={choice} failed:\n{result.stdout}")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    asked = os.environ.get("ISDA_BUILD", "cpu")
    default = ["none"] if asked == "none" else ["none", "cpu" if asked == "auto" else asked]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder (default: dist)")
    parser.add_argument(
        "--kernels",
        nargs="+",
        choices=KERNELS,
        default=default,
        help=f"one wheel for each (default: {' '.join(default)})",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        files = build_all(args.output, args.kernels)
    except (WheelError, OSError) as error:
        print(f"make wheel: {error}", file=sys.stderr)
        return 1
    for file in files:
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
