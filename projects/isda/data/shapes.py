"""Generated instance segmentation: overlapping, touching and identical shapes with exact masks.

Only an instance's outline tells its class, and only its position tells it from its identical
copies, so the data set asks of a small model what real images ask of a large one. It is
deterministic: image ``index`` depends on the parameters and the index alone.
"""

import dataclasses
import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock

from isda.files import write_bytes, write_text

logger = logging.getLogger(__name__)

# Part of every generated folder's stamp: raise it with any change that alters a pixel or a mask.
GENERATOR_VERSION = 1
SHAPE_NAMES = ("circle", "square", "triangle", "star", "ring")

_BACKGROUND = -1
_PLACEMENT_TRIES = 12
_COPY_SHARE = 0.3
_PLACEMENTS = {"free": 0.4, "overlapping": 0.35, "touching": 0.25}
# A shape that is covered further than this is no fair question.
_MIN_VISIBLE_SHARE = 0.4
_MIN_INSIDE_SHARE = 0.6
_MIN_CONTRAST = 70.0
# Wherever it lies, each shape of this size has a pixel.
_MIN_RADIUS = 1.5


@dataclass(frozen=True)
class ShapesParameters:
    """What a generated data set looks like; with an index it determines an image.

    Args:
        size: (height, width) in pixels, 32 at least.
        classes: names out of ``SHAPE_NAMES``; category ids count from 1 in this order.
        instances: fewest and most instances that are tried per image. Fewer result where the
            image has no room left.
        diameters: smallest and largest diameter of the circumscribed circle, as a share of the
            shorter side of the image.
        crowd_share: share of the images with a crowd (``iscrowd`` 1): many tiny shapes of one
            class under a single mask.
        empty_share: share of the images without any annotation.
        seed: of the whole data set.

    Raises:
        ValueError: a value out of range.
    """

    size: tuple[int, int] = (128, 128)
    classes: tuple[str, ...] = ("circle", "square", "triangle")
    instances: tuple[int, int] = (2, 8)
    diameters: tuple[float, float] = (0.14, 0.44)
    crowd_share: float = 0.03
    empty_share: float = 0.02
    seed: int = 0

    def __post_init__(self):
        unknown = [name for name in self.classes if name not in SHAPE_NAMES]
        if unknown or not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"classes must be different names out of {', '.join(SHAPE_NAMES)}, "
                f"got {', '.join(self.classes) or 'none'}"
            )
        if min(self.size) < 32:
            raise ValueError(f"size must be at least 32 x 32 pixels, got {self.size}")
        if not 1 <= self.instances[0] <= self.instances[1]:
            raise ValueError(f"instances must be 1 <= fewest <= most, got {self.instances}")
        smallest, largest = self.diameters
        if smallest * min(self.size) < 2 * _MIN_RADIUS or not smallest <= largest <= 1:
            raise ValueError(
                "diameters must be smallest <= largest <= 1 of the shorter side, and "
                f"{2 * _MIN_RADIUS:g} pixels at least, got {self.diameters}"
            )
        shares = (self.crowd_share, self.empty_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"crowd_share and empty_share must add up to [0, 1], got {shares}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class PlacedShape:
    """One shape as it was painted: later ones cover earlier ones.

    A pixel belongs to it if the pixel's centre, taken as integer coordinates, lies within.
    """

    class_index: int
    center: tuple[int, int]  # (x, y) in pixels
    radius: float  # of the circumscribed circle, in pixels
    angle: float  # radians
    instance: int  # index into ShapesImage.masks; a crowd's shapes share theirs


@dataclass(frozen=True)
class ShapesImage:
    """A generated image with the visible part of every instance."""

    image: np.ndarray  # (H, W, 3) uint8, BGR
    masks: np.ndarray  # (G, H, W) bool, disjoint
    class_indices: tuple[int, ...]
    is_crowd: tuple[bool, ...]
    shapes: tuple[PlacedShape, ...]  # in painting order


@dataclass(frozen=True)
class _Sprite:
    """A textured shape that can be pasted anywhere, so that copies agree to the pixel."""

    class_index: int
    radius: float
    angle: float
    mask: np.ndarray  # (2r + 1, 2r + 1) bool
    pixels: np.ndarray  # (2r + 1, 2r + 1, 3) uint8

    @property
    def reach(self) -> int:
        return self.mask.shape[0] // 2


def inside_shape(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points lie in the shape whose circumscribed circle is the unit circle.

    Args:
        name: one of ``SHAPE_NAMES``.
        u, v: coordinates of the points, of equal shape.

    Returns:
        bool, of that shape.
    """
    if name == "circle":
        return u * u + v * v <= 1
    if name == "ring":
        squares = u * u + v * v
        return (squares <= 1) & (squares >= 0.3)
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= np.sqrt(0.5)
    if name == "triangle":
        return (_heights(3, u, v) <= 0.5).all(axis=0)
    if name == "star":
        # The five lines of a pentagram: its core is inside all of them, a spike inside four.
        return (_heights(5, u, v) <= np.cos(np.radians(72))).sum(axis=0) >= 4
    raise ValueError(f"unknown shape {name!r}, known are {', '.join(SHAPE_NAMES)}")


def _heights(count: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(count, *u.shape): components along ``count`` directions spread evenly."""
    angles = np.arange(count) * (2 * np.pi / count)
    return np.multiply.outer(np.cos(angles), u) + np.multiply.outer(np.sin(angles), v)


def draw_shapes(index: int, parameters: ShapesParameters) -> ShapesImage:
    """Draws image ``index`` of the data set."""
    rng = np.random.default_rng([parameters.seed, index])
    kind = rng.random()
    background = rng.uniform(20, 235, 3)
    canvas = _Canvas(parameters, rng, background)
    if kind >= parameters.empty_share:
        if kind < parameters.empty_share + parameters.crowd_share:
            canvas.add_crowd()
        for _ in range(rng.integers(*parameters.instances, endpoint=True)):
            canvas.add_instance()
    return canvas.result()


class _Canvas:
    """An image in the making: pixels, which instance owns each of them, what was placed."""

    def __init__(self, parameters: ShapesParameters, rng: np.random.Generator, background):
        height, width = parameters.size
        self.parameters, self.rng, self.background = parameters, rng, background
        rows, columns = np.mgrid[:height, :width]
        self.image = _texture(rng, background, 25, columns, rows).astype(np.uint8)
        self.owner = np.full((height, width), _BACKGROUND, dtype=np.int32)
        self.whole_areas: list[int] = []  # per instance: its pixels before others covered it
        self.class_indices: list[int] = []
        self.is_crowd: list[bool] = []
        self.shapes: list[PlacedShape] = []
        self.sprites: list[tuple[_Sprite, tuple[int, int]]] = []  # without a crowd's

    def add_crowd(self) -> None:
        """Scatters tiny shapes of one class; to be called before any instance is added."""
        short_side = min(self.parameters.size)
        class_index = int(self.rng.integers(len(self.parameters.classes)))
        spread = self.rng.uniform(0.08, 0.15) * short_side
        height, width = self.parameters.size
        middle = self.rng.uniform(0.25, 0.75, 2) * (width, height)
        self._new_instance(class_index, is_crowd=True)
        for _ in range(self.rng.integers(15, 40)):
            radius = max(self.rng.uniform(0.025, 0.05) * short_side / 2, _MIN_RADIUS)
            sprite = self._new_sprite(class_index, radius)
            x, y = np.rint(self.rng.normal(middle, spread)).astype(int)
            if 0 <= x < width and 0 <= y < height:
                self._paste(sprite, (int(x), int(y)), instance=0)
        if not self.shapes:  # all of them fell beyond the border
            self._paste(sprite, (width // 2, height // 2), instance=0)
        self.whole_areas[0] = int((self.owner == 0).sum())

    def add_instance(self) -> None:
        """Adds one shape where it hides no other too far; leaves it out if no place is found."""
        sprite = self._choose_sprite()
        for _ in range(_PLACEMENT_TRIES):
            center = self._choose_center(sprite)
            if self._fits(sprite, center):
                instance = self._new_instance(sprite.class_index, is_crowd=False)
                self.whole_areas[instance] = self._paste(sprite, center, instance)
                self.sprites.append((sprite, center))
                return

    def result(self) -> ShapesImage:
        masks = self.owner == np.arange(len(self.is_crowd))[:, None, None]
        return ShapesImage(
            self.image,
            masks,
            tuple(self.class_indices),
            tuple(self.is_crowd),
            tuple(self.shapes),
        )

    def _new_instance(self, class_index: int, is_crowd: bool) -> int:
        self.class_indices.append(class_index)
        self.is_crowd.append(is_crowd)
        self.whole_areas.append(0)
        return len(self.is_crowd) - 1

    def _choose_sprite(self) -> _Sprite:
        if self.sprites and self.rng.random() < _COPY_SHARE:
            return self.sprites[self.rng.integers(len(self.sprites))][0]
        class_index = int(self.rng.integers(len(self.parameters.classes)))
        diameter = self.rng.uniform(*self.parameters.diameters) * min(self.parameters.size)
        return self._new_sprite(class_index, diameter / 2)

    def _new_sprite(self, class_index: int, radius: float) -> _Sprite:
        angle = self.rng.uniform(0, 2 * np.pi)
        reach = int(radius) + 1
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        u = (np.cos(angle) * x + np.sin(angle) * y) / radius
        v = (np.cos(angle) * y - np.sin(angle) * x) / radius
        mask = inside_shape(self.parameters.classes[class_index], u, v)
        color = _contrasting_color(self.rng, self.background)
        pixels = _texture(self.rng, color, 45, x, y)
        # Drawn within the mask, so that even a copy that lies on its twin can be told from it.
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3)), borderValue=0)
        outline = mask & (inner == 0)
        pixels[outline] *= 0.4
        return _Sprite(class_index, radius, angle, mask, pixels.astype(np.uint8))

    def _choose_center(self, sprite: _Sprite) -> tuple[int, int]:
        height, width = self.parameters.size
        placement = self.rng.choice(list(_PLACEMENTS), p=list(_PLACEMENTS.values()))
        if placement == "free" or not self.sprites:
            return int(self.rng.integers(width)), int(self.rng.integers(height))
        neighbor, (x, y) = self.sprites[self.rng.integers(len(self.sprites))]
        direction = self.rng.uniform(0, 2 * np.pi)
        farthest = neighbor.radius + sprite.radius
        if placement == "touching":
            distance = _touching_distance(neighbor, sprite, direction, farthest)
        else:
            distance = self.rng.uniform(0.4, 0.9) * farthest
        offset_x, offset_y = _offset(direction, distance)
        return x + offset_x, y + offset_y

    def _fits(self, sprite: _Sprite, center: tuple[int, int]) -> bool:
        window, part = _overlap(self.parameters.size, center, sprite.reach)
        if window is None:
            return False
        mask = sprite.mask[part]
        if mask.sum() < _MIN_INSIDE_SHARE * sprite.mask.sum():
            return False
        covered = self.owner[window][mask]
        for instance in np.unique(covered[covered != _BACKGROUND]):
            left = (self.owner == instance).sum() - (covered == instance).sum()
            if left < _MIN_VISIBLE_SHARE * self.whole_areas[instance]:
                return False
        return True

    def _paste(self, sprite: _Sprite, center: tuple[int, int], instance: int) -> int:
        """Paints the sprite and returns how many pixels of it lie in the image."""
        window, part = _overlap(self.parameters.size, center, sprite.reach)
        mask = sprite.mask[part]
        self.image[window][mask] = sprite.pixels[part][mask]
        self.owner[window][mask] = instance
        self.shapes.append(
            PlacedShape(sprite.class_index, center, sprite.radius, sprite.angle, instance)
        )
        return int(mask.sum())


def _overlap(size: tuple[int, int], center: tuple[int, int], reach: int):
    """The slices of the image, and of a sprite, in which the two overlap; None without."""
    window, part = [], []
    for extent, middle in zip(size, reversed(center)):
        start, stop = max(middle - reach, 0), min(middle + reach + 1, extent)
        if start >= stop:
            return None, None
        window.append(slice(start, stop))
        part.append(slice(start - middle + reach, stop - middle + reach))
    return tuple(window), tuple(part)


def _offset(direction: float, distance: float) -> tuple[int, int]:
    return round(distance * np.cos(direction)), round(distance * np.sin(direction))


def _touching_distance(first: _Sprite, second: _Sprite, direction: float, farthest: float) -> float:
    """The least distance, to a pixel, at which the two shapes share no pixel."""
    near, far = 0.0, farthest + 2
    while far - near > 1:
        middle = (near + far) / 2
        if _share_a_pixel(first, second, _offset(direction, middle)):
            near = middle
        else:
            far = middle
    return far


def _share_a_pixel(first: _Sprite, second: _Sprite, offset: tuple[int, int]) -> bool:
    center = (first.reach + offset[0], first.reach + offset[1])
    window, part = _overlap(first.mask.shape, center, second.reach)
    return window is not None and bool((first.mask[window] & second.mask[part]).any())


def _contrasting_color(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    while True:
        color = rng.uniform(20, 235, 3)
        if np.linalg.norm(color - background) >= _MIN_CONTRAST:
            return color


def _texture(
    rng: np.random.Generator, color: np.ndarray, contrast: float, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Gradient, noise, stripes or checks around a color.

    Args:
        color: mean color, (3,) in 0 to 255.
        contrast: largest deviation from it per channel.
        x, y: ``(H, W)`` coordinates of the pixels in pixels.

    Returns:
        ``(H, W, 3)`` float, within 0 to 255.
    """
    kind = rng.choice(["gradient", "noise", "stripes", "checks"])
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(5, 12)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    if kind == "gradient":
        pattern = 2 * (along - along.min()) / max(np.ptp(along), 1) - 1
    elif kind == "noise":
        cells = rng.uniform(-1, 1, (x.shape[0] // 2 + 2, x.shape[1] // 2 + 2))
        pattern = cells[(y - y.min()) // 2, (x - x.min()) // 2]
    elif kind == "stripes":
        pattern = np.where(along % period < period / 2, 1.0, -1.0)
    else:
        pattern = np.where((along % period < period / 2) ^ (across % period < period / 2), 1, -1)
    deviation = rng.uniform(-contrast, contrast, 3)
    return np.clip(color + pattern[..., None] * deviation, 0, 255)


def write_shapes(folder: Path, num_images: int, parameters: ShapesParameters) -> None:
    """Writes ``images/*.png`` and the COCO annotations ``instances.json`` into ``folder``.

    Raises:
        ValueError: ``num_images`` below 1.
    """
    if num_images < 1:
        raise ValueError(f"the number of images must be at least 1, got {num_images}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    height, width = parameters.size
    images, annotations = [], []
    for index in range(num_images):
        drawn = draw_shapes(index, parameters)
        name = f"images/{index:06d}.png"
        _, content = cv2.imencode(".png", drawn.image)
        write_bytes(folder / name, content)
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for annotation in _coco_annotations(drawn):
            annotation |= {"id": len(annotations) + 1, "image_id": index + 1}
            annotations.append(annotation)
    categories = [{"id": i, "name": name} for i, name in enumerate(parameters.classes, start=1)]
    info = {"description": "generated shapes", **_stamp(num_images, parameters)}
    content = {"info": info, "categories": categories, "images": images, "annotations": annotations}
    write_text(folder / "instances.json", json.dumps(content, separators=(",", ":")))


def _coco_annotations(drawn: ShapesImage) -> list[dict]:
    annotations = []
    for mask, class_index, is_crowd in zip(drawn.masks, drawn.class_indices, drawn.is_crowd):
        rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        annotations.append(
            {
                "category_id": class_index + 1,
                "iscrowd": int(is_crowd),
                "area": int(mask_util.area(rle)),
                "bbox": mask_util.toBbox(rle).tolist(),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            }
        )
    return annotations


def ensure_shapes(folder: Path, num_images: int, parameters: ShapesParameters) -> Path:
    """Generates the data set unless ``folder`` already holds exactly it.

    Safe when several processes come at once: one generates into a neighbouring folder, which then
    takes its name, and the others wait. What an older generator, or other parameters, left there
    is replaced.

    Returns:
        The path of ``instances.json``; file names in it are relative to ``folder``.

    Raises:
        OSError: ``folder`` cannot be written.
    """
    stamp = json.dumps(_stamp(num_images, parameters), sort_keys=True)
    if not _is_stamped(folder, stamp):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(folder)):
            if not _is_stamped(folder, stamp):
                logger.info("Generating %d images of shapes in %s", num_images, folder)
                _replace_folder(folder, num_images, parameters, stamp)
    return folder / "instances.json"


def _stamp(num_images: int, parameters: ShapesParameters) -> dict:
    values = {"version": GENERATOR_VERSION, "images": num_images} | dataclasses.asdict(parameters)
    return json.loads(json.dumps(values))  # tuples become lists, as they will when read again


def _is_stamped(folder: Path, stamp: str) -> bool:
    path = folder / "stamp.json"
    return path.is_file() and path.read_text(encoding="utf-8") == stamp


def _replace_folder(
    folder: Path, num_images: int, parameters: ShapesParameters, stamp: str
) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        fresh = Path(temporary) / folder.name
        write_shapes(fresh, num_images, parameters)
        write_text(fresh / "stamp.json", stamp)
        if folder.exists():
            shutil.move(folder, Path(temporary) / "outdated")
        fresh.rename(folder)
