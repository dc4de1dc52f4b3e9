"""Facts of the installation, and what is said where they are unknown."""

import platform

import pytest

from isda import machine


@pytest.fixture
def cpu_info(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_CPU_INFO", file)
    return file


def test_the_processor_is_named_by_its_model(cpu_info):
    processor = "processor\t: {}\nvendor_id\t: Maker\nmodel name\t: Model: 7 @ 2 GHz\n\n"
    cpu_info.write_text(processor.format(0) + processor.format(1))
    assert machine.processor_name() == "Model: 7 @ 2 GHz"


@pytest.mark.parametrize("content", [None, b"", b"Features\t: fp asimd\n", b"\xff\n"])
def test_else_by_its_architecture(cpu_info, content):
    if content is not None:
        cpu_info.write_bytes(content)
    assert machine.processor_name() == (platform.processor() or platform.machine()) != ""


def test_versions_are_those_that_pip_knows():
    assert machine.version_of("pytest") == pytest.__version__
    assert machine.version_of("no-such-package-of-ours") is None


def test_commit_is_the_one_that_was_built(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PACKAGE", tmp_path)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.commit() is None
    (tmp_path / "commit.txt").write_text("abc1234\n")
    assert machine.commit() == "abc1234"
