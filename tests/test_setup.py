"""`make env`, without network and without installing anything large."""

import base64
import csv
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import make_env
from environment import SetupError, checks, detectron2, state
from environment import pip as quiet_pip
from environment.lock import ROOT, Lock

CHECKOUT = Path(__file__).resolve().parent.parent
LOCK = """\
# written by make lock
torch==2.14.1 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via -r requirements.in
nvidia-nvtx==13.0 ; sys_platform == 'linux' \\
    --hash=sha256:cc
    # via torch
numpy==1.26.4 ; python_full_version < '3.13' \\
    --hash=sha256:dd
    # via
    #   -r requirements.in
    #   torch
numpy==2.2.6 ; python_full_version >= '3.13' \\
    --hash=sha256:ee
    # via
    #   -r requirements.in
PyYAML==6.0 \\
    --hash=sha256:ff
    # via yacs
yacs==0.1.8 \\
    --hash=sha256:00
    # via -r requirements.in
"""


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


needs_sh = pytest.mark.skipif(os.name == "nt", reason="fakes programs by shell scripts")


# --- what the machine must have


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 9, 18), (3, 14, 0), (4, 0, 0)])
def test_wrong_python_is_one_sentence(version):
    with pytest.raises(SetupError, match=r"^/bin/x is Python .* need 3\.10 to 3\.13.*PYTHON="):
        checks.check_python(version, "/bin/x")


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 11, 7), (3, 12, 1), (3, 13, 0)])
def test_right_python_passes(version):
    checks.check_python(version, "/bin/x")


@needs_sh
def test_find_python_skips_shims_that_do_not_start(tmp_path, monkeypatch):
    script(tmp_path / "python3.11", "exit 127")
    script(tmp_path / "python3.12", "echo 3 9")  # not what its name says
    good = script(tmp_path / "python3.10", "echo 3 10")
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert checks.find_python() == str(good)
    good.unlink()
    assert checks.find_python() is None


@needs_sh
def test_missing_compiler_is_one_sentence(tmp_path):
    environ = {"PATH": str(tmp_path)}
    with pytest.raises(SetupError, match=r"no C\+\+ compiler was found.*apt install g\+\+"):
        checks.find_compiler(environ)
    script(tmp_path / "c++", "exit 1")  # macOS without the developer tools
    with pytest.raises(SetupError, match=r"no C\+\+ compiler was found"):
        checks.find_compiler(environ)
    good = script(tmp_path / "g++", "exit 0")
    assert checks.find_compiler(environ) == str(good)
    with pytest.raises(SetupError, match="CXX=icpc does not start"):
        checks.find_compiler({**environ, "CXX": "icpc -O3"})


@needs_sh
def test_missing_venv_module_is_one_sentence(tmp_path):
    python = script(tmp_path / "python", "exit 1")
    with pytest.raises(SetupError, match=r"cannot make virtual environments.*-venv"):
        checks.check_venv_module(str(python))
    checks.check_venv_module(sys.executable)


def test_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(SetupError, match=r"GB free, and the environment needs 1000000\.0 GB"):
        checks.check_disk(tmp_path, needed_gb=1e6)
    checks.check_disk(tmp_path, needed_gb=0)


@needs_sh
@pytest.mark.parametrize("lacking", ["compiler", "python"])
def test_command_stops_with_one_line_before_it_makes_anything(tmp_path, lacking):
    checkout = tmp_path / "checkout"
    shutil.copytree(CHECKOUT / "tools", checkout / "tools")
    for name in ("requirements.txt", "setup.py"):
        shutil.copy(CHECKOUT / name, checkout)
    if lacking == "python":
        file = checkout / "tools/environment/checks.py"
        file.write_text(file.read_text().replace("(3, 10), (3, 13)", "(3, 98), (3, 99)"))
    command = [sys.executable, str(checkout / "tools/make_env.py")]
    environ = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("make env: ")
    assert result.stderr.count("\n") == 1
    assert ("C++ compiler" if lacking == "compiler" else "need 3.98 to 3.99") in result.stderr
    assert not (checkout / ".venv").exists()


# --- the lock


