"""What is read, to the last bit, and what is refused, in a sentence."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from strangers import CONTENTS, SPRUNG, SUFFIXES, write
from torch import nn

from isda.checkpoint import Checkpointer
from isda.weights_files import WeightsError, read_checkpoint, read_state_dict

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "a.bias": np.array([np.pi, -0.0, 1e-40]),
    "columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "halves": np.array([1.5, -2], np.float16),
    "counter": np.array(3, dtype=np.int64),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}
WEIGHTS = {name: torch.from_numpy(array.copy()) for name, array in ARRAYS.items()}


def assert_same(found: dict, expected: dict = ARRAYS) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        here = np.asarray(found[name])
        assert (here.dtype, here.shape) == (array.dtype, array.shape), name
        assert here.tobytes() == np.asarray(array).tobytes(), name


def refusal(path) -> str:
    with pytest.raises(WeightsError) as error:
        read_checkpoint(path)
    # Nothing of PyTorch's, nor as the cause that a traceback would show.
    shown = f"{error.value} {error.value.__cause__}"
    assert "weights_only" not in shown and "trust" not in shown, shown
    assert error.value.__cause__ is None or isinstance(error.value.__cause__, OSError)
    assert str(path.name) in str(error.value)
    return str(error.value)


# --- the traps


@pytest.mark.parametrize("content", [c for c in CONTENTS if c.startswith(("pickle", "torch b"))])
def test_the_traps_are_traps(content):
    """What a plain unpickler does with them."""
    file = io.BytesIO(CONTENTS[content])
    if content == "torch before 0.1.10":
        with tarfile.open(fileobj=file) as archive:
            pickle.load(archive.extractfile("pickle"))
    elif content == "torch before 1.6":
        torch.load(file, weights_only=False)
    else:
        pickle.load(file)
    assert SPRUNG
    SPRUNG.clear()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", CONTENTS)
def test_nothing_is_executed_whatever_the_name(content, suffix, mmap, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = write(tmp_path, content, suffix)
    with pytest.raises(WeightsError) as error:
        read_checkpoint(path, mmap=mmap)
    message = str(error.value)
    assert "weights_only" not in message
    if content in ("pickle 2", "pickle 5", "torch", "torch before 1.6"):
        assert "holds Python objects besides tensors (strangers.spring)" in message
    if content == "module":
        assert "besides tensors (torch.nn.modules.linear.Linear)" in message


# --- Detectron2's pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(protocol, tmp_path):
    extras = {"__author__": "Detectron2 Model Zoo", "matching_heuristics": True, "epoch": 3}
    extras |= {"lr": np.float64(0.1), "shape": (1, 2.5, None, b"x", b"", {1}, bytearray(b"y"), 2j)}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": ARRAYS} | extras, protocol))
    found = read_checkpoint(path)
    assert_same(found.pop("model"))
    assert found == extras
    assert all(np.asarray(array).flags.writeable for array in read_state_dict(path).values())


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_pickles_of_numpy_1_and_2(core, protocol, tmp_path):
    ours = np.array(0).__reduce__()[0].__module__.removesuffix(".multiarray")
    content = pickle.dumps({"model": {"a": ARRAYS["a.weight"]}}, protocol)
    old, new = (f"{name}.{'numeric' if protocol == 5 else 'multiarray'}" for name in (ours, core))
    if protocol == 5:  # a name with its length before it, in a frame that has its own
        content = content.replace(
            bytes([len(old)]) + old.encode(), bytes([len(new)]) + new.encode()
        )
        start = content.index(b"\x95") + 1
        length = len(content) - start - 8
        content = content[:start] + length.to_bytes(8, "little") + content[start + 8 :]
    else:
        content = content.replace(f"c{old}\n".encode(), f"c{new}\n".encode())
    (tmp_path / "w.pkl").write_bytes(content)
    assert_same(read_checkpoint(tmp_path / "w.pkl")["model"], {"a": ARRAYS["a.weight"]})


def test_a_pickle_of_python_2(tmp_path):
    """As Detectron's were written: texts are bytes, arrays' bytes are a text."""
    data = np.array([1.5, -3], "<f4").tobytes()
    content = (
        b"\x80\x02}q\x01U\x05blobs}q\x02(U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01"
        b"\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + data + b"tb"
        b"U\x10conv1_w_momentumK\x01us."
    )
    (tmp_path / "R-50.pkl").write_bytes(content)
    found = read_checkpoint(tmp_path / "R-50.pkl")
    assert (found["__author__"], found["matching_heuristics"]) == ("Caffe2", True)
    assert_same(found["model"], {"conv1_w": np.array([1.5, -3], np.float32)})


def test_arrays_of_another_byte_order(tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": ARRAYS["a.weight"].astype(">f4")}))
    assert_same(read_checkpoint(tmp_path / "w.pkl")["model"], {"a": ARRAYS["a.weight"]})


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.array([None]), "a NumPy array of type O8"),
        (np.zeros(1, [("x", "f4")]), "a NumPy array of type V4"),
        (np.ma.masked_array([1.0]), "numpy.ma.core._mareconstruct"),
        (torch.zeros(1), "torch._utils._rebuild_tensor_v2"),
        (print, "builtins.print"),
        (io.BytesIO, "_io.BytesIO"),
        (type, "builtins.type"),
        (getattr, "builtins.getattr"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_else_a_pickle_names_is_named(value, name, tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": ARRAYS, "x": value}, 4))
    assert f"Python objects besides tensors ({name}), which are not lo" in refusal(
        tmp_path / "w.pkl"
    )


@pytest.mark.parametrize("order", [b"b", b"Nb", b"}U\x08__name__U\x01xsb"], ids=repr)
def test_a_pickle_cannot_change_what_others_get(order, tmp_path):
    """The instruction that sets attributes, on a function that is allowed."""
    content = b"\x80\x02cnumpy\ndtype\n" + (b"cnumpy\ndtype\n" if order == b"b" else b"") + order
    (tmp_path / "w.pkl").write_bytes(content + b".")
    refusal(tmp_path / "w.pkl")
    test_arrays_of_another_byte_order(tmp_path)


# --- PyTorch's and safetensors


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth", ".safetensors", ""])
@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", None])
def test_files_of_torch(wrapper, new_format, suffix, mmap, tmp_path):
    path = tmp_path / f"w{suffix}"
    content = {wrapper: WEIGHTS, "iteration": 5} if wrapper else WEIGHTS
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    found = read_checkpoint(path, mmap=mmap)
    assert_same(found.pop("model"))
    assert found == ({"iteration": 5} if wrapper else {})


def test_numpy_in_files_of_torch(tmp_path):
    torch.save({"model": ARRAYS, "best": np.float64(31.5)}, tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.pth")
    assert_same(found["model"])
    assert found["best"] == 31.5


def test_a_file_of_pycls(tmp_path):
    weights = WEIGHTS | {"bn.num_batches_tracked": torch.tensor(1)}
    torch.save({"model_state": weights}, tmp_path / "w.pyth")
    found = read_checkpoint(tmp_path / "w.pyth")
    assert_same(found["model"])
    assert (found["__author__"], found["matching_heuristics"]) == ("pycls", True)


def safetensors(header, data: bytes = b"") -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data


def entry(start=0, end=8, shape=(2,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


PAIR = np.array([0.5, 7], "<f4").tobytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pkl"])
def test_safetensors_by_hand(suffix, tmp_path):
    header = {"__metadata__": {"format": "pt"}, "b": entry(8, 16), "a": entry(0, 8)}
    header |= {"none": entry(16, 16, (0, 3)), "one": entry(16, 24, (), "I64")}
    content = safetensors(header, PAIR + PAIR[::-1] + (9).to_bytes(8, "little"))
    (tmp_path / f"w{suffix}").write_bytes(content)
    found = read_checkpoint(tmp_path / f"w{suffix}")["model"]
    expected = {"b": np.frombuffer(PAIR[::-1], "<f4"), "a": np.float32([0.5, 7])}
    expected |= {"none": np.zeros((0, 3), np.float32), "one": np.array(9)}
    assert_same(found, expected)


def test_safetensors_of_their_library(tmp_path):
    library = pytest.importorskip("safetensors.torch", reason="safetensors is optional")
    weights = {name: weight.contiguous() for name, weight in WEIGHTS.items()}
    weights["brain"] = torch.tensor([1.5, -3], dtype=torch.bfloat16)
    library.save_file(weights, tmp_path / "w.safetensors")
    found = read_state_dict(tmp_path / "w.safetensors")
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert found[name].dtype == weight.dtype
        assert torch.equal(found[name], weight)


SAFETENSORS = {
    "cut in the data": (safetensors({"a": entry()}, PAIR[:5]), "it is cut off: 3 bytes are miss"),
    "cut in the header": (safetensors({"a": entry()})[:20], "cut off within its header, after 20"),
    "cut in the length": (b"\x10\x00\x00", "does not begin with the length of a header"),
    "length without end": (b"\xff" * 8 + b"{}", "does not begin with the length of a header"),
    "no JSON": (safetensors(b"{a: 1}"), "its header is not JSON"),
    "no UTF-8": (safetensors(b'{"\xff": 1}'), "its header is not JSON"),
    "nested": (safetensors(b'{"a": ' + b"[" * 100_000), "its header is not JSON"),
    "no table": (safetensors(b"{}       ".replace(b"{}", b"[]")), "is not a table of tensors"),
    "a name twice": (safetensors(b'{"a": 1, "b": 2, "a": 3}'), "its header has a twice"),
    "no entry": (safetensors({"a": 3}), "does not describe a as a tensor"),
    "negative": (safetensors({"a": entry(shape=(-2,))}, PAIR), "does not describe a as a tensor"),
    "bool": (safetensors({"a": entry(shape=(True,))}, PAIR), "does not describe a as a tensor"),
    "three ends": (safetensors({"a": entry() | {"data_offsets": [0, 4, 8]}}), "not describe a as"),
    "vast": (safetensors({"a": entry(shape=(2**62, 2**62))}, PAIR), "another size than its shape"),
    "overlap": (safetensors({"a": entry(), "b": entry()}, PAIR), "has b in the wrong place"),
    "gap": (safetensors({"a": entry(4, 12)}, PAIR * 2), "has a in the wrong place"),
    "more": (safetensors({"a": entry()}, PAIR + b"12"), "2 bytes that belong to no tensor"),
    "vast and empty": (safetensors({"a": entry(0, 0, (0, 2**70))}), "does not describe a as a ten"),
    "a long name": (safetensors({"x" * 10**6: 3}), "x … x"),
    "a name that steers": (safetensors({"\x1b[2J": 3}), "does not describe \ufffd[2J as a tensor"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_broken_safetensors(case, tmp_path):
    content, message = SAFETENSORS[case]
    (tmp_path / "w.safetensors").write_bytes(content)
    text = refusal(tmp_path / "w.safetensors")
    assert "w.safetensors is no readable safetensors file, " in text
    assert message in text
    assert text.endswith(": download or copy it again")


# --- what is none


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def altered(content: bytes, old: bytes, new: bytes) -> bytes:
    """An archive as if it had been written with other bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w") as after:
        for name in before.namelist():
            after.writestr(name, before.read(name).replace(old, new))
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


