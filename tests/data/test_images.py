import logging

import numpy as np
import pytest
import torch
from PIL import Image

from isda.data import images
from isda.data.errors import DatasetError, ImageError
from isda.data.images import check_image_size, read_image, rgb_image

HEIGHT, WIDTH = 40, 60
GREY = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
COLOR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)


def save(path, pixels, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return str(path)


def test_rgb_and_bgr(tmp_path):
    path = save(tmp_path / "a.png", COLOR)
    np.testing.assert_array_equal(read_image(path, "RGB"), COLOR)
    np.testing.assert_array_equal(read_image(path, "BGR"), COLOR[..., ::-1])


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_becomes_three_equal_channels(tmp_path, mode):
    image = Image.fromarray(GREY)
    image = image.convert(mode)
    path = save(tmp_path / "a.png", image)
    expected = np.asarray(image.convert("L"))
    result = read_image(path, "RGB")
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.stack([expected] * 3, axis=2))
    assert read_image(path, "L").shape == (HEIGHT, WIDTH, 1)


def test_transparency_is_ignored(tmp_path):
    path = save(tmp_path / "a.png", np.dstack([COLOR, GREY]))
    np.testing.assert_array_equal(read_image(path, "RGB"), COLOR)


def test_palette(tmp_path):
    image = Image.fromarray(COLOR).quantize(32)
    path = save(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(path, "RGB"), np.asarray(image.convert("RGB")))


def test_cmyk(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(COLOR).convert("CMYK"), quality=100)
    assert Image.open(path).mode == "CMYK"
    assert np.abs(read_image(path, "RGB").astype(int) - COLOR).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    ("largest", "full"), [(65535, 65535), (4095, 4095), (3000, 4095), (255, 255)]
)
def test_deep_pixels_are_scaled_by_the_sensors_depth(tmp_path, suffix, largest, full):
    """Pillow alone clips them at 255: nearly all white."""
    pixels = (np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * largest).astype(np.uint16)
    path = save(tmp_path / f"a.{suffix}", pixels)
    assert Image.open(path).mode.startswith("I")
    result = read_image(path, "RGB")
    assert result.dtype == np.uint8
    assert result.shape == (HEIGHT, WIDTH, 3)
    expected = np.round(pixels * (255 / full))
    assert np.abs(result - expected[..., None]).max() <= 1


def test_fractions_are_scaled(tmp_path):
    path = save(tmp_path / "a.tif", (GREY / 255).astype(np.float32))
    np.testing.assert_array_equal(read_image(path, "L")[..., 0], GREY)


@pytest.mark.parametrize("worst", [-1.0, float("nan"), 1e6])
def test_pixels_that_mean_nothing_are_an_error(tmp_path, worst):
    pixels = np.zeros((HEIGHT, WIDTH), np.float32)
    pixels[3, 4] = worst
    path = save(tmp_path / "a.tif", pixels)
    with pytest.raises(ImageError, match="convert it to 8") as error:
        read_image(path, "RGB")
    assert path in str(error.value)


def test_scaling_is_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(images, "_told", set())
    paths = [save(tmp_path / f"{i}.png", np.full((4, 4), 60000, np.uint16)) for i in range(3)]
    with caplog.at_level(logging.WARNING, logger="isda"):
        for path in paths:
            read_image(path, "RGB")
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1
    assert paths[0] in lines[0]
    assert "16 bits" in lines[0]


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def test_exif_rotation_is_applied(tmp_path):
    path = save(tmp_path / "a.png", COLOR, exif=exif(6))  # stored lying on its left side
    np.testing.assert_array_equal(read_image(path, "RGB"), np.rot90(COLOR, -1))


def test_annotations_of_the_stored_image_are_told_from_the_upright(tmp_path):
    path = save(tmp_path / "a.jpg", COLOR, exif=exif(6))
    image = read_image(path, "RGB")
    check_image_size({"file_name": path, "height": WIDTH, "width": HEIGHT}, image)
    with pytest.raises(ImageError, match="EXIF.*40x60.*60x40.*remove the tag") as error:
        check_image_size({"file_name": path, "height": HEIGHT, "width": WIDTH}, image)
    assert path in str(error.value)


def test_swapped_sides_without_exif_are_not_blamed_on_it(tmp_path):
    path = save(tmp_path / "a.jpg", COLOR)
    with pytest.raises(ImageError, match="60x40.*40x60.*correct width and height") as error:
        check_image_size({"file_name": path, "height": WIDTH, "width": HEIGHT}, COLOR)
    assert "EXIF" not in str(error.value)


