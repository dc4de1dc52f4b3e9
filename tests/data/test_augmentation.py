import math

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T

from isda import add_isda_config
from isda.data.augmentation import RandomColor, Rotation90Transform, build_augmentations

SHORT_SIDES = tuple(range(480, 801, 32))


def config(**keys):
    cfg = get_cfg()
    add_isda_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = SHORT_SIDES
    cfg.INPUT.MAX_SIZE_TRAIN = 1333
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute_range"
    cfg.INPUT.CROP.SIZE = [384, 600]
    for key, value in keys.items():
        cfg.merge_from_list([f"INPUT.{key.replace('__', '.')}", value])
    return cfg


def augment(augmentations, height, width):
    """The size after augmentation, and the elementary transforms that were applied."""
    augmented = T.AugInput(np.zeros((height, width), np.uint8))
    transforms = T.AugmentationList(augmentations)(augmented)
    return augmented.image.shape[:2], flatten(transforms)


def flatten(transform):
    if isinstance(transform, T.TransformList):
        return [t for inner in transform.transforms for t in flatten(inner)]
    return [] if isinstance(transform, T.NoOpTransform) else [transform]


def short_side_is_allowed(size, before):
    """Short side from the list, unless the long one is at its limit; aspect ratio kept."""
    short, long = sorted(size)
    ratio = max(before) / min(before)
    assert long <= 1333
    assert abs(long - short * ratio) <= ratio / 2 + 1
    return short in SHORT_SIDES or long == 1333


@pytest.mark.parametrize(("height", "width"), [(427, 640), (640, 480), (100, 130), (300, 1200)])
def test_detr_policy_stays_within_its_sizes(height, width):
    np.random.seed(0)
    augmentations = build_augmentations(config(), True)
    cropped, short_sides, flipped = 0, set(), 0
    for _ in range(60):
        size, transforms = augment(augmentations, height, width)
        flipped += any(isinstance(t, T.HFlipTransform) for t in transforms)
        transforms = [t for t in transforms if not isinstance(t, T.HFlipTransform)]
        before = (height, width)
        if len(transforms) == 3:
            first, crop, _ = transforms
            cropped += 1
            assert min(first.new_h, first.new_w) in (400, 500, 600)
            assert min(384, first.new_h) <= crop.h <= min(600, first.new_h)
            assert min(384, first.new_w) <= crop.w <= min(600, first.new_w)
            before = (crop.h, crop.w)
        assert short_side_is_allowed(size, before)
        short_sides.add(min(size))
    assert 15 <= cropped <= 45  # probability 0.5; beyond four standard deviations
    assert 15 <= flipped <= 45
    assert len(short_sides) > 4


def test_crop_probability_and_switch():
    always = build_augmentations(config(CROP__PROBABILITY=1.0), True)
    never = build_augmentations(config(CROP__ENABLED=False), True)
    for _ in range(10):
        assert any(isinstance(t, T.CropTransform) for t in augment(always, 400, 500)[1])
        assert not any(isinstance(t, T.CropTransform) for t in augment(never, 400, 500)[1])


@pytest.mark.parametrize(("height", "width"), [(427, 640), (640, 480)])
def test_a_relative_crop_is_of_just_that_share(height, width):
    """ISTR's recipe (arXiv 2105.00637, section 4.1)."""
    keys = {"CROP__TYPE": "relative", "CROP__SIZE": [0.7, 0.7], "CROP__PROBABILITY": 1.0}
    augmentations = build_augmentations(config(RANDOM_FLIP="none", **keys), True)
    for _ in range(10):
        size, (first, crop, _) = augment(augmentations, height, width)
        assert min(first.new_h, first.new_w) in (400, 500, 600)
        assert (crop.h, crop.w) == (int(0.7 * first.new_h + 0.5), int(0.7 * first.new_w + 0.5))
        assert short_side_is_allowed(size, (crop.h, crop.w))


def test_fixed_ignores_the_crop():
    augmentations = build_augmentations(config(DATASET_MAPPER_NAME="fixed"), True)
    for _ in range(10):
        size, transforms = augment(augmentations, 400, 500)
        assert short_side_is_allowed(size, (400, 500))
        assert not any(isinstance(t, T.CropTransform) for t in transforms)


@pytest.mark.parametrize(("flip", "transform"), [("vertical", T.VFlipTransform), ("none", None)])
def test_random_flip_is_read(flip, transform):
    augmentations = build_augmentations(config(RANDOM_FLIP=flip), True)
    seen = {type(t) for _ in range(20) for t in augment(augmentations, 60, 80)[1]}
    flips = seen & {T.HFlipTransform, T.VFlipTransform}
    assert flips == ({transform} if transform else set())


@pytest.mark.parametrize(("height", "width"), [(427, 640), (64, 64)])
def test_large_scale_jitter_fills_the_square_or_stays_smaller(height, width):
    np.random.seed(0)
    keys = {"DATASET_MAPPER_NAME": "isda_lsj", "IMAGE_SIZE": 256, "MIN_SCALE": 0.1}
    augmentations = build_augmentations(config(**keys), True)
    areas, squares = [], 0
    for _ in range(60):
        size, transforms = augment(augmentations, height, width)
        resize = next(t for t in transforms if isinstance(t, T.ResizeTransform))
        assert size == (min(resize.new_h, 256), min(resize.new_w, 256))  # no padding in the image
        assert 0.1 * 256 - 1 <= max(resize.new_h, resize.new_w) <= 2 * 256 + 1
        squares += size == (256, 256)
        areas.append(math.prod(size))
    assert squares > 10
    assert min(areas) < 0.2 * 256**2


