import io
import logging

import numpy as np
import pytest
import tifffile
from PIL import Image

from isda.data.errors import ImageError
from isda.data.images import (
    ImageOptions,
    count_pages,
    first_plane,
    is_turned,
    read_image,
    read_numbers,
)

HEIGHT, WIDTH = 40, 60
RAMP = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
COLOR = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)
WHOLE = ImageOptions(intensity="range")


def grey(path, options=WHOLE):
    result = read_image(str(path), "RGB", options)
    assert (result[..., 0] == result[..., 1]).all() and (result[..., 0] == result[..., 2]).all()
    return result[..., 0]


def write(path, pixels, **options):
    tifffile.imwrite(path, pixels, **options)
    return path


def written_by_pillow(path, pixels, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    "pixels",
    [
        (RAMP * 1.02).astype(np.float32),
        RAMP * 1e9 - 5e8,
        RAMP.astype(np.float16),
        np.round(RAMP * 255 - 128).astype(np.int8),
        np.round(RAMP * 6000 - 3000).astype(np.int16),
        np.round(RAMP * 70000).astype(np.int32),
        np.round(RAMP * 4095).astype(np.uint16),
        np.round(RAMP * 1e9).astype(np.uint32),
        np.round(RAMP * 1e9).astype(np.int64),
    ],
    ids=lambda pixels: str(pixels.dtype),
)
def test_numbers_of_every_type_become_grey(tmp_path, pixels):
    result = grey(write(tmp_path / "a.tif", pixels))
    assert np.abs(result - RAMP * 255).max() <= 1.1
    numbers = read_numbers(str(tmp_path / "a.tif"))
    assert numbers.dtype == pixels.dtype
    np.testing.assert_array_equal(numbers, pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colours_keep_their_place(tmp_path, dtype, planar, compression):
    """12 bits of 16, contiguous or plane by plane; Pillow leaves 4 bits, or mixes the planes."""
    largest = {np.uint8: 255, np.uint16: 4095, np.float32: 1}[dtype]
    pixels = (COLOR * largest).astype(dtype)
    stored = pixels.transpose(2, 0, 1) if planar else pixels
    options = {"photometric": "rgb", "planarconfig": "separate" if planar else "contig"}
    path = write(tmp_path / "a.tif", stored, compression=compression, **options)
    assert np.abs(read_image(str(path), "RGB", WHOLE) - COLOR * 255).max() <= 1.1
    blue = grey(path, ImageOptions(intensity="range", channel=2))
    assert np.abs(blue - COLOR[..., 2] * 255).max() <= 1.1


def test_three_planes_without_a_word_are_colours(tmp_path):
    """As tifffile itself says them to be."""
    pixels = (COLOR * 40000).astype(np.uint16).transpose(2, 0, 1)
    path = write(tmp_path / "a.tif", pixels)
    assert np.abs(read_image(str(path), "RGB", WHOLE) - COLOR * 255).max() <= 1.1


def test_transparency_is_ignored(tmp_path):
    pixels = (np.dstack([COLOR, RAMP]) * 255).astype(np.uint8)
    path = write(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(str(path), "RGB"), pixels[..., :3])
    grey_and_alpha = pixels[..., [0, 3]]
    options = {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": 1}
    path = write(tmp_path / "b.tif", grey_and_alpha, **options)
    np.testing.assert_array_equal(grey(path), pixels[..., 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_where_0_is_white_numbers_are_inverted(tmp_path, dtype):
    largest = np.iinfo(dtype).max
    pixels = np.round(RAMP * largest).astype(dtype)
    path = write(tmp_path / "a.tif", pixels, photometric="miniswhite")
    result = grey(path, ImageOptions(intensity="0 65535"))
    assert np.abs(result - (1 - RAMP) * 255).max() <= 1.1
    np.testing.assert_array_equal(read_numbers(str(path)), pixels)  # labels have no colour


MASK = RAMP > 0.9


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_masks_of_tifffile_are_white_where_they_are_true(tmp_path, compression):
    """It calls 0 white, and writes 0 for False; so do napari and scikit-image."""
    path = write(tmp_path / "a.tif", MASK, compression=compression)
    assert tifffile.TiffFile(path).pages[0].photometric.name == "MINISWHITE"
    np.testing.assert_array_equal(grey(path), MASK * 255)
    np.testing.assert_array_equal(read_numbers(str(path)) > 0, MASK)


@pytest.mark.parametrize("compression", [None, "group4", "tiff_lzw"])
def test_scans_of_1_bit_are_as_they_look(tmp_path, compression):
    options = {"compression": compression} if compression else {}
    path = written_by_pillow(tmp_path / "a.tif", MASK, **options)
    np.testing.assert_array_equal(grey(path), MASK * 255)
    np.testing.assert_array_equal(read_numbers(str(path)) > 0, MASK)
    # As fax machines write it.
    path = write(tmp_path / "b.tif", ~MASK, photometric="miniswhite", software="scanner")
    np.testing.assert_array_equal(grey(path), MASK * 255)


def test_a_palette_is_colours_in_an_image_and_numbers_in_a_mask(tmp_path):
    image = Image.fromarray((COLOR * 255).astype(np.uint8)).quantize(16)
    path = written_by_pillow(tmp_path / "a.tif", image)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(read_image(str(path), "RGB") - expected).max() <= 1
    np.testing.assert_array_equal(read_numbers(str(path)), np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "F", "CMYK", "YCbCr"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_what_pillow_writes(tmp_path, mode, compression):
    """Whether tifffile can decode it alone, or lacks imagecodecs."""
    values = {"I;16": (RAMP * 65535).astype(np.uint16), "F": RAMP.astype(np.float32)}
    image = Image.fromarray(values.get(mode, (COLOR * 255).astype(np.uint8)))
    image = image if mode in values else image.convert(mode)
    options = {"compression": compression} if compression else {}
    path = written_by_pillow(tmp_path / "a.tif", image, **options)
    result = read_image(str(path), "RGB", WHOLE)
    if mode in values:
        assert np.abs(result - RAMP[..., None] * 255).max() <= 1.1
    else:
        expected = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(result - expected).max() <= (mode == "YCbCr")  # rounded elsewhere


def test_slides_compressed_as_jpeg(tmp_path):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([x * 4, y * 6, 255 - x * 4], axis=2).astype(np.uint8)
    image = Image.fromarray(pixels)
    path = written_by_pillow(tmp_path / "a.tif", image, compression="jpeg", quality=95)
    assert np.abs(read_image(str(path), "RGB").astype(int) - pixels).mean() < 4


def test_16_bit_colours_compressed_by_lzw(tmp_path):
    """Which neither tifffile alone nor Pillow reads rightly."""
    import cv2

    pixels = (COLOR * 4095).astype(np.uint16)
    path = tmp_path / "a.tif"
    lzw = 5
    cv2.imwrite(str(path), pixels[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, lzw])
    assert tifffile.TiffFile(path).pages[0].compression == lzw
    assert np.abs(read_image(str(path), "RGB", WHOLE) - COLOR * 255).max() <= 1.1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(tmp_path, orientation):
    """As Pillow does it, an independent reading of the standard."""
    pixels = (COLOR * 255).astype(np.uint8)
    path = tmp_path / "a.tif"
    write(path, pixels, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    tags = Image.Exif()
    tags[274] = orientation
    written_by_pillow(tmp_path / "b.png", pixels, exif=tags)
    expected = read_image(str(tmp_path / "b.png"), "RGB")
    np.testing.assert_array_equal(read_image(str(path), "RGB"), expected)
    assert is_turned(str(path)) == (orientation > 1) == is_turned(str(tmp_path / "b.png"))
    assert is_turned(str(path), aside=True) == (orientation >= 5)


def stack(count, dtype=np.uint16):
    """Planes of which number i has values from 1000 i on."""
    return np.stack([(RAMP * 900 + 1000 * i) for i in range(count)]).astype(dtype)


VALUES = ImageOptions(intensity="0 65535")


def plane(path, **choice):
    """The thousands of a plane's numbers: which one it is."""
    numbers = read_numbers(str(path), ImageOptions(**choice))
    assert numbers.shape == (HEIGHT, WIDTH)
    assert read_image(str(path), "L", ImageOptions(**choice)).shape == (HEIGHT, WIDTH, 1)
    (thousands,) = np.unique(numbers // 1000)
    return int(thousands)


def test_the_pages_of_a_stack_are_named_and_chosen(tmp_path):
    path = write(tmp_path / "a.tif", stack(5), photometric="minisblack")
    assert count_pages(str(path)) == 5
    with pytest.raises(ImageError) as error:
        read_image(str(path), "RGB")
    assert str(error.value) == (
        f"{path}: has 5 pages, pages 0 to 4 (60x40 uint16): say which one is meant, by --page N "
        "or INPUT.PAGE N"
    )
    assert [plane(path, page=page) for page in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ImageError, match="has no page 5: it has pages 0 to 4.*counted from 0"):
        read_image(str(path), "RGB", ImageOptions(page=5))


def test_a_thumbnail_before_the_image(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write((COLOR[::4, ::4] * 255).astype(np.uint8), photometric="rgb")
        file.write(stack(1)[0], photometric="minisblack")
    assert count_pages(str(path)) == 1
    with pytest.raises(ImageError) as error:
        read_image(str(path), "RGB")
    assert str(error.value) == (
        f"{path}: has 2 pages of different kinds, page 0 (15x10 uint8, 3 channels), page 1 (60x40 "
        "uint16): say which one is meant, by --page N or INPUT.PAGE N"
    )
    assert plane(path, page=1) == 0
    with pytest.raises(ImageError, match="different kinds"):
        first_plane(str(path))


@pytest.mark.parametrize("form", ["imagej", "ome"])
def test_planes_and_channels_are_told_apart(tmp_path, form):
    path = tmp_path / f"a.{form}.tif"
    pixels = stack(6).reshape(2, 3, HEIGHT, WIDTH)
    metadata = {"axes": "ZCYX"}
    if form == "ome":
        metadata["Channel"] = {"Name": ["DAPI", "GFP", "bright field"]}
    write(path, pixels, **{form: True}, metadata=metadata, photometric="minisblack")
    assert count_pages(str(path)) == 2
    with pytest.raises(ImageError, match=r"has 2 pages, .*3 channels; Z 0 to Z 1"):
        read_image(str(path), "RGB")
    names = r" \(0: DAPI, 1: GFP, 2: bright field\)" if form == "ome" else ""
    with pytest.raises(ImageError, match=f"has 3 channels{names}: say which.*--channel N"):
        read_image(str(path), "RGB", ImageOptions(page=1))
    with pytest.raises(ImageError, match=f"has no channel 3: it has 3{names}"):
        read_image(str(path), "RGB", ImageOptions(page=1, channel=3))
    found = [[plane(path, page=z, channel=c) for c in range(3)] for z in range(2)]
    assert found == [[0, 1, 2], [3, 4, 5]]
    assert first_plane(str(path)).shape == (HEIGHT, WIDTH)


def test_moments_depths_and_channels_in_any_order(tmp_path):
    path = write(
        tmp_path / "a.ome.tif",
        stack(12).reshape(2, 2, 3, HEIGHT, WIDTH),
        ome=True,
        metadata={"axes": "TCZYX"},
        photometric="minisblack",
    )
    assert count_pages(str(path)) == 6
    found = [[plane(path, page=page, channel=c) for c in range(2)] for page in range(6)]
    assert found == [[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]]


OME = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{own}">
<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="60"
SizeY="40" SizeZ="1" SizeC="2" SizeT="1"><Channel ID="Channel:0:0"/><Channel ID="Channel:0:1"/>
{planes}</Pixels></Image></OME>"""
PLANE = """<TiffData FirstC="{c}" FirstZ="0" FirstT="0" IFD="0" PlaneCount="1">
<UUID FileName="{c}.ome.tif">urn:uuid:{c}</UUID></TiffData>"""


@pytest.mark.filterwarnings("error")
def test_channels_in_files_of_their_own(tmp_path):
    """As OME-TIFF allows; each of the files describes them all."""
    planes = "".join(PLANE.format(c=c) for c in range(2))
    for c, pixels in enumerate(stack(2)):
        description = OME.format(own=c, planes=planes)
        write(tmp_path / f"{c}.ome.tif", pixels, description=description, metadata=None)
    for c in range(2):
        assert [plane(tmp_path / f"{c}.ome.tif", channel=n) for n in range(2)] == [0, 1]


@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("last", [False, True])
def test_channels_are_named_and_chosen(tmp_path, channels, last):
    pixels = stack(channels)
    path = tmp_path / "a.tif"
    if last:
        options = {"photometric": "minisblack"} if channels == 4 else {}
        write(path, np.moveaxis(pixels, 0, 2), **options)
    else:
        write(path, pixels, metadata={"axes": "CYX"}, imagej=True)
    with pytest.raises(ImageError, match=f"has {channels} channels: say which one is meant"):
        read_image(str(path), "RGB")
    assert [plane(path, channel=c) for c in range(channels)] == list(range(channels))


def test_more_than_red_green_and_blue_is_told(tmp_path, caplog):
    pixels = (np.dstack([COLOR, RAMP]) * 255).astype(np.uint8)
    path = write(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    with caplog.at_level(logging.WARNING, logger="isda"):
        np.testing.assert_array_equal(read_image(str(path), "RGB"), pixels[..., :3])
    assert "has 4 channels, of which the first three are red, green and blue" in caplog.text
    np.testing.assert_array_equal(grey(path, ImageOptions(channel=3)), pixels[..., 3])


def test_the_smaller_levels_of_a_slide_are_no_pages(tmp_path):
    path = tmp_path / "a.ome.tif"
    pixels = (COLOR * 255).astype(np.uint8)
    with tifffile.TiffWriter(path, ome=True) as file:
        options = {"photometric": "rgb", "tile": (16, 16), "metadata": {"axes": "YXS"}}
        file.write(pixels, subifds=1, **options)
        file.write(pixels[::2, ::2], subfiletype=1, photometric="rgb", tile=(16, 16))
    np.testing.assert_array_equal(read_image(str(path), "RGB"), pixels)


def test_a_stack_of_which_only_the_first_page_is_described(tmp_path):
    """ImageJ writes stacks above 4 GB so."""
    pixels = stack(3)
    described = b"ImageJ=1.54\nimages=3\nslices=3\n"
    file = io.BytesIO()
    tifffile.imwrite(file, pixels[0], description=described, metadata=None)
    path = tmp_path / "a.tif"
    path.write_bytes(file.getvalue() + pixels[1:].tobytes())
    assert count_pages(str(path)) == 3
    assert [plane(path, page=page) for page in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("spoil", ["half", "header"])
def test_damage_is_named(tmp_path, spoil):
    path = write(tmp_path / "a.tif", np.random.default_rng(0).random((90, 90)), compression="zlib")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 if spoil == "half" else 20])
    with pytest.raises(ImageError, match="cannot be decoded.*fetch it again"):
        read_image(str(path), "RGB")


def test_a_codec_that_is_missing_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", stack(1)[0], compression="zlib")

    def missing(*_, **__):
        raise ValueError("<COMPRESSION.JPEGXL: 50002> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", missing)
    monkeypatch.setattr("isda.data.images.tiff._by_pillow", lambda *_: None)
    with pytest.raises(ImageError, match="is compressed as .*pip install imagecodecs"):
        read_image(str(path), "RGB")
