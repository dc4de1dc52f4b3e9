"""SOLO's targets against loops, a case by hand, and flipped images."""

import math

import pytest
import torch
import torch.nn.functional as F

from isda.training.grid_targets import GridAssigner, assign_cells
from isda.training.masks import mass_centres

ALL = (1, 2048)


def rectangles(*corners, size=(96, 128)):
    """Boxes and masks of (x0, y0, x1, y1)."""
    masks = torch.zeros(len(corners), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    return torch.tensor(corners, dtype=torch.float32).view(-1, 4), masks


def random_rectangles(count):
    torch.manual_seed(count)
    corners = []
    for _ in range(count):
        x0, y0 = int(torch.randint(120, ())), int(torch.randint(88, ()))
        x1, y1 = int(torch.randint(x0 + 1, 129, ())), int(torch.randint(y0 + 1, 97, ()))
        corners.append((x0, y0, x1, y1))
    return rectangles(*corners)


def owners_by_loops(boxes, centres, padded_size, side, scale_range):
    """Cell after cell, ground truth after ground truth, in Python's integers and floats."""
    (height, width), owners = padded_size, {}
    for g, (box, centre) in enumerate(zip(boxes.tolist(), centres.tolist(), strict=True)):
        w, h = box[2] - box[0], box[3] - box[1]
        if not scale_range[0] <= math.sqrt(w * h) <= scale_range[1]:
            continue
        column, row = int(centre[0] * side / width), int(centre[1] * side / height)
        for i in range(side):
            for j in range(side):
                near = abs(i - row) <= 1 and abs(j - column) <= 1
                top = math.floor((centre[1] - 0.1 * h) * side / height)
                bottom = math.floor((centre[1] + 0.1 * h) * side / height)
                left = math.floor((centre[0] - 0.1 * w) * side / width)
                right = math.floor((centre[0] + 0.1 * w) * side / width)
                if near and top <= i <= bottom and left <= j <= right:
                    owners[i * side + j] = g
    return owners


@pytest.mark.parametrize("side", [1, 5, 12, 40])
@pytest.mark.parametrize("scale_range", [ALL, (1, 40), (30, 64)])
def test_cells_are_those_of_loops(side, scale_range):
    boxes, masks = random_rectangles(30)
    centres, padded = mass_centres(masks), (96, 160)
    cells, instances = assign_cells(boxes, centres, padded, side, scale_range)
    found = dict(zip(cells.tolist(), instances.tolist(), strict=True))
    assert found == owners_by_loops(boxes, centres, padded, side, scale_range)
    assert len(found) == len(cells) > 0


def test_a_centred_square_by_hand():
    """Of 40 pixels in 80: its centre of mass is 39.5 of 0 to 79, in a grid of 8 cells of ten."""
    boxes, masks = rectangles((20, 20, 60, 60), size=(80, 80))
    cells, _ = assign_cells(boxes, mass_centres(masks), (80, 80), 8, ALL)
    assert cells.tolist() == [8 * i + j for i in (3, 4) for j in (3, 4)]  # 35.5 to 43.5


def test_a_centre_on_a_border_belongs_to_the_cell_that_begins_there():
    """4 · 40 / 32 is 5; in floats 4 / 32 / (1 / 40) may fall short of it."""
    boxes, centre = torch.tensor([[4.0, 4.0, 5.0, 5.0]]), torch.tensor([[4.0, 4.0]])
    cells, _ = assign_cells(boxes, centre.double(), (32, 32), 40, ALL)
    assert 5 * 40 + 5 in cells.tolist()


def test_both_ends_of_a_range_are_included():
    boxes, masks = rectangles((0, 0, 48, 48), (60, 20, 84, 44))
    for scales, expected in [((48, 96), [0]), ((24, 48), [0, 1]), ((1, 24), [1]), ((49, 96), [])]:
        _, instances = assign_cells(boxes, mass_centres(masks), (96, 128), 12, scales)
        assert sorted({*instances.tolist()}) == expected


def test_a_later_ground_truth_overwrites():
    boxes, masks = rectangles((20, 20, 60, 60), (30, 30, 50, 50))
    cells, instances = assign_cells(boxes, mass_centres(masks), (96, 128), 4, ALL)
    assert instances.tolist() == [1] * len(cells) and len(cells) > 0


def test_flipping_the_image_flips_the_cells():
    boxes, masks = rectangles((11, 9, 46, 61), (70, 30, 101, 77), (6, 60, 33, 90))
    side, centres = 9, mass_centres(masks)
    flipped = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([128, 0, 128, 0])
    cells, owners = assign_cells(boxes, centres, (96, 128), side, ALL)
    # Indices of pixels lie half a pixel before their centres: here no cell's border is so near.
    mirrored, _ = assign_cells(flipped, mass_centres(masks.flip(2)), (96, 128), side, ALL)
    rows, columns = cells // side, side - 1 - cells % side
    assert sorted((rows * side + columns).tolist()) == mirrored.tolist()
    assert {*owners.tolist()} == {0, 1, 2}


def test_masks_are_those_of_the_padded_image_at_each_stride():
    boxes, masks = random_rectangles(6)
    masks = masks & (torch.rand(masks.shape) < 0.7)
    masks[2] = False  # as augmentation may leave it
    assigner = GridAssigner((12, 6), (ALL, ALL), (4, 8))
    classes = torch.arange(6)
    targets = assigner(classes, boxes, masks, (96, 160))
    padded = F.pad(masks.float(), (0, 32))[None]
    for target, stride in zip(targets, (4, 8), strict=True):
        size = (96 // stride, 160 // stride)
        soft = F.interpolate(padded, size=size, mode="bilinear", align_corners=False)[0]
        expected = (soft >= 0.5)[[0, 1, 3, 4, 5]]
        assert target.masks.equal(expected)
        visible = classes[classes != 2]
        assert target.classes.equal(visible[target.instances])
        assert 2 not in target.classes


def test_nothing_to_predict():
    boxes, masks = rectangles()
    (target,) = GridAssigner((12,), (ALL,), (4,))(torch.zeros(0).long(), boxes, masks, (96, 128))
    assert len(target.cells) == len(target.classes) == len(target.masks) == 0
