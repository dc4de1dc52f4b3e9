"""`isda doctor`, also where something is missing or broken."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isda import doctor
from isda.ops import backends

PROJECTS = Path(doctor.__file__).resolve().parents[1]


def stub(folder: Path, package: str, code: str) -> None:
    """A package that hides the real one from programs with the folder on PYTHONPATH."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(code)


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """A folder that this process and its probes look into first."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "PACKAGE", Path(doctor.__file__).resolve().parent)
    real = doctor.subprocess.run

    def run(command, env, **options):
        env = {**env, "PYTHONPATH": f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"}
        return real(command, env=env, **options)

    monkeypatch.setattr(doctor.subprocess, "run", run)
    return tmp_path


def test_healthy_installation():
    environment = {**os.environ, "PYTHONPATH": str(PROJECTS)}
    environment.pop("ISDA_MSDA_BACKEND", None)
    command = [sys.executable, "-m", "isda", "doctor"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert result.stdout.endswith("Everything works.\n")
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if line[:2] == "  ")
    import torch

    assert rows["torch"].startswith(torch.__version__)
    serving = backends().serving("cpu")
    expected = "compiled kernel" if serving == "cpu" else "plain PyTorch"
    assert rows["cpu"].startswith(expected)  # the operator's row, which comes after the device's
    assert "registered ISDA, ISTR" in result.stdout
    assert rows["mobilenetv2_imagenet.pth"].startswith("ok, 4.5 MB")


@pytest.mark.parametrize(
    "code, message",
    [
        ("raise ImportError('libtorch.so.2: cannot open')", "(ImportError: libtorch.so.2: cannot"),
        ("import os; os.kill(os.getpid(), 4)", "(the interpreter crashed (SIGILL))"),
        ("import sys; sys.exit(3)", "(no message)"),
    ],
)
def test_broken_torch_ends_the_examination_of_models_alone(stubs, code, message):
    stub(stubs, "torch", code)
    report = doctor.Report()
    assert not doctor.examine_torch(report)
    assert len(report.problems) == 1
    assert message in report.problems[0]
    assert "pip install --force-reinstall torch torchvision" in report.problems[0]


def test_missing_torch(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    report = doctor.Report()
    assert not doctor.examine_torch(report)
    assert report.problems == ["PyTorch is missing: pip install torch torchvision"]


def test_old_torch(monkeypatch):
    old = {"version": "2.6.0", "numbers": [2, 6], "cuda": None, "gpus": []}
    old |= {"cpu": "x", "threads": 1, "capability": "AVX2"}
    answers = {doctor.probe_torch: old, doctor.probe_precision: {}}
    monkeypatch.setattr(doctor, "probe", answers.get)
    report = doctor.Report()
    assert doctor.examine_torch(report)
    assert "PyTorch is 2.6.0, and ISDA needs 2.10 or later" in report.problems[0]
    assert "none: this PyTorch is built without CUDA" in str(report)


@pytest.mark.parametrize(
    "code, message",
    [
        ("raise ImportError('no module pkg_resources')", "(ImportError: no module pkg_resources)"),
        ("import os; os.abort()", "(the interpreter crashed (SIGABRT))"),
        ("", "(ModuleNotFoundError: No module named 'detectron2.engine')"),
    ],
)
def test_broken_detectron2(stubs, code, message):
    stub(stubs, "detectron2", code)
    report = doctor.Report()
    doctor.examine_detectron2(report)
    assert len(report.problems) == 1
    assert f"Detectron2 cannot be imported {message}. Again: pip install" in report.problems[0]


def test_fault_of_this_package_is_not_detectron2s(monkeypatch):
    def probe(function):
        if function is doctor.probe_models:
            raise doctor.ProbeError("ImportError: cannot import name 'x' from 'fvcore'")
        return {}

    monkeypatch.setattr(doctor, "probe", probe)
    report = doctor.Report()
    doctor.examine_detectron2(report)
    assert report.problems[0].startswith(
        "The models of ISDA cannot be imported (ImportError: cannot import name 'x' from 'fvcore')"
    )


def test_missing_detectron2(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    report = doctor.Report()
    doctor.examine_detectron2(report)
    assert report.problems[0].startswith("Detectron2 is missing: pip install --no-build-isolation")
    assert "git+https://github.com/facebookresearch/detectron2.git@" in report.problems[0]


# --- the operator's backends

SERVED = {"serving": "cpu", "ms": 1.0, "torch_ms": 9.0, "difference": 1e-7}


def judged(monkeypatch, missing: dict, devices: dict, chosen: str = "auto") -> doctor.Report:
    found = {"missing": missing, "devices": devices, "chosen": chosen}
    monkeypatch.setattr(doctor, "probe", lambda function: found)
    report = doctor.Report()
    doctor.examine_operator(report)
    return report


def test_kernel_for_a_device_that_is_not_there_is_not_missed(monkeypatch):
    report = judged(monkeypatch, {"cuda": "not built (there is no module)"}, {"cpu": SERVED})
    assert not report.problems and not report.advice
    assert "compiled kernel, 1.0 ms for a small call (9.0 ms in plain PyTorch)" in str(report)
    assert "the cuda kernel is not built" in str(report)


def test_kernel_that_was_not_built_is_advised(monkeypatch):
    served = {**SERVED, "serving": "torch"}
    missing = {"cpu": "not built (there is no module)"}
    report = judged(monkeypatch, missing, {"cpu": served})
    assert not report.problems
    assert "ISDA_BUILD=cpu pip install --no-build-isolation --no-deps ." in report.advice[0]
    assert str(report).endswith("Everything works.")


def test_kernel_that_does_not_load_is_a_problem(monkeypatch):
    missing = {"cpu": "built but does not load: undefined symbol"}
    report = judged(monkeypatch, missing, {"cpu": {**SERVED, "serving": "torch"}})
    assert (
        "for CPUs is built but does not load: undefined symbol. Deformable attention raises there "
        "until it is built again, ISDA_BUILD=cpu pip install" in report.problems[0]
    )
    assert "cpu                       raises, see below" in str(report)
    assert "Everything works" not in str(report)


def test_broken_kernel_is_found(tmp_path):
    """A file that is no library, in a copy of the package."""
    copy = tmp_path / "isda"
    shutil.copytree(doctor.PACKAGE, copy, ignore=shutil.ignore_patterns("weights", "*.so", "csrc"))
    (copy / "_msda_cpu.abi3.so").write_bytes(b"no library")
    code = "from isda import doctor; r = doctor.Report(); doctor.examine_operator(r); print(r)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "The compiled kernel for CPUs is built but does not load: " in found.stdout
    assert "_msda_cpu.abi3.so: file too short" in found.stdout


def test_kernel_that_computes_something_else_is_a_problem(monkeypatch):
    report = judged(monkeypatch, {}, {"cpu": {**SERVED, "difference": 0.3}})
    assert (
        "The kernel on cpu computes something else than PyTorch (difference 0.3)"
        in (report.problems[0])
    )


def test_forced_backend_is_named(monkeypatch):
    report = judged(monkeypatch, {}, {"cpu": {**SERVED, "serving": "torch"}}, chosen="torch")
    assert "ISDA_MSDA_BACKEND=torch chooses the implementation: unset it" in report.advice[0]


def test_impossible_backend_is_a_problem(monkeypatch):
    monkeypatch.setenv("ISDA_MSDA_BACKEND", "gpu")
    report = doctor.Report()
    doctor.examine_operator(report)
    assert (
        "ISDA_MSDA_BACKEND must be one of auto, cuda, cpu, torch, got 'gpu'" in (report.problems[0])
    )


# --- files


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one config and one weight file."""
    for name in ("configs", "weights", "model_zoo"):
        (tmp_path / name).mkdir()
    (tmp_path / "configs/a.yaml").write_text("")
    (tmp_path / "weights/a.pth").write_bytes(b"numbers")
    total = hashlib.sha256(b"numbers").hexdigest()
    text = f"# Weights\n\n## a.pth\n\n- What it is.\n- sha256: `{total}`\n"
    (tmp_path / "weights/README.md").write_text(text)
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path)
    return tmp_path


