"""A write that fails leaves what was there, says so in a sentence, and no half of a file."""

import errno
import io
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from isda.files import (
    WriteError,
    copy_file,
    is_full,
    remove_partial_files,
    replaced_files,
    replacing,
    write_bytes,
    write_text,
)

ROOT = Path(__file__).parents[1]


class FullDisk(io.RawIOBase):
    """A file that takes some bytes and then has no room."""

    def __init__(self, path, room):
        self.file, self.room = open(path, "wb", buffering=0), room  # noqa: SIM115

    def writable(self):
        return True

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def close(self):
        self.file.close()
        super().close()


@pytest.fixture
def full_disk(monkeypatch):
    """Files that are written have room for 100 bytes."""

    def full_open(path, mode="r", *args, **kwargs):
        if "w" not in mode:
            return open(path, mode, *args, **kwargs)
        raw = io.BufferedWriter(FullDisk(path, 100), 16)
        return raw if "b" in mode else io.TextIOWrapper(raw, encoding="utf-8")

    monkeypatch.setattr(Path, "open", full_open)


def long_writes(path):
    """Every way to write a file, each with more than 100 bytes."""
    from matplotlib.figure import Figure

    from isda.modeling.mask_dictionary import write_archive
    from isda.visualization import write_figure, write_image

    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    source = path.with_name("source")
    with open(source, "wb") as file:
        file.write(b"x" * 1000)

    def save_tensor():
        with replacing(path) as file:
            torch.save(torch.zeros(1000), file)

    return {
        "text": lambda: write_text(path, "x" * 1000),
        "bytes": lambda: write_bytes(path, b"x" * 1000),
        "copy": lambda: copy_file(source, path),
        "tensor": save_tensor,
        "archive": lambda: write_archive(path, noise=noise),
        "image": lambda: write_image(path, noise),
        "figure": lambda: write_figure(path, Figure()),
    }


WAYS = ("text", "bytes", "copy", "tensor", "archive", "image", "figure")


@pytest.mark.parametrize("way", WAYS)
def test_whole_file(tmp_path, way):
    path = tmp_path / "result.png"
    path.write_bytes(b"old")
    long_writes(path)[way]()
    assert path.read_bytes() != b"old"
    assert {p.name for p in tmp_path.iterdir()} == {"result.png", "source"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("old", [None, b"old"])
def test_full_disk(tmp_path, full_disk, way, old):
    path = tmp_path / "result.png"
    if old is not None:
        with open(path, "wb") as file:
            file.write(old)
    sentence = re.escape(f"{path} cannot be written (No space left on device): free some space")
    with pytest.raises(WriteError, match=f"^{sentence}") as caught:
        long_writes(path)[way]()
    assert isinstance(caught.value, OSError)
    assert {p.name for p in tmp_path.iterdir()} == {"source"} | ({path.name} if old else set())
    assert old is None or path.read_bytes() == old


def fail_in(block, error):
    """Write "new", and fail."""
    with block as opened:
        if isinstance(opened, str):
            Path(opened, "a").write_text("new")
            Path(opened, "b").touch()
        else:
            opened.write("new")
        raise error


def test_an_error_in_the_block_is_no_error_of_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    another = FileNotFoundError(errno.ENOENT, "none", "another")
    for error in (ValueError("mine"), another, KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            fail_in(replacing(path, "w"), error)
        assert caught.value is error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(
        WriteError, match=r"none.a cannot be written \(No such file or directory\)$"
    ):
        write_text(tmp_path / "none" / "a", "x")


@pytest.mark.skipif(sys.platform == "win32", reason="links and devices of POSIX")
def test_links_devices_and_modes(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    write_text(os.devnull, "nothing")
    assert not Path(os.devnull).is_file()


def test_a_folder_of_files(tmp_path):
    folder = tmp_path / "inference"
    folder.mkdir()
    (folder / "a").write_text("old")
    (folder / "b").write_text("old")
    with replaced_files(folder) as partial:
        Path(partial, "a").write_text("new")
        assert (folder / "a").read_text() == "old"
    assert {p.name: p.read_text() for p in folder.iterdir()} == {"a": "new", "b": "old"}
    (folder / "a").write_text("old")
    with pytest.raises(WriteError, match="inference cannot be written"):
        fail_in(replaced_files(folder), OSError(errno.ENOSPC, "No space left on device"))
    assert (folder / "a").read_text() == "old"
    # What was complete when other code failed is not lost: it may have taken hours.
    with pytest.raises(ZeroDivisionError):
        fail_in(replaced_files(folder), ZeroDivisionError())
    assert (folder / "a").read_text() == "new"
    assert (folder / "b").read_text() == "old"
    assert os.listdir(tmp_path) == ["inference"]


def test_what_a_kill_leaves_goes_with_the_next_start(tmp_path):
    (tmp_path / "model.pth.partial").touch()
    (tmp_path / "inference.partial").mkdir()
    (tmp_path / "model.pth").touch()
    remove_partial_files(tmp_path)
    assert os.listdir(tmp_path) == ["model.pth"]


def test_no_room_has_several_names():
    assert [is_full(OSError(code, "")) for code in (errno.ENOSPC, errno.EFBIG, errno.EACCES)] == [
        True,
        True,
        False,
    ]


# Programs that make an environment or a package, with interpreters that have no isda; files that
# grow by a line; and what is not on a disk. Reasons stand beside the code.
OTHERS = {
    "projects/isda/benchmarking/memory.py",
    "projects/isda/exported.py",
    "projects/isda/files.py",
    "projects/isda/ops/nvrtc.py",
    "tools/make_env.py",
    "tools/make_wheels.py",
    "tools/training_process.py",
    *(f"tools/environment/{name}.py" for name in ("checks", "detectron2", "pip", "state", "venvs")),
}
WRITING = re.compile(
    r"""\.write_text\(|\.write_bytes\(|imwrite\((?!file)|copyfile\(|\.tofile\(|json\.dump\("""
    r"""|open\([^)]*["'][wax]b?["']|np\.savez?(_compressed)?\((?!file)|savefig\((?!file)"""
    r"""|torch\.save\((?!.*(file|content|FILE)\))"""
)


def test_every_writer_of_the_package_and_its_tools_writes_whole_files():
    folders = [ROOT / "projects", ROOT / "tools", ROOT / "demo"]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    files.append(ROOT / "train_net.py")
    assert len(files) > 80
    found = {}
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        found[name] = [x for x in lines if WRITING.search(x) and not x.startswith(("#", '"'))]
    assert {name: lines for name, lines in found.items() if lines and name not in OTHERS} == {}


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_real_limit_on_the_size_of_files(tmp_path):
    """As on a full disk, without one: the process may write no file beyond 64 KiB."""
    path = tmp_path / "model.pth"
    code = (
        "import resource, torch; from isda.files import replacing\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        f"with replacing({str(path)!r}) as file: torch.save(torch.zeros(100000), file)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert f"{path} cannot be written (File too large): allow larger files" in result.stderr
    assert os.listdir(tmp_path) == []
