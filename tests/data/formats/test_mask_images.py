"""Masks drawn as images, whole and broken."""

import numpy as np
import pytest
import tifffile
from examples_of_formats import SIZE, drawn, photo
from PIL import Image

from isda.data.formats import Report
from isda.data.formats.mask_images import read_label_images, read_mask_folders


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def box(x, y, width, height, value=255, dtype=np.uint8):
    pixels = np.zeros(SIZE, dtype)
    pixels[y : y + height, x : x + width] = value
    return pixels


def in_folders(folder):
    report = Report()
    return read_mask_folders(folder, report, "nucleus"), report


def labelled(folder):
    report = Report()
    return read_label_images(folder, report, "nucleus"), report


def test_a_folder_per_image(tmp_path):
    photo(tmp_path / "abc/images/abc.png")
    save(tmp_path / "abc/masks/1.png", box(3, 4, 5, 6))
    save(tmp_path / "abc/masks/2.png", box(20, 4, 5, 6) > 0)  # of one bit
    two_parts = box(30, 4, 5, 6) | box(40, 20, 5, 6, value=1)
    colour = np.stack([two_parts, two_parts, two_parts, np.full(SIZE, 255, np.uint8)], axis=2)
    save(tmp_path / "abc/masks/3.png", colour)  # its transparency is no mask
    photo(tmp_path / "def/images/def.jpg")
    (tmp_path / "def/masks").mkdir()
    (tmp_path / "notes").mkdir()
    images, report = in_folders(tmp_path)
    assert report == Report()
    assert [(i.name, i.size, len(i.instances)) for i in images] == [
        ("abc.png", SIZE, 3),
        ("def.jpg", SIZE, 0),
    ]
    expected = [box(3, 4, 5, 6), box(20, 4, 5, 6), two_parts]
    for instance, pixels in zip(images[0].instances, expected):
        assert instance.label == "nucleus"
        assert (drawn(instance.segmentation) == (pixels > 0)).all()


def test_masks_that_cannot_be_used(tmp_path):
    for name in "abcd":
        photo(tmp_path / name / "images/photo.png")
        save(tmp_path / name / "masks/1.png", box(3, 4, 5, 6))
    save(tmp_path / "a/masks/2.png", box(0, 0, 0, 0))
    save(tmp_path / "b/masks/2.png", np.ones((6, 9), np.uint8))
    photo(tmp_path / "c/images/second.png")
    (tmp_path / "d/masks/2.png").write_bytes(b"nothing")
    images, report = in_folders(tmp_path)
    assert [(image.name, len(image.instances)) for image in images] == [("a.png", 1)]
    assert report.skipped == [(str(tmp_path / "a/masks/2.png"), "without a pixel")]
    size, two, damaged = report.refused
    assert "b/masks/2.png: the mask has 9x6 pixels (width x height), its image 60x40" in size
    assert "c/images: has 2 images: there must be one" in two
    assert "d/masks/2.png: the mask cannot be decoded" in damaged


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "32 bits", "palette", "tif", "labels/"])
def test_a_label_image(tmp_path, kind):
    dtype = {"16 bits": np.uint16, "32 bits": np.int32}.get(kind, np.uint8)
    values = box(3, 4, 5, 6, 7, dtype) + box(20, 4, 5, 6, 200, dtype) + box(40, 9, 2, 2, 1, dtype)
    suffix = ".tif" if kind in ("tif", "32 bits") else ".png"
    path = tmp_path / ("labels" if kind == "labels/" else "masks") / f"sub/a{suffix}"
    path.parent.mkdir(parents=True)
    image = Image.fromarray(values)
    if kind == "palette":
        image.putpalette(list(np.random.default_rng(0).integers(0, 255, 768)))
    image.save(path)
    photo(tmp_path / "images/sub/a.jpg")
    (image,), report = labelled(tmp_path)
    assert report == Report()
    assert image.name == "sub/a.jpg"
    found = [drawn(instance.segmentation) for instance in image.instances]
    assert [mask.sum() for mask in found] == [4, 30, 30]
    assert all((mask == (values == v)).all() for mask, v in zip(found, (1, 7, 200)))


def test_masks_as_napari_writes_them(tmp_path):
    """Booleans, of which tifffile says that 0 is white; Pillow inverts them."""
    photo(tmp_path / "abc/images/abc.png")
    (tmp_path / "abc/masks").mkdir()
    tifffile.imwrite(tmp_path / "abc/masks/1.tif", box(3, 4, 5, 6) > 0)
    (image,), report = in_folders(tmp_path)
    assert report == Report()
    assert (drawn(image.instances[0].segmentation) == (box(3, 4, 5, 6) > 0)).all()


def test_labels_of_64_bits_beside_an_image_of_several_channels(tmp_path):
    """Which training has to be told one of; the masks are the same for all."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    pixels = np.zeros((2, *SIZE), np.uint16)
    tifffile.imwrite(tmp_path / "images/a.tif", pixels, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "masks/a.tif", box(3, 4, 5, 6, 70_000, np.int64))
    (image,), report = labelled(tmp_path)
    assert report == Report()
    assert image.size == SIZE
    assert drawn(image.instances[0].segmentation).sum() == 30


def test_label_images_that_cannot_be_used(tmp_path):
    spoilt = {
        "a": lambda path: save(path, np.ones((6, 9), np.uint8)),
        "b": lambda path: save(path, np.ones((*SIZE, 3), np.uint8)),
        "c": lambda path: save(path.with_suffix(".tif"), np.ones(SIZE, np.float32)),
        "d": lambda path: save(path.with_suffix(".jpg"), np.ones(SIZE, np.uint8)),
        "e": lambda path: None,
    }
    for name, spoil in spoilt.items():
        photo(tmp_path / f"images/{name}.png")
        spoil(tmp_path / f"masks/{name}.png")
    save(tmp_path / "masks/unused.png", box(3, 4, 5, 6))
    images, report = labelled(tmp_path)
    assert images == []
    size, colour, real, lossy, missing = report.refused
    assert "a.png: the mask has 9x6 pixels (width x height), its image 60x40: save" in size
    assert "b.png: a label image has one channel of whole numbers" in colour
    assert "of 3 channels of type uint8" in colour and "of 1 channel of type float32" in real
    assert "d.jpg: JPEG changes the numbers of label images: save it as PNG" in lossy
    assert "masks: has no label image e.png: draw one" in missing


def test_masks_of_a_whole_class_are_warned_of(tmp_path):
    for name in "ab":
        photo(tmp_path / f"images/{name}.png")
        save(tmp_path / f"masks/{name}.png", box(3, 4, 5, 6) | box(20, 4, 5, 6))
    images, report = labelled(tmp_path)
    assert [len(image.instances) for image in images] == [1, 1]
    assert "all label images have the one value 255" in report.notes[0]