def files_report() -> doctor.Report:
    report = doctor.Report()
    doctor.examine_files(report)
    return report


def test_files_as_published(package):
    report = files_report()
    assert not report.problems
    assert f"1 in {package / 'configs'}" in str(report)


@pytest.mark.parametrize("name", ["a.pth", "b.pth"])
def test_weights_of_models_count_as_well(package, name):
    model = {"weights": f"isda://{name}", "sha256": hashlib.sha256(b"numbers").hexdigest()}
    (package / "model_zoo/models.json").write_text(json.dumps({"nuclei/x": model}))
    problems = files_report().problems
    assert [p.split(":")[0] for p in problems] == (
        [] if name == "a.pth" else ["weights/b.pth is missing"]
    )


def test_damaged_and_missing_weights(package):
    (package / "weights/a.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "weights/a.pth is not what was published (sha256" in files_report().problems[0]
    (package / "weights/a.pth").unlink()
    assert "weights/a.pth is missing: install ISDA again" in files_report().problems[0]


def test_installation_without_files(package, monkeypatch):
    monkeypatch.setattr(doctor, "ROOT", package / "nowhere")
    shutil.rmtree(package / "configs")
    shutil.rmtree(package / "weights")
    assert [problem.split(":")[0] for problem in files_report().problems] == [
        "The configs are missing",
        f"There are no weights in {package / 'weights'}",
    ]
