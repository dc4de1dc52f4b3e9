"""What cellpose saves: images of masks beside the images or in a folder, and ``_seg.npy``."""

import os
import pickle

import numpy as np
import pytest
from known_truth import SIZE, compare, instances, write_images
from PIL import Image

from isda.data.formats import Options, Report, detect_format, read_annotations


def labels(number: int) -> np.ndarray:
    masks = np.zeros(SIZE, np.uint16)
    for index, (_, mask) in enumerate(instances(number), start=1):
        masks[mask] = index
    return masks


def named(images):
    """With the classes of the truth, which cellpose does not have."""
    for image in images:
        assert {instance.label for instance in image.instances} == {"cell"}
        expected = instances(int(image.source.name[2]))
        for instance, (label, _) in zip(image.instances, expected, strict=True):
            instance.label = label
    return images


def seg(path, masks) -> None:
    """As cellpose writes it: a dict in an array of objects."""
    content = {
        "outlines": masks.astype(np.uint16),
        "masks": masks.astype(np.uint16),
        "chan_choose": [0, 0],
        "ismanual": np.zeros(6, bool),
        "filename": "/home/somebody/im.png",
        "flows": [np.zeros((1, 4, 4), np.uint8), np.zeros((1, 2, 2), np.float32), [], []],
        "diameter": np.float64(17.3),
        "est_diam": np.nan,
    }
    np.save(path, content)


@pytest.mark.parametrize("layout", ["png", "tif", "masks", "npy"])
def test_the_truth(tmp_path, layout):
    for number, path in enumerate(write_images(tmp_path)):
        if layout == "npy":
            seg(tmp_path / f"{path.stem}_seg.npy", labels(number))
            continue
        folder = tmp_path / "masks" if layout == "masks" else tmp_path
        folder.mkdir(exist_ok=True)
        suffix = "tif" if layout == "tif" else "png"
        Image.fromarray(labels(number)).save(folder / f"{path.stem}_cp_masks.{suffix}")
        Image.fromarray(labels(number)).save(tmp_path / f"{path.stem}_cp_outlines.png")
    report = Report()
    assert detect_format(tmp_path).name == "cellpose"
    compare(named(read_annotations(tmp_path, report)))
    assert (report.skipped, report.refused) == ([], [])
    images = read_annotations(tmp_path, Report(), Options(class_name="nucleus"))
    assert {i.label for image in images for i in image.instances} == {"nucleus"}


def test_the_newer_of_two_is_taken(tmp_path):
    (path, *_) = write_images(tmp_path, ["im0.png"])
    masks = tmp_path / "im0_cp_masks.png"
    Image.fromarray(labels(0)).save(masks)
    seg(tmp_path / "im0_seg.npy", labels(0) > 0)
    for newer, number in ((masks, 6), (tmp_path / "im0_seg.npy", 1)):
        os.utime(newer, ns=(2**62, 2**62))
        (image,) = read_annotations(tmp_path, Report())
        assert len(image.instances) == number
        os.utime(newer, ns=(1, 1))
    assert path.name == image.name


class Hostile:
    def __reduce__(self):
        return os.mkdir, (os.environ["HOSTILE"],)


def test_nothing_in_a_pickle_is_called(tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTILE", str(tmp_path / "made"))
    write_images(tmp_path, ["im0.png", "im1.png", "im2.png"])
    np.save(tmp_path / "im0_seg.npy", {"masks": Hostile()})
    (tmp_path / "im1_seg.npy").write_bytes(pickle.dumps(Hostile()))
    np.save(tmp_path / "im2_seg.npy", {"masks": np.zeros((3, *SIZE), np.uint16)})
    report = Report()
    assert read_annotations(tmp_path, report) == []
    assert not (tmp_path / "made").exists()
    assert len(report.refused) == 3
    assert all("the masks cannot be read" in sentence for sentence in report.refused)
    assert "its masks are of shape (3, 120, 160)" in report.refused[2]
