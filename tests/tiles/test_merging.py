"""Windows that say the truth must give the truth; and what is made of windows that do not."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from scipy import ndimage

from isda.structures import RLEMasks
from isda.tiles import merge_windows, window_grid


def instances_in(labels, scores, classes):
    """What a perfect model gives for a window: its part of every instance that has a pixel."""
    numbers = [n for n in np.unique(labels) if n]
    masks = torch.from_numpy(np.array([labels == n for n in numbers]).reshape(-1, *labels.shape))
    boxes = [
        [columns.start, rows.start, columns.stop, rows.stop]
        for rows, columns in (ndimage.find_objects((labels == n).astype(int))[0] for n in numbers)
    ]
    return Instances(
        labels.shape,
        pred_masks=masks,
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor([scores[n] for n in numbers]),
        pred_classes=torch.tensor([classes[n] for n in numbers], dtype=torch.int64),
    )


def perfect_windows(labels, grid, seed=0):
    generator = np.random.default_rng(seed)
    scores = generator.uniform(0.01, 1, labels.max() + 1).astype(np.float32)
    classes = generator.integers(0, 3, labels.max() + 1)
    for top, bottom, left, right in grid:
        yield instances_in(labels[top:bottom, left:right], scores, classes)


def assert_reproduced(labels, window, overlap, margin=2, seed=0):
    grid = window_grid(labels.shape, [window], overlap)
    found = merge_windows(grid, perfect_windows(labels, grid, seed), labels.shape, margin)
    whole = next(perfect_windows(labels, window_grid(labels.shape, [10**6], 0), seed))
    order = whole.scores.argsort(descending=True)
    assert len(found) == len(whole)
    assert found.scores.tolist() == whole.scores[order].tolist()
    assert found.pred_classes.tolist() == whole.pred_classes[order].tolist()
    assert torch.equal(found.pred_masks.dense(), whole.pred_masks[order])
    assert torch.equal(found.pred_boxes.tensor, whole.pred_boxes.tensor[order])
    return len(grid)


def discs(shape, radii, count, seed):
    """Discs that touch: the later takes the pixels; only the largest connected part remains."""
    generator = np.random.default_rng(seed)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, int)
    for number in range(1, count + 1):
        y, x = generator.uniform(0, shape[0]), generator.uniform(0, shape[1])
        radius = generator.uniform(*radii)
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = number
    return connected(labels)


def connected(labels):
    for number in range(1, labels.max() + 1):
        parts, count = ndimage.label(labels == number)
        if count > 1:
            sizes = ndimage.sum_labels(labels > 0, parts, range(1, count + 1))
            labels[(parts > 0) & (parts != 1 + np.argmax(sizes))] = 0
    _, inverse = np.unique(labels, return_inverse=True)
    return inverse.reshape(labels.shape)


@pytest.mark.parametrize("seed", range(6))
def test_small_touching_instances_are_reproduced(seed):
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(70, 260, 2))
    labels = discs(shape, (2, 9), 120, seed)
    assert labels.max() > 20
    assert assert_reproduced(labels, 64, 20, margin=1 + seed % 4, seed=seed) > 1


@pytest.mark.parametrize("overlap", [1, 6, 16])
@pytest.mark.parametrize("seed", range(4))
def test_instances_larger_than_the_overlap_are_joined(seed, overlap):
    labels = discs((170, 230), (5, 90), 25, seed)
    assert_reproduced(labels, 50, overlap, margin=1 if overlap == 1 else 2, seed=seed)


def drawn(*lines):
    """Letters are instances, enlarged to 15 pixels a letter."""
    letters = np.array([list(line) for line in lines])
    labels = np.zeros(letters.shape, int)
    for number, letter in enumerate(sorted(set(letters.ravel()) - {"."}), 1):
        labels[letters == letter] = number
    return np.kron(labels, np.ones((15, 15), int))


SHAPES = {
    "ring": drawn(".......", ".aaaaa.", ".a...a.", ".a.b.a.", ".a...a.", ".aaaaa.", "......."),
    "U": drawn("a...b", "a...b", "a.c.b", "a...b", "aa.bb", "aaabb"),
    "comb": drawn("a.a.a.a", "a.a.a.a", "aba.aca", "aba.aca", "aaaaaaa"),
    "upside down": drawn("aaaaaaa", "aba.aca", "aba.aca", "a.a.a.a", "a.a.a.a"),
    "spiral": drawn("aaaaaaa", "......a", "aaaaa.a", "a...a.a", "a.aaa.a", "a.....a", "aaaaaaa"),
    "stripes": drawn("aaaaaaaa", "bbbbbbbb", "cccccccc", "ddddeeee", "ffffffff"),
    "all": np.ones((100, 120), int),
    "nothing": np.zeros((100, 120), int),
}


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_over_many_windows_are_reproduced(shape, turns):
    labels = np.ascontiguousarray(np.rot90(SHAPES[shape], turns))
    for window, overlap in ((24, 8), (31, 4), (40, 13), (200, 10)):
        assert_reproduced(labels, window, overlap)


@pytest.mark.parametrize("seed", range(8))
def test_random_worms_are_reproduced(seed):
    """Paths of any length, which leave windows and come back."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((90, 110), int)
    for number in range(1, 9):
        y, x = generator.integers(5, 85), generator.integers(5, 105)
        for _ in range(400):
            step = generator.integers(-2, 3, 2)
            y, x = np.clip(y + step[0], 1, 88), np.clip(x + step[1], 1, 108)
            labels[y - 1 : y + 2, x - 1 : x + 2] = number
    assert_reproduced(connected(labels), 36, 12, seed=seed)