def test_lock_is_read_block_by_block():
    lock = Lock(LOCK)
    assert set(lock.blocks) == {"torch", "nvidia-nvtx", "numpy", "pyyaml", "yacs"}
    assert lock.parents["numpy"] == {ROOT, "torch"}
    assert lock.parents["nvidia-nvtx"] == {"torch"}
    pins = lock.select({"numpy", "yacs"})
    assert "numpy==1.26.4 ; python_full_version < '3.13' \\\n    --hash=sha256:dd\n" in pins
    assert "numpy==2.2.6" in pins
    assert "torch" not in pins


def test_what_an_interpreter_has_is_not_installed_again():
    lock = Lock(LOCK)
    assert lock.missing(set()) == set(lock.blocks)
    # PyTorch is there, so its CUDA libraries are not this environment's business.
    assert lock.missing({"torch", "numpy"}) == {"yacs", "pyyaml"}
    assert lock.missing({"torch", "numpy", "pyyaml"}) == {"yacs"}
    assert lock.missing({"torch", "numpy", "yacs"}) == set()


def test_every_locked_package_has_hashes_and_a_reason():
    lock = Lock((CHECKOUT / "requirements.txt").read_text())
    assert len(lock.blocks) > 50
    for name, blocks in lock.blocks.items():
        assert all("--hash=sha256:" in block for block in blocks), name
        assert lock.parents[name] <= {ROOT, *lock.blocks}, name
    assert lock.missing(set()) == set(lock.blocks)


def test_lock_holds_what_requirements_ask_for():
    from packaging.requirements import Requirement

    lock = Lock((CHECKOUT / "requirements.txt").read_text())
    lines = (CHECKOUT / "requirements.in").read_text().splitlines()
    wanted = [Requirement(text) for line in lines if (text := line.split("#")[0].strip())]
    assert {r.name for r in wanted} == {n for n in lock.blocks if ROOT in lock.parents[n]}
    for requirement in wanted:
        blocks = lock.blocks[requirement.name]
        versions = [block.split("==")[1].split()[0] for block in blocks]
        assert any(v in requirement.specifier for v in versions), (requirement, versions)


# --- pip


@pytest.mark.parametrize(
    "output, sentence",
    [
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\n"
            "ERROR: No matching distribution found for pip==26.3",
            "the package index cannot be reached: check the network",
        ),
        (
            "ERROR: No matching distribution found for torch==2.14.1",
            "the package index has no torch==2.14.1 for this Python",
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
            "    yacs==0.1.8 from https://example.org/yacs.whl (from -r x.txt (line 1)):\n"
            "        Expected sha256 aa\n             Got        bb",
            "yacs==0.1.8 does not have its pinned hash, so it was not installed",
        ),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: something new", "pip failed; the end of pip.log says:\nERROR: something new"),
    ],
)
def test_pip_is_explained(output, sentence):
    explanation = quiet_pip.explain(output, Path("pip.log"))
    assert explanation.startswith(sentence)
    assert "pip.log" in explanation


@needs_sh
def test_pip_is_quiet_and_logged(tmp_path, capfd):
    log = tmp_path / "log"
    good = script(tmp_path / "good", "echo Collecting a; echo noise >&2")
    assert quiet_pip.run_pip(good, ["check"], log) == "Collecting a\nnoise\n"
    bad = script(tmp_path / "bad", "echo No space left on device; exit 2")
    with pytest.raises(quiet_pip.PipError, match="the disk is full") as failure:
        quiet_pip.run_pip(bad, ["install", "b"], log)
    assert failure.value.text == "No space left on device\n"
    assert capfd.readouterr().out == ""
    assert "Collecting a\nnoise\n" in log.read_text()
    assert "-m pip install b --no-input" in log.read_text()


def test_progress_counts_what_applies(tmp_path, capsys):
    progress = quiet_pip.Progress("packages", 3, tmp_path)
    for line in ("Ignoring colorama: markers", "Collecting a", "  Downloading a.whl (1.5 GB)"):
        progress.read(line + "\n")
    assert progress._state(final=False) == "1 of 2 fetched, 1500 MB downloaded"
    progress.read("Installing collected packages: a, b\n")
    (tmp_path / "a-1.dist-info").mkdir()
    assert progress._state(final=False) == "installing, 1 of 2 (the CUDA libraries take longest)"
    progress.show(final=True)
    assert capsys.readouterr().out.startswith("packages: done, 0 s")


