"""Six images with 36 instances, whose masks are known to the pixel.

Each has two blocks that touch, a disc, a dot of 3x3 pixels, a pair of parts, and a ring.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (120, 160)  # height, width
CLASSES = ("block", "disc", "dot", "pair", "ring")
NAMES = tuple(f"im{number}.png" for number in range(6))


def instances(number: int) -> list[tuple[str, np.ndarray]]:
    """Class and ``(120, 160)`` bool mask of the six instances of an image."""
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]

    def box(x, y, w, h):
        return (xs >= x) & (xs < x + w) & (ys >= y) & (ys < y + h)

    n = number
    distance = np.hypot(xs - 118 + n, ys - 28)
    return [
        ("block", box(6 + n, 8, 25, 30)),
        ("block", box(31 + n, 8, 22, 30)),
        ("disc", np.hypot(xs - 40, ys - 75 - n) <= 18),
        ("dot", box(70 + 3 * n, 60, 3, 3)),
        ("pair", box(90, 70 + n, 14, 20) | box(112, 74 + n, 20, 9)),
        ("ring", (distance <= 20) & (distance >= 9)),
    ]


def write_images(folder: Path, names: Iterable[str] = NAMES) -> list[Path]:
    """The images, whatever their names."""
    paths = []
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 90, (*SIZE, 3), dtype=np.uint8)
        for index, (_, mask) in enumerate(instances(number)):
            pixels[mask] = 120 + 20 * index
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


def outlines(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Closed paths along the edges of pixels, the mask to the right of their way.

    Those of holes turn the other way round. Pixels that meet in a corner alone are two paths.
    """
    padded = np.pad(mask, 1)
    after: dict[tuple, list[tuple]] = {}
    for y, x in zip(*np.nonzero(mask)):
        edges = (
            ((-1, 0), (x, y), (x + 1, y)),
            ((0, 1), (x + 1, y), (x + 1, y + 1)),
            ((1, 0), (x + 1, y + 1), (x, y + 1)),
            ((0, -1), (x, y + 1), (x, y)),
        )
        for (dy, dx), start, end in edges:
            if not padded[y + 1 + dy, x + 1 + dx]:
                after.setdefault(tuple(map(int, start)), []).append(tuple(map(int, end)))
    paths = []
    while after:
        path = [next(iter(after))]
        while True:
            here = path[-1]
            ways = after[here]
            if len(ways) > 1 and len(path) > 1:  # turn right, to stay on this side of the corner
                dx, dy = here[0] - path[-2][0], here[1] - path[-2][1]
                right = (here[0] - dy, here[1] + dx)
                way = right if right in ways else ways[0]
            else:
                way = ways[0]
            ways.remove(way)
            if not ways:
                del after[here]
            if way == path[0]:
                break
            path.append(way)
        paths.append(_corners(path))
    return paths


def _corners(path: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Without points on straight lines."""
    kept = []
    for before, here, behind in zip(path[-1:] + path[:-1], path, path[1:] + path[:1]):
        if (before[0] == here[0] == behind[0]) or (before[1] == here[1] == behind[1]):
            continue
        kept.append(here)
    return kept


def is_hole(path: list[tuple[int, int]]) -> bool:
    x, y = np.array(path, dtype=float).T
    return (x @ np.roll(y, -1) - y @ np.roll(x, -1)) < 0


def parts_and_holes(mask: np.ndarray) -> tuple[list, list]:
    paths = outlines(mask)
    return [p for p in paths if not is_hole(p)], [p for p in paths if is_hole(p)]


def bridged(paths: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """One path of several, joined by lines there and back."""
    first, *others = paths
    joined = list(first)
    for path in others:
        joined += [first[0], *path, path[0], first[0]]
    return joined


def compare(images: list, *, without: Iterable[str] = (), exact: bool = True) -> None:
    """Asserts that what was read is the truth.

    Args:
        images: read, named as :data:`NAMES` but for their folders.
        without: classes that the format cannot tell.
        exact: to the pixel; else an IoU of 0.9.
    """
    from examples_of_formats import drawn, iou

    assert Counter(Path(image.name).name for image in images) == Counter(NAMES)
    for image in images:
        expected = [
            (label, mask)
            for label, mask in instances(NAMES.index(Path(image.name).name))
            if label not in without
        ]
        found = [(i.label, drawn(i.segmentation, SIZE)) for i in image.instances]
        assert sorted(label for label, _ in found) == sorted(label for label, _ in expected)
        for label, mask in expected:
            best = max(iou(mask, other) for name, other in found if name == label)
            assert best == 1 if exact else best > 0.9, (image.name, label, best)