PAGE = b"<!DOCTYPE html>\n<html><body>Sign in to download</body></html>"
GOOD = saved({"model": WEIGHTS})
PROTO = b"\x80\x02}"  # what a pickle of a dict begins with
SPARSE = torch.zeros(2, 2).to_sparse()
OTHERS = {
    "empty.pth": (b"", "is empty: download or copy it again"),
    "page.pth": (PAGE, "is a web page that was saved in place of the file: download the file itse"),
    "page.pkl": (b"\xef\xbb\xbf\r\n  <HTML>", "is a web page"),
    "page.safetensors": (PAGE, "is a web page"),
    "denied.pkl": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
    "answer.pth": (b"Not Found", "is a text file: download the file itself"),
    "index.pth": (b'{"weight_map": {"a": "one.safetensors"}}', "is JSON text: name a file of"),
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "gzip.pkl": (gzip.compress(b"x"), "is compressed by gzip: decompress it and name the result"),
    "hdf5.pth": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file: convert it with the library that wrot"),
    "one.pth": (array(), "is one NumPy array: give a file with all tensors by their names"),
    "noise.pth": (bytes(range(128, 256)), "is no file of weights: give one of PyTorch, safetens"),
    "noise.pkl": (bytes(range(128, 256)), "noise.pkl is damaged or cut off, or holds more than"),
    "cut.pth": (GOOD[: len(GOOD) // 2], "is cut off or damaged: download or copy it again"),
    "cut.pkl": (pickle.dumps(ARRAYS)[:-40], "is damaged or cut off, or holds more than tensors (p"),
    "old_cut.pth": (
        saved(WEIGHTS, _use_new_zipfile_serialization=False)[:-30],
        "is damaged or cut off",
    ),
    "changed.pth": (altered(GOOD, b"torch._utils", b"torch.utils."), "besides tensors (torch.util"),
    "protocol.pth": (saved(WEIGHTS, pickle_protocol=4), "is pickled by protocol 4, which PyTorch"),
    "protocol_5.pth": (
        saved(WEIGHTS, pickle_protocol=5, _use_new_zipfile_serialization=False),
        "is pickled by protocol 5, which PyTorch reads by executing it only: have it saved witho",
    ),
    "operand.pth": (altered(GOOD, PROTO, PROTO[:2] + b"\xff"), "is damaged or cut off"),
    "other.pth": (zipped("readme.txt"), "is a ZIP archive without weights of PyTorch: unpack it"),
    "arrays.pth": (zipped("a.npy", "b.npy"), "is a NumPy archive (.npz)"),
    "program.pth": (
        zipped("m/data.pkl", "m/constants.pkl"),
        "is a TorchScript program: save its state_dict() by torch.save",
    ),
    "exported.pth": (zipped("m/models/model.json"), "is an exported program: give the weights"),
    "list.pth": (saved([torch.zeros(1)]), "holds a list instead of tensors by name: give a file o"),
    "list.pkl": (pickle.dumps([1]), "holds a list instead of tensors by name"),
    "tensor.pth": (saved(torch.zeros(1)), "holds a Tensor instead of tensors by name"),
    "text.pth": (saved("abc"), "holds a str instead of tensors by name"),
    "nothing.pth": (saved({}), "holds no tensors at all"),
    "none.pth": (saved({"model": {}}), "holds no tensors below model at all"),
    "model.pth": (saved({"model": [1]}), "'model' is of type list, not a tensor"),
    "counter.pth": (saved({"a": torch.zeros(1), "epoch": 3}), "'epoch' is of type int, not a te"),
    "inner.pth": (saved({"model": {"a": None}}), "'a' below model is of type None, not a tensor"),
    "number.pth": (saved({"model": {1: torch.zeros(1)}}), "1 below model in place of a tens"),
    "long.pth": (saved({"x" * 10**6: 1}), "x … x"),
    "eight.safetensors": (
        safetensors({"a": entry(0, 4, (4,), "F8_E4M3")}, PAIR[:4]),
        "holds a as numbers of type F8_E4M3: save it as a dense tensor",
    ),
    "averaged.pth": (
        saved({"model": WEIGHTS, "training_model": {"a": 1}}),
        "'a' below training_model is of type int",
    ),
    "sparse.pth": (saved({"a": SPARSE}), "holds a as a sparse tensor: save it as a dense tensor"),
    "meta.pth": (saved({"a": torch.zeros(2, device="meta")}), "a tensor without data, of device"),
    "complex.pth": (saved({"a": torch.zeros(2, dtype=torch.complex64)}), "of type complex64"),
    "eight.pth": (saved({"a": torch.zeros(2).to(torch.float8_e5m2)}), "of type float8_e5m2"),
    "words.pkl": (pickle.dumps({"a": np.array(["x"])}), "holds a as a NumPy array of type <U1"),
    "steers.pth": (saved({"\x1b[2J": torch.zeros(1)}), r"under the name '\x1b[2J', which no mod"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OTHERS)
def test_files_that_are_no_weights(name, tmp_path):
    content, message = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    text = refusal(tmp_path / name)
    assert message in text
    assert "\n" not in text and "\x1b" not in text


@pytest.mark.parametrize("mmap", [False, True])
def test_a_number_that_was_damaged_on_its_way(mmap, tmp_path):
    """PyTorch takes it as it is, and the model computes with it."""
    content = bytearray(saved({"a": torch.full((1000,), 0.5)}))
    at = content.find(torch.full((1000,), 0.5).numpy().tobytes())
    content[at + 2003] ^= 64  # of an exponent
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    assert torch.load(path)["a"].max() > 1e30
    with pytest.raises(WeightsError, match="w.pth is damaged .*data/0.*: download or cop"):
        read_checkpoint(path, mmap=mmap)


def test_files_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert_same(read_checkpoint(tmp_path / "w.pth")["model"])


@pytest.mark.parametrize("new_format", [True, False])
def test_files_of_protocol_3(new_format, tmp_path, recwarn):
    options = {"pickle_protocol": 3, "_use_new_zipfile_serialization": new_format}
    torch.save(WEIGHTS, tmp_path / "w.pth", **options)
    assert_same(read_checkpoint(tmp_path / "w.pth")["model"])
    assert [str(w.message) for w in recwarn if "protocol" in str(w.message)] == []


def test_the_address_of_a_file(tmp_path):
    path = tmp_path / "my weights.pth"
    torch.save(WEIGHTS, path)
    for source in (path.as_uri(), f"file://{path}"):
        assert_same(read_checkpoint(source)["model"])
    with pytest.raises(WeightsError, match="there is no file file:///nowhere.pth"):
        read_checkpoint("file:///nowhere.pth")


def test_files_that_are_not_there_or_cannot_be_read(tmp_path, monkeypatch):
    assert "there is no file" in refusal(tmp_path / "nowhere.pth")
    assert "there is no file" in refusal(tmp_path / ("a" * 5000))
    (tmp_path / "folder.pth").mkdir()
    assert "is a folder: name the file of weights in it" in refusal(tmp_path / "folder.pth")
    (tmp_path / "mine.pth").write_bytes(GOOD)

    def refuse(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    text = refusal(tmp_path / "mine.pth")
    assert "mine.pth cannot be read (Permission denied): check the file and its permissions" in text


# --- in the model


def test_numbers_that_are_not_finite_are_told_of(tmp_path, caplog):
    net = nn.Linear(2, 2)
    weights = net.state_dict() | {"bias": torch.tensor([0, float("nan")])}
    torch.save(weights, tmp_path / "w.pth")
    Checkpointer(net).load(str(tmp_path / "w.pth"))
    assert "w.pth: numbers that are not finite in 1 tensors, bias: what the model" in caplog.text


def test_whole_numbers_are_not_taken_for_floats(tmp_path):
    net = nn.Linear(2, 2)
    weights = net.state_dict() | {"weight": torch.ones(2, 2, dtype=torch.int8)}
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"\(torch.int8\) for 1 tensors that are floats.*weight"):
        Checkpointer(net).load(str(tmp_path / "w.pth"))
