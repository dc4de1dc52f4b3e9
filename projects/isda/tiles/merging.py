"""Instances of overlapping windows as instances of the whole image, without NMS.

Windows are merged two by two: those of a row from left to right into a strip, and strips from top
to bottom. Two neighbours share a band. In it both have seen the same pixels, but one of them has
only a part of what reaches out of the band on the side of the other. So for every instance it is
known which of the two has seen more of it:

1. Of both, masks that agree in the band (IoU at least 0.5 there) are one instance. Pairs are made
   one to one, the surest first.
2. Of a pair, the one is taken that its window sees whole: no border cuts it, and the other one does
   not go on beyond what this window sees. Where both windows see it whole, it is that of the window
   whose border is farther away. Where neither does, the instance is wider than the band, and both
   masks are joined.
3. Cut masks are also joined where one strand of each, a connected part in the band, agrees and they
   are about as sure: of a U, one window may have two arms, and the other one piece.
4. What else has no partner is decided by who has seen it better: what the other window sees as a
   whole or from farther inside, and does not have, is left out.

Instances of one window are never compared with each other, so that touching ones stay as the model
has told them apart. Without overlap nothing could be said of what a border cuts: both halves stay.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from isda.structures import RLEMasks, encode_window
from isda.tiles.grid import Grid, Interval, Window

__all__ = ["Piece", "join_neighbours", "merge_windows", "pieces_of"]

_AGREEMENT = 0.5  # IoU in the band from which on two masks are one instance
_AS_SURE = 0.5  # least ratio of two scores where strands join what is no pair
_VERTICAL, _HORIZONTAL = 0, 1  # axes of an image along which windows follow each other


@dataclass(eq=False)
class Piece:
    """An instance as one window, or several that are merged already, have it."""

    mask: np.ndarray  # (h, w) bool, tight
    corner: tuple[int, int]  # (top, left) of the mask in the image
    box: np.ndarray  # (4,) XYXY in the image, as predicted
    score: float
    label: int

    def span(self, axis: int) -> Interval:
        """Its rows (axis 0) or columns (1) in the image."""
        return self.corner[axis], self.corner[axis] + self.mask.shape[axis]

    def cropped(self, rows: Interval, columns: Interval) -> np.ndarray:
        """The part of the mask in some rows and columns of the image, which it may leave."""
        parts = (
            slice(max(start - corner, 0), max(end - corner, 0))
            for (start, end), corner in zip((rows, columns), self.corner)
        )
        return self.mask[tuple(parts)]

    def on_canvas(self, rows: Interval, columns: Interval) -> np.ndarray:
        """All of some rows and columns of the image, empty where the mask does not reach."""
        canvas = np.zeros((rows[1] - rows[0], columns[1] - columns[0]), bool)
        part = self.cropped(rows, columns)
        top, left = max(self.corner[0] - rows[0], 0), max(self.corner[1] - columns[0], 0)
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
        return canvas


def merge_windows(
    grid: Grid, found: Iterable[Instances], image_size: tuple[int, int], margin: int
) -> Instances:
    """Instances of an image, from those of its windows.

    Args:
        grid: the windows.
        found: of each window in the order of the grid, with ``pred_masks`` ``(n, h, w)`` of the
            window's size (bool or :class:`RLEMasks`), ``pred_boxes``, ``scores`` and
            ``pred_classes``. It is read one by one; nothing but masks is kept.
        image_size: ``(height, width)`` of the image.
        margin: pixels; a mask that comes as near to a border counts as cut by it.

    Returns:
        The same fields on the CPU, the best first, with :class:`RLEMasks`.
    """
    found = iter(found)
    finished: list[tuple[dict, Piece]] = []
    pending: list[Piece] = []
    for row, (top, bottom) in enumerate(grid.rows):
        strip: list[Piece] = []
        for column, (left, right) in enumerate(grid.columns):
            pieces = pieces_of(next(found), Window(top, bottom, left, right))
            if column:
                band = (left, grid.columns[column - 1][1])
                pieces = join_neighbours(strip, pieces, band, _HORIZONTAL, margin)
            strip = pieces
        if row:
            band = (top, grid.rows[row - 1][1])
            strip = join_neighbours(pending, strip, band, _VERTICAL, margin)
        reached = grid.rows[row + 1][0] if row + 1 < len(grid.rows) else image_size[0]
        pending = [piece for piece in strip if piece.span(_VERTICAL)[1] > reached]
        # Nothing below sees these: from here on their code is enough.
        finished += [_encoded(p, image_size) for p in strip if p.span(_VERTICAL)[1] <= reached]
    finished.sort(key=lambda item: -item[1].score)  # stable: equal ones as they were found
    return Instances(
        image_size,
        pred_masks=RLEMasks([rle for rle, _ in finished], image_size),
        pred_boxes=Boxes(torch.tensor(np.array([p.box for _, p in finished]).reshape(-1, 4))),
        scores=torch.tensor([p.score for _, p in finished], dtype=torch.float32),
        pred_classes=torch.tensor([p.label for _, p in finished], dtype=torch.int64),
    )


def pieces_of(instances: Instances, window: Window) -> list[Piece]:
    """The instances of a window in the image's coordinates; those without a pixel are left out."""
    corner = np.array([window.left, window.top] * 2, np.float32)
    boxes = instances.pred_boxes.tensor.numpy() + corner
    scores, labels = instances.scores.tolist(), instances.pred_classes.tolist()
    pieces = []
    for mask, box, score, label in zip(instances.pred_masks, boxes, scores, labels):
        mask = mask.numpy()
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if len(rows):
            tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
            place = (window.top + int(rows[0]), window.left + int(columns[0]))
            pieces.append(Piece(tight, place, box, score, label))
    return pieces


