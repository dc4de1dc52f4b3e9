import numpy as np
import pytest

from isda.data.errors import ImageError
from isda.data.images import check_intensity, to_8_bits

RAMP = np.arange(1001, dtype=np.uint16).reshape(7, 143)  # the q-th percentile is 10 q


@pytest.mark.parametrize(
    ("rule", "black", "white"),
    [
        ("percentile", 10, 998),
        ("percentile 5 50", 50, 500),
        ("percentile 0,100", 0, 1000),
        ("range", 0, 1000),
        ("100 300", 100, 300),
        ("-1000, 2000", -1000, 2000),
    ],
)
def test_the_rule_says_what_is_black_and_white(rule, black, white):
    assert check_intensity(rule)
    result = to_8_bits(RAMP, "a", rule)
    expected = np.clip((RAMP.astype(float) - black) / (white - black) * 255, 0, 255)
    assert result.dtype == np.uint8
    assert np.abs(result - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    "rule", ["", "max", "range 1 2", "percentile 5", "percentile 9 5", "percentile 0 101", "5 5"]
)
def test_other_rules_are_refused(rule):
    assert not check_intensity(rule)
    with pytest.raises(ValueError, match="INPUT.INTENSITY must be 'percentile'"):
        to_8_bits(RAMP, "a", rule)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int8, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (31, 17), (12, 9, 3)])
def test_percentiles_are_numpys(dtype, shape):
    random = np.random.default_rng(sum(shape))
    largest = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1.02
    low = np.iinfo(dtype).min if np.dtype(dtype).kind in "iu" else -0.3
    pixels = random.uniform(low, largest, shape).astype(dtype)
    pixels.flat[0] = largest
    low, high = np.percentile(pixels.astype(np.float64), [1, 99.8])
    wanted = np.clip((pixels.astype(float) - low) / max(high - low, 1e-9) * 255, 0, 255)
    assert np.abs(to_8_bits(pixels, "a", "percentile") - wanted).max() <= 0.5 + 1e-3


def test_a_hot_pixel_does_not_darken_the_others():
    hot = RAMP.copy()
    hot[3, 3] = 65535
    cold = to_8_bits(RAMP, "a", "percentile").astype(int)
    assert np.abs(to_8_bits(hot, "a", "percentile") - cold)[hot == RAMP].max() <= 1


def test_offsets_and_factors_change_nothing():
    """Cameras differ in both."""
    expected = to_8_bits(RAMP, "a", "percentile").astype(int)
    for other in (RAMP * 60 + 30000 // 8, RAMP / 1e5 - 3, RAMP.astype(np.float32) * 2.0**60):
        assert np.abs(to_8_bits(other, "a", "percentile") - expected).max() <= 1


def test_few_bright_pixels_on_black_stay_visible():
    """Both percentiles are 0 here."""
    pixels = np.zeros((100, 100), np.uint16)
    pixels[50, 50] = 700
    result = to_8_bits(pixels, "a", "percentile")
    assert result[50, 50] == 255
    assert result.sum() == 255


@pytest.mark.parametrize("rule", ["percentile", "range"])
def test_a_constant_image_is_black(rule):
    assert not to_8_bits(np.full((3, 4), 30000, np.uint16), "a", rule).any()


def test_8_bits_and_masks_stay_as_they_are():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert to_8_bits(pixels, "a", "range") is pixels
    assert to_8_bits(pixels > 5, "a", "percentile").tolist() == (255 * (pixels > 5)).tolist()


def test_half_precision_does_not_overflow():
    pixels = np.array([[0, 30000, 65504]], np.float16)
    assert to_8_bits(pixels, "a", "range").tolist() == [[0, 117, 255]]


@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_what_is_no_number_is_an_error(worst):
    pixels = np.zeros((4, 4), np.float32)
    pixels[1, 2] = worst
    with pytest.raises(ImageError, match="a.tif: has pixels that are no finite numbers"):
        to_8_bits(pixels, "a.tif", "percentile")


def test_complex_numbers_are_an_error():
    with pytest.raises(ImageError, match="a.tif: has pixels of type complex64"):
        to_8_bits(np.zeros((4, 4), np.complex64), "a.tif", "percentile")
