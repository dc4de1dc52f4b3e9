"""Contacts, IoU and NMS against loops over pixels and pairs."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from isda.data.analysis.geometry import NMS_THRESHOLDS, measure


def encoded(masks):
    return mask_util.encode(np.asfortranarray(np.moveaxis(masks, 0, 2), dtype=np.uint8))


def random_masks(generator, count, size):
    """Rectangles with some pixels missing, some of them identical."""
    masks = np.zeros((count, *size), dtype=bool)
    for mask in masks:
        y, x = generator.integers(0, size[0] - 4), generator.integers(0, size[1] - 4)
        height, width = generator.integers(2, 14, 2)
        mask[y : y + height, x : x + width] = True
        mask &= generator.random(size) > 0.1
        mask[y, x] = True
    masks[-1] = masks[0]
    return masks


def near(mask, other):
    """Whether a pixel of the one is a pixel of the other, or one of its eight neighbours."""
    ours, theirs = np.argwhere(mask), np.argwhere(other)
    return (abs(ours[:, None] - theirs[None]).max(axis=2) <= 1).any()


def tight_box(mask):
    ys, xs = np.nonzero(mask)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def box_iou(first, second):
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0) * max(height, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
    return common / (sum(areas) - common)


def deleted(boxes, areas, classes, threshold):
    """Greedy suppression, the largest first."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -areas[i]):
        rivals = [j for j in kept if classes[i] == classes[j]]
        if all(box_iou(boxes[i], boxes[j]) <= threshold for j in rivals):
            kept.append(i)
    return len(boxes) - len(kept)


@pytest.mark.parametrize("seed", range(6))
def test_measures_agree_with_loops(seed):
    generator = np.random.default_rng(seed)
    size = (30, 41)
    masks = random_masks(generator, 12, size)
    classes = generator.integers(0, 2, 12).tolist()
    classes[-1] = classes[0]
    found = measure(encoded(masks), classes, size)
    assert found.areas.tolist() == [mask.sum() for mask in masks]
    boxes = [tight_box(mask) for mask in masks]
    assert [(x, y, x + w, y + h) for x, y, w, h in found.boxes] == boxes
    pairs = [[(i, j) for j in range(12) if j != i] for i in range(12)]
    expected = [any(near(masks[i], masks[j]) for i, j in row) for row in pairs]
    assert found.touching.tolist() == expected
    expected = [any((masks[i] & masks[j]).any() for i, j in row) for row in pairs]
    assert found.overlapping.tolist() == expected
    expected = [max(box_iou(boxes[i], boxes[j]) for i, j in row) for row in pairs]
    assert found.box_iou == pytest.approx(expected)
    mask_ious = [
        max((masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum() for i, j in row)
        for row in pairs
    ]
    assert found.mask_iou == pytest.approx(mask_ious)
    assert (0, 11) in found.same
    areas = found.areas.tolist()
    areas = [area - index * 1e-6 for index, area in enumerate(areas)]
    for threshold in NMS_THRESHOLDS:
        assert found.deleted[threshold] == deleted(boxes, areas, classes, threshold)
    assert found.deleted[0.5] >= 1


def test_corners_and_gaps():
    """Diagonal neighbours touch, a gap of one pixel parts."""
    masks = np.zeros((4, 20, 20), dtype=bool)
    masks[0, 0:5, 0:5] = True
    masks[1, 5:9, 5:9] = True  # meets the first at a corner
    masks[2, 10:14, 5:9] = True  # a row between
    masks[3, 15:, 15:] = True  # at the border of the image
    found = measure(encoded(masks), [0, 0, 0, 0], (20, 20))
    assert found.touching.tolist() == [True, True, False, False]
    assert not found.overlapping.any() and found.deleted == {0.5: 0, 0.7: 0}


def test_no_instances():
    found = measure([], [], (20, 20))
    assert found.areas.shape == found.touching.shape == found.box_iou.shape == (0,)
    assert found.boxes.shape == (0, 4) and found.deleted == {0.5: 0, 0.7: 0} and found.same == []


def test_one_instance_has_no_neighbour():
    found = measure(encoded(np.ones((1, 4, 5), dtype=bool)), [3], (4, 5))
    assert found.areas.tolist() == [20] and found.box_iou.tolist() == [0]
    assert not found.touching.any()