def join_neighbours(
    first: Sequence[Piece], second: Sequence[Piece], band: Interval, axis: int, margin: int
) -> list[Piece]:
    """What two neighbouring windows say together; see the top of this module.

    Args:
        first: of the upper or the left one.
        second: of the other.
        band: rows or columns that both see: from where the second begins to where the first ends.
        axis: 0 where the first is above, 1 where it is to the left.
        margin: as of :func:`merge_windows`.
    """
    start, end = band
    alone = [p for p in first if p.span(axis)[1] <= start]
    alone += [p for p in second if p.span(axis)[0] >= end]
    first = [p for p in first if p.span(axis)[1] > start]
    second = [p for p in second if p.span(axis)[0] < end]
    cut = (
        [p.span(axis)[1] > end - margin for p in first],
        [p.span(axis)[0] < start + margin for p in second],
    )
    shared = _shared_pixels(first, second, band, axis)
    pairs = _pairs(first, second, shared)
    left = set(range(len(first))), set(range(len(second)))
    links = []
    for i, j in pairs:
        left[0].discard(i)
        left[1].discard(j)
        second_has_more = cut[0][i] or second[j].span(axis)[1] > end
        first_has_more = cut[1][j] or first[i].span(axis)[0] < start
        if first_has_more and second_has_more:
            links.append((i, j))
        elif first_has_more or second_has_more:
            alone.append(first[i] if first_has_more else second[j])
        else:
            before = _centre(first[i], axis) + _centre(second[j], axis) < start + end
            alone.append(first[i] if before else second[j])
    # Pieces of which one was taken already are not to be joined as well.
    free = left[0].union(i for i, _ in links), left[1].union(j for _, j in links)
    for i, j in shared.common:
        both_cut = i in free[0] and j in free[1] and cut[0][i] and cut[1][j]
        if both_cut and _share_a_strand(first[i], second[j], band, axis):
            links.append((i, j))
            left[0].discard(i)
            left[1].discard(j)
    for side, pieces in enumerate((first, second)):
        alone += [
            pieces[index]
            for index in sorted(left[side])
            if _is_seen_best(pieces[index], band, axis, cut[side][index], side)
        ]
    return alone + _joined(first, second, links)


@dataclass
class _Shared:
    """How many pixels two windows' pieces have in the band that both see."""

    areas: tuple[np.ndarray, np.ndarray]  # of each piece of the first and of the second
    common: dict[tuple[int, int], int]  # of pairs of one class, where there are any


def _shared_pixels(
    first: Sequence[Piece], second: Sequence[Piece], band: Interval, axis: int
) -> _Shared:
    areas, extents = [], []
    for pieces in (first, second):
        rows, columns = (
            [_clipped(p.span(a), band) if a == axis else p.span(a) for p in pieces] for a in (0, 1)
        )
        extents.append(np.array([(*r, *c) for r, c in zip(rows, columns)]).reshape(-1, 4))
        counts = [int(p.cropped(r, c).sum()) for p, r, c in zip(pieces, rows, columns)]
        areas.append(np.array(counts))
    common = {}
    for i, j in _crossing(*extents):
        if first[i].label == second[j].label:
            starts = np.maximum(extents[0][i], extents[1][j])[[0, 2]].tolist()
            ends = np.minimum(extents[0][i], extents[1][j])[[1, 3]].tolist()
            place = ((starts[0], ends[0]), (starts[1], ends[1]))
            if count := int((first[i].cropped(*place) & second[j].cropped(*place)).sum()):
                common[i, j] = count
    return _Shared((areas[0], areas[1]), common)


