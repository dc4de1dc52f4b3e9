"""Target masks out of annotation files, in parallel: what a dictionary is fitted to."""

import hashlib
import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.utils.file_io import PathManager

from isda.data.coco_json import read_coco_json
from isda.data.errors import DatasetError
from isda.data.masks import UnusableSegmentationError, draw_columns, parse_segmentation
from isda.modeling.mask_embedding import crop_masks

__all__ = [
    "AnnotationFile",
    "Chunk",
    "TargetMasks",
    "available_cores",
    "crop_chunk",
    "map_chunks",
]

CHUNK_SIZE = 2048  # annotations that one call of a worker takes

_CANVAS_PIXELS = 1 << 22  # of the bitmaps that are cropped together

_FAR = 10  # image sides

_CROWD = "crowds"
_EMPTY = "empty as target masks"
_NO_BOX = "without a box of positive size"
_FAR_BOX = "with a box far beyond the image"

Result = TypeVar("Result")


@dataclass
class Chunk:
    """Some annotations of a file, none of them a crowd, with the sizes of their images."""

    json_file: str
    annotations: list[dict]
    sizes: dict[int | str, tuple[int, int]]  # image id: (height, width)

    def __len__(self) -> int:
        return len(self.annotations)


@dataclass
class TargetMasks:
    """Target masks of a chunk, and why some annotations have none."""

    masks: np.ndarray  # (n, S, S) bool, none of them empty
    areas: np.ndarray  # (n,) pixels of the whole instances, for small, medium and large
    left_out: Counter = field(default_factory=Counter)  # reason: how many


class AnnotationFile:
    """A file in COCO's format whose structure has been checked.

    Attributes:
        path: as given.
        name: without folders.
        sha256: of the file's bytes, in hexadecimal.
        annotations: all but the crowds.
        num_crowds: how many those are.
    """

    def __init__(self, path: str | os.PathLike):
        """
        Raises:
            DatasetError: it cannot be read, or has no annotations but crowds.
        """
        content = read_coco_json(path)
        self.path = str(path)
        self.name = os.path.basename(self.path)
        self.sha256 = _sha256(PathManager.get_local_path(self.path))
        self.annotations = [a for a in content["annotations"] if not a.get("iscrowd", 0)]
        self.num_crowds = len(content["annotations"]) - len(self.annotations)
        self._sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
        if not self.annotations:
            raise DatasetError(
                f"{path}: has no mask ({self.num_crowds} crowds do not count): name a file with "
                "annotated instances, such as that of a training set"
            )

    def chunks(self, shard: int = 0, num_shards: int = 1) -> Iterator[Chunk]:
        """All annotations of every ``num_shards``-th chunk, from number ``shard`` on."""
        starts = range(shard * CHUNK_SIZE, len(self.annotations), num_shards * CHUNK_SIZE)
        for start in starts:
            part = self.annotations[start : start + CHUNK_SIZE]
            sizes = {a["image_id"]: self._sizes[a["image_id"]] for a in part}
            yield Chunk(self.path, part, sizes)

    def crowds(self) -> Counter:
        """The crowds, which no chunk has, as a reason to be left out."""
        return Counter({_CROWD: self.num_crowds} if self.num_crowds else {})


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def crop_chunk(chunk: Chunk, side: int) -> TargetMasks:
    """Every annotation's mask inside its box, at S×S; a missing box is the mask's tight one.

    Args:
        side: S.

    Raises:
        DatasetError: an RLE is of another size than its image.
    """
    usable, parsed, boxes, left_out = [], [], [], Counter()
    for annotation in chunk.annotations:
        try:
            segmentation = _parse(annotation, chunk)
            boxes.append(_box(annotation, segmentation, chunk.sizes[annotation["image_id"]]))
        except UnusableSegmentationError as error:
            left_out[str(error)] += 1
            continue
        usable.append(annotation)
        parsed.append(segmentation)
    sizes = [chunk.sizes[annotation["image_id"]] for annotation in usable]
    corners = np.array(boxes).reshape(-1, 4)
    masks = _crop(parsed, sizes, corners, side)
    kept = masks.any(axis=(1, 2))
    left_out[_EMPTY] += int((~kept).sum())
    areas = np.array([_area(*of_one) for of_one in zip(usable, masks, corners)])
    return TargetMasks(masks[kept], areas[kept], +left_out)


def _parse(annotation: dict, chunk: Chunk) -> list[np.ndarray] | np.ndarray:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        raise UnusableSegmentationError("without segmentation")
    try:
        return parse_segmentation(segmentation, chunk.sizes[annotation["image_id"]])
    except UnusableSegmentationError:
        raise
    except ValueError as error:
        culprit = f"{chunk.json_file}: annotation {annotation['id']}"
        raise DatasetError(f"{culprit}: {error}") from error