# --- Detectron2


@pytest.fixture
def wheel(tmp_path) -> Path:
    """As the real one: a compiled part, and tags that only Python 3.10 accepts."""
    info = detectron2.DIST_INFO
    path = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("detectron2/__init__.py", "")
        archive.writestr("detectron2/_C.cpython-310-x86_64-linux-gnu.so", "compiled")
        metadata = "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\n"
        archive.writestr(f"{info}/METADATA", metadata + "Requires-Dist: numpy<2\n")
        tags = "Root-Is-Purelib: false\nTag: cp310-cp310-linux_x86_64\n\n"
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\n" + tags)
        archive.writestr(f"{info}/RECORD", "detectron2/_C.so,sha256=no,8\n")
    return path


def test_retagged_wheel_is_pure_and_its_record_true(wheel, tmp_path):
    pure = detectron2.retag(wheel, tmp_path / "pure")
    assert pure.name == "sal_detectron2-0.7.2-py3-none-any.whl"
    with zipfile.ZipFile(pure) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    record = contents.pop(f"{detectron2.DIST_INFO}/RECORD").decode().splitlines()
    rows = {name: (digest, size) for name, digest, size in csv.reader(record)}
    assert rows.pop(f"{detectron2.DIST_INFO}/RECORD") == ("", "")
    assert set(rows) == set(contents)
    assert not any("_C" in name for name in contents)
    for name, (digest, size) in rows.items():
        sha256 = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest()).decode()
        assert digest == "sha256=" + sha256.rstrip("=")
        assert int(size) == len(contents[name])
    tags = contents[f"{detectron2.DIST_INFO}/WHEEL"].decode().splitlines()
    assert tags[2:] == ["Root-Is-Purelib: true", "Tag: py3-none-any"]


def test_pip_installs_the_retagged_wheel(wheel, tmp_path):
    pure = detectron2.retag(wheel, tmp_path / "pure")
    options = ["--no-deps", "--no-index", "--target", tmp_path / "site"]
    quiet_pip.run_pip(Path(sys.executable), ["install", *options, pure], tmp_path / "log")
    assert (tmp_path / "site/detectron2/__init__.py").exists()
    assert (tmp_path / "site" / detectron2.DIST_INFO / "RECORD").exists()


