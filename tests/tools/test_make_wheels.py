"""The package as others install it, away from the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import make_wheels

ROOT = make_wheels.ROOT
# Sources of kernels that only compiling needs.
NOT_INSTALLED = ("projects/isda/ops/csrc/cpu/", "csrc/bindings.h", ".cu", ".cpp")


def tracked(*folders: str) -> list[str]:
    command = ["git", "-C", str(ROOT), "ls-files", *folders]
    try:
        return subprocess.check_output(command, text=True).splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no checkout of git")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The source distribution and the wheel without kernels."""
    output = tmp_path_factory.mktemp("dist")
    source, wheel = make_wheels.build_all(output, ["none"])
    return source, wheel


@pytest.mark.slow
def test_source_distribution_has_what_building_needs(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = [*tracked("projects", "configs"), "setup.py", "pyproject.toml", "LICENSE"]
    assert [name for name in needed if name not in names] == []


@pytest.mark.slow
def test_wheel_has_every_file_of_the_package_and_the_configs(built):
    assert built[1].name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        commit = archive.read("isda/commit.txt").decode().strip()
    sources = [name for name in tracked("projects") if not name.startswith(NOT_INSTALLED[0])]
    expected = [n.removeprefix("projects/") for n in sources if not n.endswith(NOT_INSTALLED[1:])]
    expected += [f"isda/{name}" for name in tracked("configs")]
    assert [name for name in expected if name not in names] == []
    assert not [name for name in names if name.endswith(".so")]
    # The one of the moment of building: somebody may have committed since.
    known = ["git", "-C", str(ROOT), "merge-base", "--is-ancestor", commit.removesuffix("-dirty")]
    assert subprocess.run([*known, "HEAD"], check=False).returncode == 0


PROGRAM = """
import isda
from pathlib import Path
from isda.engine.setup import load_config
from isda.ops import backends
from detectron2.modeling import build_model
package = Path(isda.__file__).parent
cfg = load_config(str(package / "configs/nuclei/isda_tiny.yaml"), ["MODEL.DEVICE", "cpu"])
cfg.MODEL.ISDA.NUM_CLASSES = 1
build_model(cfg)  # which reads shipped weights
print(package, backends().missing["cpu"][:9])
"""


@pytest.mark.slow
def test_installed_wheel_works_outside_the_checkout(built, tmp_path):
    site = tmp_path / "site"
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(built[1])], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[-2] == f"{site / 'isda'} not built"


def test_failed_build_tells_what_the_compiler_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(make_wheels, "ROOT", tmp_path)
    (tmp_path / "setup.py").write_text("raise SystemExit('g++: fatal error')")
    assert make_wheels.main(["--output", str(tmp_path / "dist")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("make wheel: building with ISDA_BUILD=none failed:")
    assert "g++: fatal error" in said


@pytest.mark.parametrize(
    "asked, kernels",
    [(None, ["none", "cpu"]), ("cuda", ["none", "cuda"]), ("none", ["none"])],
)
def test_environment_chooses_the_kernels(monkeypatch, asked, kernels):
    if asked:
        monkeypatch.setenv("ISDA_BUILD", asked)
    else:
        monkeypatch.delenv("ISDA_BUILD", raising=False)
    assert make_wheels.parse_arguments([]).kernels == kernels