def missing(path):
    pass


def folder(path):
    path.mkdir()


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("<html>404 not found</html>")


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    save(path, noise, format="PNG" if path.suffix == ".png" else "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def header_only(path):
    truncated(path)
    path.write_bytes(path.read_bytes()[:20])


def scrambled(path):
    truncated(path)
    content = bytearray(path.read_bytes())
    content[30:200] = bytes(170)
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, "no such image: check file_name"),
        (folder, "cannot be read as an image file"),
        (empty, "the image file is empty: fetch it again"),
        (text, "cannot be decoded.*fetch it again"),
        (truncated, "cannot be decoded.*fetch it again"),
        (header_only, "cannot be decoded.*fetch it again"),
        (scrambled, "cannot be decoded.*fetch it again"),
    ],
)
def test_a_bad_file_is_named_with_the_remedy(tmp_path, suffix, spoil, words):
    path = tmp_path / f"a.{suffix}"
    spoil(path)
    with pytest.raises(ImageError, match=words) as error:
        read_image(str(path), "RGB")
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert isinstance(error.value, DatasetError | ValueError)


DEEP = (GREY.astype(np.uint16) << 8) | GREY  # 0 to 65535


@pytest.mark.parametrize(
    "image",
    [
        COLOR,
        np.dstack([COLOR, GREY]),
        COLOR.astype(np.int64),
        COLOR / 255,
        COLOR.astype(np.float32),
        (COLOR.astype(np.uint16) << 8) | COLOR,
        torch.from_numpy(COLOR).permute(2, 0, 1),
        (torch.from_numpy(COLOR) / 255).permute(2, 0, 1),
        torch.from_numpy(COLOR).permute(2, 0, 1).to(torch.bfloat16),
        Image.fromarray(COLOR),
        Image.fromarray(np.dstack([COLOR, GREY])),
    ],
    ids=lambda image: f"{type(image).__name__}-{getattr(image, 'dtype', image.__class__)}",
)
def test_images_in_memory_become_rgb(image):
    result = rgb_image(image)
    assert (result.dtype, result.shape) == (np.uint8, (HEIGHT, WIDTH, 3))
    np.testing.assert_array_equal(result, COLOR)


@pytest.mark.parametrize("image", [GREY, GREY[..., None], DEEP, torch.from_numpy(GREY)[None]])
def test_grey_in_memory_becomes_three_equal_channels(image):
    np.testing.assert_array_equal(rgb_image(image), np.stack([GREY] * 3, axis=2))


def test_pictures_and_paths_are_converted_alike(tmp_path):
    path = save(tmp_path / "a.png", COLOR, exif=exif(6))
    np.testing.assert_array_equal(rgb_image(path), np.rot90(COLOR, -1))
    with Image.open(path) as picture:
        np.testing.assert_array_equal(rgb_image(picture), np.rot90(COLOR, -1))
    np.testing.assert_array_equal(rgb_image(Image.fromarray(DEEP)), rgb_image(DEEP))


def test_bgr_is_said_of_arrays_and_no_matter_for_files(tmp_path):
    path = save(tmp_path / "a.png", COLOR)
    assert np.array_equal(rgb_image(np.dstack([COLOR[..., ::-1], GREY]), "BGR"), COLOR)
    assert np.array_equal(rgb_image(torch.from_numpy(COLOR).permute(2, 0, 1).flip(0), "BGR"), COLOR)
    assert np.array_equal(rgb_image(path, "BGR"), COLOR)


def test_masks_become_black_and_white():
    result = rgb_image(GREY > 100)
    np.testing.assert_array_equal(result[..., 0], np.where(GREY > 100, 255, 0))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"shape \(3, 8, 9\) is no image: it must be \(H, W\)"),
        (np.zeros((2, 8, 9, 3), np.uint8), "several images go into a list"),
        (np.zeros((0, 9, 3), np.uint8), "is no image"),
        (torch.zeros(8, 9, 3), r"its channels, 1, 3 or 4, come first, \(C, H, W\)"),
        (np.full((4, 4), np.nan), "negative or non-finite"),
        (np.full((4, 4), 1e6), "more than 16 bits"),
        (np.array([["a"]]), "numbers"),
        (5, "type int: give a path"),
    ],
)
def test_what_is_no_image_in_memory_is_an_error(image, message):
    with pytest.raises(ImageError, match=message):
        rgb_image(image)
