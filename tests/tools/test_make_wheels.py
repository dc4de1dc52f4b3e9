"""The package as others install it, away from the checkout."""

import os
import subprocess
import sys
import tarfile
import venv
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
    needed = [
        *tracked("projects", "configs", "docs/CONFIG.md"),
        "setup.py",
        "pyproject.toml",
        "LICENSE",
    ]
    assert [name for name in needed if name not in names] == []


@pytest.mark.slow
def test_wheel_has_every_file_of_the_package_and_the_configs(built):
    assert built[1].name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        commit = archive.read("isda/commit.txt").decode().strip()
    sources = [name for name in tracked("projects") if not name.startswith(NOT_INSTALLED[0])]
    expected = [n.removeprefix("projects/") for n in sources if not n.endswith(NOT_INSTALLED[1:])]
    expected += [f"isda/{name}" for name in tracked("configs", "docs/CONFIG.md")]
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


@pytest.fixture(scope="module")
def site(built, tmp_path_factory) -> Path:
    """A folder with the wheel, and nothing else, installed into it."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(built[1])], check=True)
    return folder


def run_installed(site: Path, place: Path, *words: object) -> subprocess.CompletedProcess:
    """A program that sees the installed package, away from the checkout."""
    return subprocess.run(
        list(map(str, words)),
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_installed_wheel_works_outside_the_checkout(site, tmp_path):
    result = run_installed(site, tmp_path, sys.executable, "-c", PROGRAM)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[-2] == f"{site / 'isda'} not built"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--help"], "mask-dictionary"),
        (["config", "MODEL.ISDA.NUM_QUERIES"], "The largest number of instances in an image."),
        (["models"], "shipped"),
        (["check", "DATA", "--quick", "--config-file", "nuclei/isda_tiny.yaml"], "will work"),
        (["doctor"], "Everything works."),
    ],
)
def test_the_command_of_an_installed_wheel(site, tmp_path, words, answer):
    (tmp_path / "DATA").symlink_to(ROOT / "datasets/nuclei_mini")
    result = run_installed(site, tmp_path, site / "bin" / "isda", *words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert answer in result.stdout


@pytest.mark.slow
def test_the_command_where_nothing_else_is_installed(site, tmp_path):
    """It can still say what there is, and what is missing."""
    venv.create(tmp_path / "empty", with_pip=False, symlinks=True)
    folder = "Scripts" if os.name == "nt" else "bin"
    command = [tmp_path / "empty" / folder / "python", "-m", "isda"]
    assert "mask-dictionary" in run_installed(site, tmp_path, *command, "--help").stdout
    assert "shipped" in run_installed(site, tmp_path, *command, "models").stdout
    diagnosis = run_installed(site, tmp_path, *command, "doctor")
    assert diagnosis.returncode == 1
    assert "PyTorch is missing: pip install torch torchvision" in diagnosis.stdout


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
