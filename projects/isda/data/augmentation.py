"""The augmentation policies of ``INPUT.DATASET_MAPPER_NAME``, made of Detectron2's transforms."""

from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from isda.errors import ConfigError

__all__ = [
    "RandomColor",
    "RandomCrop",
    "RandomRotation90",
    "ResizeScale",
    "ResizeShortestEdge",
    "Rotation90Transform",
    "build_augmentations",
]

# Of the longer side to the shorter: what is thinner is not enlarged where no size bounds it.
_LONGEST = 16


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """What the config's mapper does to an image; at test time Detectron2's resize.

    Raises:
        ConfigError: an unknown ``INPUT.DATASET_MAPPER_NAME``, or values that make no policy.
    """
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in _RESIZES:
        raise ConfigError(
            f"INPUT.DATASET_MAPPER_NAME must be one of {', '.join(_RESIZES)}, got {name!r}"
        )
    if not is_train:
        return [ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    return [*_color(cfg), *_flips(cfg), *_RESIZES[name](cfg)]


def _detr_resize(cfg: CfgNode) -> list[T.Augmentation]:
    """DETR's (arXiv 2005.12872, section 4): now and then crop from a middling size first."""
    resize = _resize_shortest_edge(cfg)
    crop = cfg.INPUT.CROP
    if not crop.ENABLED:
        return [resize]
    if not 0 <= crop.PROBABILITY <= 1:
        raise ConfigError(f"INPUT.CROP.PROBABILITY must be within 0 and 1, got {crop.PROBABILITY}")
    if crop.TYPE == "absolute_range" and crop.SIZE[0] > crop.SIZE[1]:
        raise ConfigError(
            "INPUT.CROP.SIZE must be [smallest, largest] for INPUT.CROP.TYPE absolute_range, got "
            f"{list(crop.SIZE)}"
        )
    if crop.TYPE.startswith("relative") and not all(0 < share <= 1 for share in crop.SIZE):
        raise ConfigError(
            "INPUT.CROP.SIZE must be two shares of the image, above 0 and at most 1, for "
            f"INPUT.CROP.TYPE {crop.TYPE}, got {list(crop.SIZE)}"
        )
    sizes = tuple(crop.RESIZE_BEFORE)
    before = ResizeShortestEdge(sizes, _LONGEST * max(sizes), "choice")
    cut = T.AugmentationList([before, RandomCrop(crop.TYPE, crop.SIZE)])
    return [T.RandomApply(cut, crop.PROBABILITY), resize]


def _large_scale_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    """Large-scale jitter (arXiv 2012.07177): scale to a share of a square, crop to the square.

    What is smaller than the square stays so instead of being padded to it: padding in the image
    would count as its content, while the model masks what it pads itself.
    """
    size, low, high = cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE
    if size < 1 or not 0 < low <= high:
        raise ConfigError(
            "large-scale jitter needs INPUT.IMAGE_SIZE >= 1 and 0 < INPUT.MIN_SCALE <= "
            f"INPUT.MAX_SCALE, got {size}, {low} and {high}"
        )
    return [ResizeScale(low, high, size, size), T.FixedSizeCrop((size, size), pad=False)]


def _fixed_resize(cfg: CfgNode) -> list[T.Augmentation]:
    return [_resize_shortest_edge(cfg)]


_RESIZES = {"isda": _detr_resize, "isda_lsj": _large_scale_jitter, "fixed": _fixed_resize}


def _resize_shortest_edge(cfg: CfgNode) -> T.Augmentation:
    sizes, style = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if style not in ("choice", "range"):
        raise ConfigError(f"INPUT.MIN_SIZE_TRAIN_SAMPLING must be choice or range, got {style!r}")
    if not sizes or (style == "range" and len(sizes) != 2):
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN {tuple(sizes)} does not go with "
            f"INPUT.MIN_SIZE_TRAIN_SAMPLING {style}: range takes (smallest, largest), choice any"
        )
    return ResizeShortestEdge(tuple(sizes), cfg.INPUT.MAX_SIZE_TRAIN, style)


def _flips(cfg: CfgNode) -> list[T.Augmentation]:
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("none", "horizontal", "vertical"):
        raise ConfigError(f"INPUT.RANDOM_FLIP must be none, horizontal or vertical, got {flip!r}")
    flips = []
    if flip != "none":
        flips.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    if cfg.INPUT.RANDOM_ROTATE90:
        flips.append(RandomRotation90())
    return flips


def _color(cfg: CfgNode) -> list[T.Augmentation]:
    if not cfg.INPUT.COLOR_AUG:
        return []
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise ConfigError(f"INPUT.COLOR_AUG needs INPUT.FORMAT RGB or BGR, got {cfg.INPUT.FORMAT}")
    return [RandomColor(cfg.INPUT.FORMAT)]


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's, but no side of an image, however thin it is, comes out without a pixel."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return _with_a_pixel(super().get_transform(image))


class ResizeScale(T.ResizeScale):
    """Detectron2's, but no side of an image, however thin it is, comes out without a pixel."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return _with_a_pixel(super().get_transform(image))


class RandomCrop(T.RandomCrop):
    """Detectron2's, but no side of an image, however thin it is, comes out without a pixel."""

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = super().get_crop_size(image_size)
        return max(height, 1), max(width, 1)


def _with_a_pixel(transform: T.Transform) -> T.Transform:
    if isinstance(transform, T.ResizeTransform):
        transform.new_h, transform.new_w = max(transform.new_h, 1), max(transform.new_w, 1)
    return transform


class RandomColor(T.Augmentation):
    """Brightness, contrast and saturation, each by a random factor of ``intensity``."""

    def __init__(self, format: str = "RGB", intensity: Sequence[float] = (0.7, 1.3)):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        brightness, contrast, saturation = np.random.uniform(*self.intensity, size=3)
        weights = [0.299, 0.587, 0.114][:: 1 if self.format == "RGB" else -1]
        # All three are linear, so one pass does them; what they blend with is taken from the
        # image before.
        grey = image.dot(weights)[..., None]  # (height, width, 1)
        source = saturation * (1 - contrast) * image.mean() + (1 - saturation) * (
            contrast * grey + (1 - contrast) * image.mean()
        )
        return T.BlendTransform(
            src_image=(brightness * source).astype(np.float32),
            src_weight=1.0,
            dst_weight=brightness * contrast * saturation,
        )


class RandomRotation90(T.Augmentation):
    """Turn by 0, 90, 180 or 270 degrees with equal chances, exactly."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        turns = int(np.random.randint(4))
        return Rotation90Transform(*image.shape[:2], turns) if turns else T.NoOpTransform()


class Rotation90Transform(T.Transform):
    """Counter-clockwise quarter turns of an image of ``h`` by ``w`` pixels."""

    def __init__(self, h: int, w: int, turns: int):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.rot90(img, self.turns)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """``(n, 2)`` points (x, y), with (0, 0) the outer corner of the first pixel."""
        height, width = self.h, self.w
        for _ in range(self.turns % 4):
            coords = np.stack([coords[:, 1], width - coords[:, 0]], axis=1)
            height, width = width, height
        return coords

    def inverse(self) -> T.Transform:
        size = (self.w, self.h) if self.turns % 2 else (self.h, self.w)
        return Rotation90Transform(*size, -self.turns % 4)
