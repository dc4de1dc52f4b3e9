import logging

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from isda.data.errors import DatasetError, ImageError
from isda.data.images import ImageOptions, check_image_size, intensity, read_image, rgb_image

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


def percentiles(pixels, low=1, high=99.8):
    """The 8 bits that NumPy's own percentiles give."""
    low, high = np.percentile(pixels, [low, high])
    return np.clip((pixels.astype(float) - low) / (high - low) * 255, 0, 255)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("largest", [65535, 4096, 4095, 255])
def test_deep_pixels_are_scaled_by_percentiles(tmp_path, suffix, largest):
    """Whatever their largest value: Pillow alone clips them at 255, nearly all white."""
    pixels = (np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * largest).astype(np.uint16)
    path = save(tmp_path / f"a.{suffix}", pixels)
    assert Image.open(path).mode.startswith("I")
    result = read_image(path, "RGB")
    assert result.dtype == np.uint8
    assert result.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(result - percentiles(pixels)[..., None]).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("alpha", [False, True])
def test_a_png_with_16_bits_per_colour_keeps_them(tmp_path, alpha):
    """12 of them, of which Pillow leaves 4."""
    pixels = COLOR.astype(np.uint16) * 16
    shown = pixels[..., ::-1]  # as OpenCV writes it
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, np.dstack([shown, GREY.astype(np.uint16)]) if alpha else shown)
    assert np.abs(read_image(path, "RGB") - percentiles(pixels)).max() <= 0.5 + 1e-6
    assert np.abs(read_image(path, "BGR") - percentiles(pixels)[..., ::-1]).max() <= 0.5 + 1e-6
    assert read_image(path, "RGB", ImageOptions(intensity="0 65535")).max() == 16  # of 255


def test_scaling_is_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(intensity, "_told", set())
    pixels = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000
    paths = [save(tmp_path / f"{i}.png", pixels) for i in range(3)]
    with caplog.at_level(logging.WARNING, logger="isda"):
        for path in paths:
            read_image(path, "RGB")
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1
    assert paths[0] in lines[0]
    assert "INPUT.INTENSITY 'percentile'" in lines[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_constant_image_is_warned_of_once(tmp_path, caplog, dtype):
    path = save(tmp_path / "a.png", np.full((4, 5), 7, dtype))
    with caplog.at_level(logging.WARNING, logger="isda"):
        for _ in range(2):
            read_image(path, "RGB")
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: all pixels are equal, so there is nothing to see: is it the page, the channel, "
        "the file that is meant?"
    ]


def test_a_damaged_png_is_no_black_picture(tmp_path):
    """Detectron2's question for the orientation decodes it, and swallows the error."""
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    save(path, noise)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_image(str(path), "RGB")


def test_too_many_pixels_are_refused_with_the_key_that_allows_them(tmp_path):
    for name in ("a.png", "a.tif"):
        path = save(tmp_path / name, GREY)
        with pytest.raises(ImageError, match="60x40 pixels.*give INPUT.MAX_PIXELS 2400 or more"):
            read_image(path, "RGB", ImageOptions(max_pixels=2399))
        assert read_image(path, "RGB", ImageOptions(max_pixels=2400)).shape == (40, 60, 3)


def test_beyond_the_limit_of_pillow(tmp_path, monkeypatch):
    """Which stays as it is for everybody else in the program."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = save(tmp_path / "a.png", GREY)
    assert read_image(path, "RGB").shape == (40, 60, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_pages_of_other_formats_have_to_be_named(tmp_path):
    path = str(tmp_path / "a.webp")
    pages = [Image.fromarray(np.full((4, 5, 3), value, np.uint8)) for value in (10, 90)]
    pages[0].save(path, save_all=True, append_images=pages[1:], lossless=True)
    with pytest.raises(ImageError, match="has 2 pages, counted from 0: say which"):
        read_image(path, "RGB")
    assert read_image(path, "RGB", ImageOptions(page=1))[0, 0].tolist() == [90, 90, 90]
    with pytest.raises(ImageError, match="has no page 2: it has 2"):
        read_image(path, "RGB", ImageOptions(page=2))


def test_the_preview_in_a_photograph_is_no_page(tmp_path):
    path = str(tmp_path / "a.jpg")
    pages = [Image.fromarray(COLOR), Image.fromarray(COLOR[::4, ::4])]
    pages[0].save(path, format="MPO", save_all=True, append_images=pages[1:])
    assert Image.open(path).format == "MPO"
    assert read_image(path, "RGB").shape == (HEIGHT, WIDTH, 3)


def test_a_channel_of_a_photograph(tmp_path):
    path = save(tmp_path / "a.png", COLOR)
    result = read_image(path, "RGB", ImageOptions(channel=1))
    np.testing.assert_array_equal(result, np.stack([COLOR[..., 1]] * 3, axis=2))
    with pytest.raises(ImageError, match="has no channel 3: it has 3"):
        read_image(path, "RGB", ImageOptions(channel=3))


def test_an_array_of_numpy_is_told_from_damage(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    with pytest.raises(ImageError, match="array of NumPy.*give the array itself to isda.Predictor"):
        read_image(str(tmp_path / "a.npy"), "RGB")


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


def test_deep_arrays_are_scaled_as_files_are(tmp_path):
    for dtype in (np.uint16, np.float32):
        pixels = (GREY * 3.9).astype(dtype)
        path = save(tmp_path / "a.tif", pixels)
        expected = read_image(path, "RGB")
        assert np.abs(expected[..., 0] - percentiles(pixels)).max() <= 0.5 + 1e-6
        np.testing.assert_array_equal(rgb_image(pixels), expected)
        options = ImageOptions(intensity="0 65535")
        np.testing.assert_array_equal(
            rgb_image(pixels, options=options), read_image(path, "RGB", options)
        )


@pytest.mark.parametrize("image", [GREY, GREY[..., None], torch.from_numpy(GREY)[None]])
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
        (np.full((4, 4), np.nan), "no finite numbers"),
        (np.full((4, 4), 1j), "hold numbers"),
        (np.array([["a"]]), "numbers"),
        (5, "type int: give a path"),
    ],
)
def test_what_is_no_image_in_memory_is_an_error(image, message):
    with pytest.raises(ImageError, match=message):
        rgb_image(image)