def _crossing(first: np.ndarray, second: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of extents ``(n, 4)``, ``(m, 4)`` (top, bottom, left, right) that share a pixel."""
    pairs = []
    for i, (top, bottom, left, right) in enumerate(first):
        apart = (second[:, 0] >= bottom) | (second[:, 1] <= top)
        apart |= (second[:, 2] >= right) | (second[:, 3] <= left)
        pairs += [(i, int(j)) for j in np.flatnonzero(~apart)]
    return pairs


def _pairs(
    first: Sequence[Piece], second: Sequence[Piece], shared: _Shared
) -> list[tuple[int, int]]:
    """Which pieces agree in the band, one to one."""
    rated = []
    for (i, j), common in shared.common.items():
        iou = common / (shared.areas[0][i] + shared.areas[1][j] - common)
        if iou >= _AGREEMENT:
            rated.append((iou * first[i].score * second[j].score, i, j))
    pairs: list[tuple[int, int]] = []
    taken: tuple[set[int], set[int]] = (set(), set())
    for _, i, j in sorted(rated, key=lambda x: (-x[0], *x[1:])):
        if i not in taken[0] and j not in taken[1]:
            pairs.append((i, j))
            taken[0].add(i)
            taken[1].add(j)
    return pairs


def _share_a_strand(first: Piece, second: Piece, band: Interval, axis: int) -> bool:
    """Whether connected parts of two masks agree in the band, and the scores are comparable."""
    scores = first.score, second.score
    if min(scores) < _AS_SURE * max(scores):
        return False
    from scipy import ndimage  # a second, which only windows need

    rows, columns = (band if a == axis else _hull([first.span(a), second.span(a)]) for a in (0, 1))
    parts = [ndimage.label(p.on_canvas(rows, columns), np.ones((3, 3)))[0] for p in (first, second)]
    both = (parts[0] > 0) & (parts[1] > 0)
    areas = [np.bincount(part.ravel()) for part in parts]
    pairs, common = np.unique(np.stack([part[both] for part in parts]), axis=1, return_counts=True)
    unions = areas[0][pairs[0]] + areas[1][pairs[1]] - common
    return bool((common >= _AGREEMENT * unions).any())


def _joined(
    first: Sequence[Piece], second: Sequence[Piece], links: list[tuple[int, int]]
) -> list[Piece]:
    """One piece of all that are linked, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pieces = [*first, *second]
    rows = [i for i, _ in links]
    columns = [len(first) + j for _, j in links]
    graph = coo_array((np.ones(len(links)), (rows, columns)), shape=(len(pieces),) * 2)
    _, groups = connected_components(graph, directed=False)
    members: dict[int, list[Piece]] = {}
    for index in dict.fromkeys([*rows, *columns]):
        members.setdefault(int(groups[index]), []).append(pieces[index])
    return [_union(group) for group in members.values()]


def _union(pieces: Sequence[Piece]) -> Piece:
    rows, columns = (_hull([p.span(axis) for p in pieces]) for axis in (0, 1))
    mask = np.logical_or.reduce([p.on_canvas(rows, columns) for p in pieces])
    boxes = np.stack([p.box for p in pieces])
    box = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    score = max(p.score for p in pieces)
    return Piece(mask, (rows[0], columns[0]), box, score, pieces[0].label)


def _is_seen_best(piece: Piece, band: Interval, axis: int, is_cut: bool, side: int) -> bool:
    """Whether the other window, which has no such instance, sees less of the place."""
    low, high = piece.span(axis)
    if low < band[0] or high > band[1]:  # it is in part beyond the other window's border
        return True
    return not is_cut and (2 * _centre(piece, axis) < sum(band)) == (side == 0)


def _centre(piece: Piece, axis: int) -> float:
    return sum(piece.span(axis)) / 2


def _hull(spans: Sequence[Interval]) -> Interval:
    return min(start for start, _ in spans), max(end for _, end in spans)


def _clipped(span: Interval, band: Interval) -> Interval:
    return max(span[0], band[0]), min(span[1], band[1])


def _encoded(piece: Piece, image_size: tuple[int, int]) -> tuple[dict, Piece]:
    """COCO's code of its mask, and what else is known of it."""
    rle = encode_window(torch.from_numpy(piece.mask), piece.corner, image_size)
    rest = Piece(np.zeros((0, 0), bool), piece.corner, piece.box, piece.score, piece.label)
    return rle, rest