def test_wheel_with_another_hash_is_refused(wheel):
    with pytest.raises(SetupError, match="has the sha256 .*, not the pinned 491af0c7"):
        detectron2.check_hash(wheel, detectron2.SHA256)
    detectron2.check_hash(wheel, hashlib.sha256(wheel.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    "output, falls_back",
    [
        ("ERROR: No matching distribution found for sal-detectron2==0.7.2", True),
        ("'NewConnectionError'\nERROR: No matching distribution found for sal-detectron2", False),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", False),
    ],
)
def test_git_is_tried_only_where_the_index_lacks_it(tmp_path, monkeypatch, output, falls_back):
    commands = []

    def fake_pip(python, arguments, log, progress=None):
        commands.append(arguments)
        if arguments[0] == "download":
            raise quiet_pip.PipError(quiet_pip.explain(output, log), output)

    monkeypatch.setattr(detectron2, "run_pip", fake_pip)
    if falls_back:
        assert "official" in detectron2.install(Path("python"), tmp_path / "log")
        assert commands[1][-1] == f"detectron2 @ {detectron2.GIT_URL}"
        assert "--no-build-isolation" in commands[1]
    else:
        with pytest.raises(SetupError):
            detectron2.install(Path("python"), tmp_path / "log")
        assert len(commands) == 1


def test_failing_git_says_what_else_can_be_done(tmp_path, monkeypatch):
    def fake_pip(*_):
        raise quiet_pip.PipError("pages of git", "pages of git")

    monkeypatch.setattr(detectron2, "run_pip", fake_pip)
    with pytest.raises(SetupError, match="install Detectron2 into a Python of yours"):
        detectron2.install_from_git(Path("python"), tmp_path / "log")


# --- once, and again only when something changed


@pytest.fixture
def steps(tmp_path, monkeypatch) -> list:
    """A checkout in a temporary folder whose steps only write down that they ran."""
    done = []
    (tmp_path / "requirements.txt").write_text(LOCK)
    (tmp_path / "setup.py").write_text("")
    monkeypatch.setattr(make_env, "ROOT", tmp_path)
    monkeypatch.setattr(make_env, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(make_env, "LOG", tmp_path / ".venv/make_env.log")
    monkeypatch.setattr(make_env, "LOCK", tmp_path / "requirements.txt")
    monkeypatch.setattr(make_env, "own_detectron2", lambda: None)
    monkeypatch.setattr(make_env, "check_machine", lambda owned: None)
    monkeypatch.setattr(make_env, "install_dependencies", lambda owned: done.append("all"))
    monkeypatch.setattr(make_env, "install_package", lambda settings: done.append("package"))
    monkeypatch.setattr(make_env, "gpus", lambda: [])
    return done


def test_done_once_and_repeated_when_inputs_change(steps, tmp_path):
    make_env.make_env()
    assert steps == ["all", "package"]
    make_env.make_env()
    assert steps == ["all", "package"]
    (tmp_path / "setup.py").write_text("setup()")
    make_env.make_env()
    assert steps == ["all", "package", "package"]
    kernels = tmp_path / "projects/isda/ops/csrc/cpu/kernels.h"
    kernels.parent.mkdir(parents=True)
    kernels.write_text("// compiled when the package is installed")
    make_env.make_env()
    assert steps == ["all", "package", "package", "package"]
    (tmp_path / "requirements.txt").write_text(LOCK + "\n")
    make_env.make_env()
    assert steps == ["all", "package", "package", "package", "all", "package"]


def test_cuda_kernels_come_with_a_gpu_or_on_request(steps, monkeypatch):
    monkeypatch.delenv("ISDA_BUILD", raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert make_env.build_settings() == {"ISDA_BUILD": "cpu"}
    make_env.make_env()
    monkeypatch.setattr(make_env, "gpus", lambda: ["8.6", "9.0"])
    expected = {"ISDA_BUILD": "auto", "TORCH_CUDA_ARCH_LIST": "8.6;9.0"}
    assert make_env.build_settings() == expected
    make_env.make_env()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert make_env.build_settings() == {**expected, "TORCH_CUDA_ARCH_LIST": "9.0"}
    monkeypatch.setenv("ISDA_BUILD", "cuda")
    assert make_env.build_settings() == {"ISDA_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": "9.0"}
    make_env.make_env()
    assert steps == ["all", "package", "package", "package"]


@needs_sh
def test_gpus_are_those_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make_env.gpus() == []
    script(tmp_path / "nvidia-smi", "exit 9")
    assert make_env.gpus() == []
    script(tmp_path / "nvidia-smi", "echo 9.0; echo 8.6; echo 9.0")
    assert make_env.gpus() == ["8.6", "9.0"]


def test_kernels_that_do_not_compile_are_left_out(monkeypatch, capsys):
    calls = []

    def fake_pip(python, arguments, log, settings):
        calls.append(settings)
        if settings["ISDA_BUILD"] != "none":
            raise quiet_pip.PipError("pages of g++", "pages of g++")

    monkeypatch.setattr(make_env, "run_pip", fake_pip)
    monkeypatch.delenv("ISDA_BUILD", raising=False)
    make_env.install_package({"ISDA_BUILD": "cpu"})
    assert [call["ISDA_BUILD"] for call in calls] == ["cpu", "none"]
    assert "the kernels do not compile here" in capsys.readouterr().out
    monkeypatch.setenv("ISDA_BUILD", "cpu")
    with pytest.raises(quiet_pip.PipError):
        make_env.install_package({"ISDA_BUILD": "cpu"})


def test_another_interpreters_detectron2_is_another_environment(steps, monkeypatch):
    make_env.make_env()
    monkeypatch.setattr(make_env, "own_detectron2", lambda: "/theirs/detectron2/__init__.py")
    make_env.make_env()
    assert steps == ["all", "package"] * 2


@pytest.mark.parametrize("broken", ["install_dependencies", "install_package"])
def test_interrupted_is_redone(steps, tmp_path, monkeypatch, broken):
    def interrupted(*_):
        (tmp_path / ".venv/half").write_text("")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make_env, broken, interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_env.make_env()
    steps.clear()
    make_env.make_env()
    assert steps == ["all", "package"]
    assert not (tmp_path / ".venv/half").exists()


def test_foreign_environment_is_left_alone(steps, tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/precious").write_text("")
    with pytest.raises(SetupError, match=r"exists and was not made by `make`"):
        make_env.make_env()
    assert (tmp_path / ".venv/precious").exists()


def test_removal_waits_for_a_straggler(tmp_path, monkeypatch):
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "late").write_text("")
    remove, calls = shutil.rmtree, []

    def busy_once(path):
        calls.append(path)
        if len(calls) == 1:
            raise OSError("Directory not empty")
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", busy_once)
    state._remove(folder, pause=0)
    assert not folder.exists()
    monkeypatch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(SetupError, match=r"lib cannot be removed \(no\): delete it"):
        state._remove(folder, tries=2, pause=0)


def test_record_that_was_half_written_counts_as_none(tmp_path):
    (tmp_path / state.RECORD).write_text('{"dependencies": "ab')
    assert state.read(tmp_path) == {}
    assert state.read(tmp_path / "nowhere") == {}


def test_interpreter_of_last_time_is_kept(steps, tmp_path, monkeypatch):
    make_env.make_env()
    assert make_env.other_python(any_python=True) is None
    other = tmp_path / "python3.12"
    other.write_text("")
    state.write(tmp_path / ".venv", python=str(other))
    assert make_env.other_python(any_python=True) == str(other)
    assert make_env.other_python(any_python=False) is None  # PYTHON=... is the user's word
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))  # inside the environment itself
    assert make_env.other_python(any_python=False) == str(other)


def test_existing_detectron2_is_accepted(steps, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # the real steps again, but in the temporary checkout and without pip
    installed = []
    monkeypatch.setattr(make_env, "VENV", tmp_path)
    monkeypatch.setattr(make_env, "LOCK", tmp_path / "requirements.txt")
    monkeypatch.setattr(make_env, "imports_detectron2", lambda python: True)
    monkeypatch.setattr(make_env, "create_venv", lambda inherit: installed.append(inherit))
    monkeypatch.setattr(make_env, "installed_here", lambda: {"torch", "numpy"})
    monkeypatch.setattr(make_env, "install_locked", lambda lock, names: installed.append(names))
    monkeypatch.setattr(detectron2, "install", lambda *_: pytest.fail("installed another one"))
    make_env.install_dependencies("/theirs/detectron2/__init__.py")
    assert installed == [True, {"yacs", "pyyaml"}]
    assert "as it is: /theirs/detectron2/__init__.py" in capsys.readouterr().out


def test_second_process_waits_for_the_first(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from environment import state\n"
        "with state.exclusive(Path(sys.argv[2]), 'waiting'): print('mine', flush=True)"
    )
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", code, str(CHECKOUT / "tools"), str(lock)]
    with state.exclusive(lock, "not printed"):
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert second.stdout.readline() == "waiting\n"
    assert second.communicate(timeout=30)[0] == "mine\n"


# --- the package and its files


def test_licence_is_the_whole_apache_text():
    text = (CHECKOUT / "LICENSE").read_text()
    line = "Copyright 2026 The ISDA project authors"
    assert text.count(line) == 1
    original = text.replace(line, "Copyright [yyyy] [name of copyright owner]")
    digest = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256(original.encode()).hexdigest() == digest  # of the foundation's own file


def test_ci_lints_and_tests_and_does_nothing_else():
    lines = (CHECKOUT / ".ci/run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make lint", "make test"]
    assert len(lines) == 5


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_alone_lists_the_targets():
    command = ["make", "-s", "-C", str(CHECKOUT)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for target in ("env", "demo", "test", "lint"):
        assert f"make {target} " in out


def test_environment_satisfies_the_package():
    from importlib.metadata import PackageNotFoundError, distribution, version

    from packaging.requirements import Requirement

    try:
        isda = distribution("isda")
    except PackageNotFoundError:
        pytest.skip("isda is on PYTHONPATH, not installed")
    assert isda.metadata["Requires-Python"] == ">=3.10"
    for requirement in map(Requirement, isda.requires):
        if requirement.marker is None:
            assert version(requirement.name) in requirement.specifier, requirement