@pytest.mark.parametrize(
    "keys", [{}, {"CROP__TYPE": "relative", "CROP__SIZE": [0.3, 0.3]}, {"IMAGE_SIZE": 128}]
)
@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (2, 20000), (20000, 2), (1, 1)])
def test_the_thinnest_images_keep_a_pixel_per_side(keys, size):
    np.random.seed(0)
    name = "isda_lsj" if "IMAGE_SIZE" in keys else "isda"
    cfg = config(DATASET_MAPPER_NAME=name, MIN_SIZE_TRAIN=(96,), MAX_SIZE_TRAIN=128, **keys)
    for is_train in (True, False):
        for _ in range(12):
            augmented, transforms = augment(build_augmentations(cfg, is_train), *size)
            assert min(augmented) >= 1 and max(augmented) <= 1333
            # Nothing in between is larger than a usual photograph either.
            sides = [(t.new_h, t.new_w) for t in transforms if isinstance(t, T.ResizeTransform)]
            assert all(height * width < 10_000_000 for height, width in sides)


def test_test_time_only_resizes():
    for name in ("isda", "isda_lsj", "fixed"):
        cfg = config(DATASET_MAPPER_NAME=name, COLOR_AUG=True, RANDOM_ROTATE90=True)
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 90, 120
        size, transforms = augment(build_augmentations(cfg, False), 60, 100)
        assert size == (72, 120)
        assert [type(t) for t in transforms] == [T.ResizeTransform]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"DATASET_MAPPER_NAME": "detr"}, ["DATASET_MAPPER_NAME", "isda, isda_lsj, fixed", "detr"]),
        ({"RANDOM_FLIP": "both"}, ["RANDOM_FLIP", "horizontal", "both"]),
        ({"CROP__PROBABILITY": 1.5}, ["CROP.PROBABILITY", "1.5"]),
        ({"CROP__SIZE": [600, 384]}, ["CROP.SIZE", "[600, 384]"]),
        ({"CROP__TYPE": "relative"}, ["CROP.SIZE", "CROP.TYPE relative", "[384, 600]"]),
        ({"MIN_SIZE_TRAIN_SAMPLING": "range"}, ["MIN_SIZE_TRAIN", "range"]),
        ({"MIN_SIZE_TRAIN_SAMPLING": "any"}, ["MIN_SIZE_TRAIN_SAMPLING", "any"]),
        ({"DATASET_MAPPER_NAME": "isda_lsj", "MIN_SCALE": 3.0}, ["MIN_SCALE", "3.0"]),
        ({"COLOR_AUG": True, "FORMAT": "L"}, ["COLOR_AUG", "FORMAT"]),
    ],
)
def test_a_wrong_value_is_named(keys, words):
    with pytest.raises(ValueError, match="INPUT") as error:
        build_augmentations(config(**keys), True)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_moves_points_with_their_pixels(turns):
    height, width = 4, 7
    transform = Rotation90Transform(height, width, turns)
    image = np.arange(height * width).reshape(height, width)
    turned = transform.apply_image(image)
    for y in range(height):
        for x in range(width):
            ((new_x, new_y),) = transform.apply_coords(np.array([[x + 0.5, y + 0.5]]))
            assert turned[int(new_y), int(new_x)] == image[y, x]
    assert (transform.inverse().apply_image(turned) == image).all()
    points = np.random.rand(5, 2)
    np.testing.assert_allclose(
        transform.inverse().apply_coords(transform.apply_coords(points)), points
    )


def test_all_four_turns_occur():
    augmentations = build_augmentations(config(RANDOM_ROTATE90=True, RANDOM_FLIP="none"), True)
    np.random.seed(0)
    turns = {
        t.turns
        for _ in range(40)
        for t in augment(augmentations, 60, 80)[1]
        if isinstance(t, Rotation90Transform)
    }
    assert turns == {1, 2, 3}


def test_color_is_brightness_then_contrast_then_saturation():
    image = np.random.default_rng(0).uniform(60, 120, size=(6, 5, 3)).astype(np.float32)
    np.random.seed(3)
    result = RandomColor("RGB").get_transform(image).apply_image(image)
    np.random.seed(3)
    brightness, contrast, saturation = np.random.uniform(0.7, 1.3, size=3)
    expected = image * brightness
    expected = contrast * expected + (1 - contrast) * expected.mean()
    grey = (expected * [0.299, 0.587, 0.114]).sum(axis=2, keepdims=True)
    expected = saturation * expected + (1 - saturation) * grey
    np.testing.assert_allclose(result, expected, rtol=1e-4)

    np.random.seed(3)
    swapped = image[..., ::-1]
    swapped = RandomColor("BGR").get_transform(swapped).apply_image(swapped)
    np.testing.assert_allclose(swapped[..., ::-1], result, rtol=1e-4)


def test_color_keeps_the_geometry_and_the_type():
    augmentations = build_augmentations(config(COLOR_AUG=True, RANDOM_FLIP="none"), True)
    augmented = T.AugInput(np.full((50, 60, 3), 200, np.uint8))
    transforms = T.AugmentationList(augmentations[:1])(augmented)
    assert augmented.image.dtype == np.uint8
    mask = np.random.rand(50, 60) > 0.5
    assert (transforms.apply_segmentation(mask) == mask).all()