def _box(
    annotation: dict, parsed: list[np.ndarray] | np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """``(4,)`` float64 XYXY."""
    bbox = annotation.get("bbox")
    if bbox is None:
        return _extent(parsed) if isinstance(parsed, list) else _extent_of_runs(parsed, size[0])
    try:
        box = np.array(bbox, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UnusableSegmentationError(_NO_BOX) from error
    if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= 0).any():
        raise UnusableSegmentationError(_NO_BOX)
    box[2:] += box[:2]
    # ROIAlign takes time in proportion to the box.
    if np.abs(box).max() > _FAR * max(size):
        raise UnusableSegmentationError(_FAR_BOX)
    return box


def _extent(polygons: list[np.ndarray]) -> np.ndarray:
    points = np.concatenate(polygons)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _extent_of_runs(runs: np.ndarray, height: int) -> np.ndarray:
    ends = np.cumsum(runs)
    foreground = np.flatnonzero(runs[1::2]) * 2 + 1
    first = (ends - runs)[foreground[0]] // height
    last = (ends[foreground[-1]] - 1) // height + 1
    rows = np.flatnonzero(draw_columns(runs, height, first, last).any(axis=1))
    return np.array([first, rows[0], last, rows[-1] + 1], dtype=np.float64)


def _crop(
    parsed: Sequence[list[np.ndarray] | np.ndarray],
    sizes: Sequence[tuple[int, int]],
    boxes: np.ndarray,
    side: int,
) -> np.ndarray:
    """``(n, S, S)`` bool."""
    masks = np.zeros((len(parsed), side, side), dtype=bool)
    of_polygons = [i for i, shape in enumerate(parsed) if isinstance(shape, list)]
    of_bitmaps = [i for i, shape in enumerate(parsed) if not isinstance(shape, list)]
    polygons = PolygonMasks([[part.reshape(-1) for part in parsed[i]] for i in of_polygons])
    masks[of_polygons] = crop_masks(polygons, torch.from_numpy(boxes[of_polygons]), side).numpy()
    windows = [_window(parsed[i], sizes[i], boxes[i]) for i in of_bitmaps]
    # Of similar height and width together, so that little is added to the smaller ones.
    group = {i: tuple(map(int.bit_length, w.shape)) for i, (w, _) in zip(of_bitmaps, windows)}
    by_index = dict(zip(of_bitmaps, windows))
    for (rows, columns), members in itertools.groupby(sorted(group, key=group.get), group.get):
        members = list(members)
        step = max(_CANVAS_PIXELS >> (rows + columns), 1)
        for start in range(0, len(members), step):
            some = members[start : start + step]
            masks[some] = _crop_windows([by_index[i] for i in some], boxes[some], side)
    return masks


def _window(
    runs: np.ndarray, size: tuple[int, int], box: np.ndarray
) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels of a bitmap that ROIAlign reads for a box, and the (x, y) of the first.

    A pixel more than the box is read for interpolation.
    """
    height, width = size
    outer = np.array([*np.floor(box[:2] - 1), *np.ceil(box[2:] + 1)])
    x0, y0, x1, y1 = np.clip(outer, 0, [width, height, width, height]).astype(int).tolist()
    return draw_columns(runs, height, x0, max(x0, x1))[y0 : max(y0, y1)], (x0, y0)


def _crop_windows(
    windows: Sequence[tuple[np.ndarray, tuple[int, int]]], boxes: np.ndarray, side: int
) -> np.ndarray:
    rows, columns = np.max([window.shape for window, _ in windows], axis=0)
    canvas = np.zeros((len(windows), rows + 1, columns + 1), dtype=bool)
    for pixels, (window, _) in zip(canvas, windows):
        height, width = window.shape
        pixels[:height, :width] = window
        # What ROIAlign reads beyond the border of an image is its border.
        pixels[height, :width] = pixels[height - 1, :width]
        pixels[: height + 1, width] = pixels[: height + 1, width - 1]
    corners = np.array([corner for _, corner in windows], dtype=np.float64)
    shifted = torch.from_numpy(boxes - np.tile(corners, 2))
    return crop_masks(BitMasks(canvas), shifted, side).numpy()


def _area(annotation: dict, mask: np.ndarray, box: np.ndarray) -> float:
    area = annotation.get("area")
    if type(area) in (int, float) and np.isfinite(area):
        return float(area)
    return float(mask.mean()) * float(np.prod(box[2:] - box[:2]))


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_chunks(
    function: Callable[[Chunk], Result],
    chunks: Iterable[Chunk],
    workers: int,
    advance: Callable[[int], None],
) -> Iterator[Result]:
    """Results in the order of the chunks, worked out by so many processes.

    Args:
        function: of a module, or a ``functools.partial`` of one, so that it can be sent.
        workers: with one, everything happens in this process.
        advance: is told the number of annotations whenever a chunk is done.
    """
    if workers <= 1:
        for chunk in chunks:
            yield function(chunk)
            advance(len(chunk))
        return
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending: deque[tuple[int, Future[Result]]] = deque()
        for chunk in itertools.chain(chunks, itertools.repeat(None)):
            # No more than this ahead: results of a slow reader would fill the memory.
            if pending and (chunk is None or len(pending) >= 2 * workers):
                length, result = pending.popleft()
                yield result.result()
                advance(length)
            if chunk is not None:
                pending.append((len(chunk), pool.submit(function, chunk)))
            elif not pending:
                return