def window(size, *items):
    """Instances of a window: (rows, columns, score) of a rectangle each."""
    masks = torch.zeros(len(items), *size, dtype=torch.bool)
    for mask, ((top, bottom), (left, right), _) in zip(masks, items):
        mask[top:bottom, left:right] = True
    boxes = [[c[0], r[0], c[1], r[1]] for r, c, _ in items]
    return Instances(
        size,
        pred_masks=masks,
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor([score for *_, score in items]),
        pred_classes=torch.zeros(len(items), dtype=torch.int64),
    )


def merged(*windows):
    """Of windows of 40 x 40 pixels that share 12 columns: 0-40, 28-68."""
    grid = window_grid((40, 68), [40], 12)
    assert [w[2:] for w in grid] == [(0, 40), (28, 68)]
    found = merge_windows(grid, iter(windows), (40, 68), margin=2)
    return [
        (round(s, 2), *(int(v) for v in box[[0, 2]]))
        for s, box in zip(found.scores.tolist(), found.pred_masks.boxes())
    ]


ROWS = (10, 20)


def test_a_cut_instance_is_taken_from_the_window_that_has_it_whole_whatever_the_scores():
    left = window((40, 40), (ROWS, (31, 40), 0.9))
    right = window((40, 40), (ROWS, (3, 15), 0.3))  # columns 31-43 of the image
    assert merged(left, right) == [(0.3, 31, 43)]


def test_a_sliver_that_the_better_window_does_not_have_is_left_out():
    nothing = window((40, 40))
    assert merged(nothing, window((40, 40), (ROWS, (0, 5), 0.9))) == []
    assert merged(window((40, 40), (ROWS, (33, 40), 0.9)), nothing) == []
    # Seen whole, and nearer to the border of the window that has it: the other one knows better.
    assert merged(nothing, window((40, 40), (ROWS, (3, 5), 0.9))) == []
    assert merged(nothing, window((40, 40), (ROWS, (7, 11), 0.9))) == [(0.9, 35, 39)]


def test_what_only_one_window_can_see_stays():
    left = window((40, 40), (ROWS, (20, 40), 0.9))
    assert merged(left, window((40, 40))) == [(0.9, 20, 40)]


def test_touching_instances_of_one_window_are_never_compared():
    both = [(ROWS, (29, 33), 0.8), (ROWS, (29, 33), 0.7), (ROWS, (33, 35), 0.6)]
    shifted = [(r, (a - 28, b - 28), s) for r, (a, b), s in both]
    found = merged(window((40, 40), *both), window((40, 40), *shifted))
    assert found == [(0.8, 29, 33), (0.7, 29, 33), (0.6, 33, 35)]


def test_a_doubtful_blob_does_not_join_sure_neighbours():
    rows = [(4, 12), (12, 20)]
    left = window((40, 40), *((r, (10, 40), 0.9) for r in rows))
    right = window((40, 40), *((r, (0, 20), 0.9) for r in rows), ((4, 20), (0, 20), 0.2))
    assert merged(left, right) == [(0.9, 10, 48), (0.9, 10, 48), (0.2, 28, 48)]


def test_windows_of_encoded_masks_are_the_same():
    labels = discs((120, 150), (3, 20), 40, 1)
    grid = window_grid(labels.shape, [60], 15)
    windows = list(perfect_windows(labels, grid))
    dense = merge_windows(grid, windows, labels.shape, 2)
    for instances in windows:
        instances.pred_masks = RLEMasks.encode(instances.pred_masks)
    encoded = merge_windows(grid, windows, labels.shape, 2)
    assert dense.pred_masks.rles == encoded.pred_masks.rles
    assert torch.equal(dense.scores, encoded.scores)
