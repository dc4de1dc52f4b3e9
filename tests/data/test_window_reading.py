"""Windows of files are the windows of what is read at once."""

import numpy as np
import pytest

from isda.data import window_reading
from isda.data.images import ImageOptions, read_image
from isda.data.window_reading import ArrayReader, FlippedReader, large_tiff

tifffile = pytest.importorskip("tifffile")


def pixels(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


KINDS = {
    "mapped": {},
    "strips": {"compression": "zlib", "rowsperstrip": 17},
    "one strip": {"compression": "zlib"},
    "tiles": {"compression": "zlib", "tile": (32, 48)},
    "tiles without compression": {"tile": (32, 48)},
}


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(window_reading, "_LARGE", 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(130, 203), (130, 203, 3), (130, 203, 4)])
def test_windows_are_parts_of_the_whole(tmp_path, everything_is_large, monkeypatch, kind, shape):
    path = str(tmp_path / "a.tif")
    colours = {"photometric": "rgb"} if len(shape) == 3 else {"photometric": "minisblack"}
    tifffile.imwrite(path, pixels(*shape), **colours, **KINDS[kind])
    whole = read_image(path, "RGB")
    monkeypatch.setattr(window_reading, "_CACHE", 5000)  # so that segments are decoded again
    with large_tiff(path, ImageOptions()) as reader:
        assert reader.shape == (130, 203)
        for top, bottom, left, right in [
            (0, 130, 0, 203),
            (0, 1, 0, 1),
            (129, 130, 202, 203),
            (16, 18, 47, 49),
            (31, 97, 40, 150),
            (0, 33, 100, 203),
        ]:
            window = reader.read(top, bottom, left, right)
            assert window.dtype == np.uint8
            np.testing.assert_array_equal(window, whole[top:bottom, left:right])
            flipped = FlippedReader(reader).read(top, bottom, left, right)
            np.testing.assert_array_equal(flipped, whole[top:bottom, left:right, ::-1])


def test_only_the_segments_of_a_window_are_kept(tmp_path, everything_is_large, monkeypatch):
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, pixels(256, 256), compression="zlib", tile=(16, 16))
    monkeypatch.setattr(window_reading, "_CACHE", 10 * 16 * 16)
    with large_tiff(path, ImageOptions()) as reader:
        for top in range(0, 256, 32):
            reader.read(top, top + 32, 0, 256)
            assert len(reader._segments) <= 10


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (pixels(90, 90, dtype=np.uint16), {"photometric": "minisblack"}),
        (pixels(90, 90), {"photometric": "miniswhite"}),
        (pixels(90, 90), {"photometric": "minisblack", "extratags": [(274, "H", 1, 6, True)]}),
    ],
)
def test_what_has_to_be_converted_is_left_to_the_reader_of_whole_images(
    tmp_path, everything_is_large, array, options
):
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, array, **options)
    with large_tiff(path, ImageOptions()) as reader:
        assert reader is None


def test_small_files_and_other_formats_are_read_whole(tmp_path):
    import cv2

    for name in ("a.tif", "a.png"):
        cv2.imwrite(str(tmp_path / name), pixels(64, 64))
        with large_tiff(str(tmp_path / name), ImageOptions()) as reader:
            assert reader is None


def test_arrays_are_readers():
    image = pixels(60, 70, 3)
    reader = ArrayReader(image)
    assert reader.shape == (60, 70)
    np.testing.assert_array_equal(reader.read(5, 9, 7, 30), image[5:9, 7:30])
