"""SOLO's heads: numbers of the papers, and cheap forms against plain ones."""

import pytest
import torch
import torch.nn.functional as F

from isda.modeling.grid_head import DecoupledSOLOHead, SOLOHead, SOLOv2Head, grid_levels
from isda.modeling.mask_head import MaskFeatureHead

GRIDS = [40, 36, 24, 16, 12]
TINY = {
    "in_channels": 32,
    "num_classes": 3,
    "head_dim": 32,
    "num_convs": 1,
    "grid_sizes": [5, 4, 3, 2, 1],
}


def num_parameters(module):
    return sum(p.numel() for p in module.parameters())


def pyramid(channels=32, batch=2, dtype=torch.float64):
    """Strides 4 to 64 of an image of 96×160; Detectron2's p6 rounds up."""
    torch.manual_seed(0)
    sizes = [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)]
    return [torch.randn(batch, channels, *size, dtype=dtype) for size in sizes]


def test_numbers_of_parameters():
    full = {"in_channels": 256, "num_classes": 80, "grid_sizes": GRIDS}
    assert num_parameters(SOLOHead(**full, head_dim=256, num_convs=7)) == 9_448_816
    solov2 = SOLOv2Head(**full, head_dim=512, num_convs=4, kernel_dim=256)
    assert num_parameters(solov2) == 18_081_104
    assert num_parameters(MaskFeatureHead()) == 1_659_392


def test_levels_lie_at_the_strides_that_the_grids_are_for():
    features = pyramid()
    levels = grid_levels(features)
    assert [tuple(x.shape[-2:]) for x in levels] == [(12, 20), (12, 20), (6, 10), (3, 5), (3, 5)]
    half = F.interpolate(features[0], scale_factor=0.5, mode="bilinear", align_corners=False)
    torch.testing.assert_close(levels[0], half, rtol=0, atol=1e-12)
    last = F.interpolate(features[4], size=(3, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(levels[4], last, rtol=0, atol=1e-12)


def test_chosen_masks_of_solo_are_those_of_all_its_maps():
    """Products with a few rows, then enlarged, against a convolution of enlarged features."""
    torch.manual_seed(1)
    head = SOLOHead(**TINY).double()
    levels = grid_levels(pyramid())
    class_logits, masks = head(levels)
    for level, (side, conv) in enumerate(zip(TINY["grid_sizes"], head.masks, strict=True)):
        torch.nn.init.normal_(conv.weight)
        assert class_logits[level].shape == (2, 3, side, side)
        enlarged = F.interpolate(
            masks[level].features, scale_factor=2.0, mode="bilinear", align_corners=False
        )
        maps = conv(enlarged).sigmoid()  # (B, S·S, 2h, 2w)
        cells = torch.randperm(side**2)[:3]
        for image in range(2):
            found = masks[level].probs(image, cells)
            assert masks[level].size == tuple(found.shape[-2:])
            torch.testing.assert_close(found, maps[image, cells], rtol=0, atol=1e-12)


def test_decoupled_masks_are_products_of_a_column_and_a_row():
    head = DecoupledSOLOHead(**TINY).double()
    for conv in [*head.masks[0], *head.masks[1]]:
        torch.nn.init.normal_(conv.weight)
    _, masks = head(grid_levels(pyramid()))
    x, y = masks[0].columns.sigmoid(), masks[0].rows.sigmoid()
    i, j = 3, 1
    (found,) = masks[0].probs(1, torch.tensor([i * 5 + j]))
    torch.testing.assert_close(found, x[1, j] * y[1, i], rtol=0, atol=1e-12)
    assert found.std() > 0.01


def test_a_kernel_of_solov2_is_a_convolution():
    head = SOLOv2Head(**TINY, kernel_dim=8).double()
    torch.nn.init.normal_(head.kernels.weight)
    features = torch.randn(2, 8, 24, 40, dtype=torch.float64)
    _, masks = head(grid_levels(pyramid()), features)
    kernels = masks[1].kernels  # (2, 16, 8)
    expected = F.conv2d(features[1:], kernels[1][:, :, None, None])[0].sigmoid()
    found = masks[1].probs(1, torch.arange(16))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    swapped = masks[1].probs(1, torch.tensor([7, 2]))
    torch.testing.assert_close(swapped, expected[[7, 2]], rtol=0, atol=1e-12)


def test_the_kernel_of_a_cell_comes_from_its_place_on_the_grid():
    """A change of the level's upper right corner reaches that cell's kernel, not the opposite's."""
    torch.manual_seed(0)
    head = SOLOv2Head(**TINY | {"num_convs": 1}, kernel_dim=8).double()
    head.kernel_tower[0].norm = None  # which would spread the change
    levels = grid_levels(pyramid())
    features = torch.zeros(2, 8, 4, 4, dtype=torch.float64)
    before = head(levels, features)[1][0].kernels
    levels[0] = levels[0].clone()
    levels[0][:, :, :2, -4:] += 5
    changed = (head(levels, features)[1][0].kernels - before).abs().amax(dim=(0, 2)).view(5, 5)
    assert changed[0, 4] > 0
    assert changed[4, 0] == 0


@pytest.mark.parametrize("head_class", [SOLOHead, DecoupledSOLOHead])
def test_masks_see_coordinates(head_class):
    """Features that are alike everywhere still give masks that differ from place to place."""
    head = head_class(**TINY).double()
    levels = [torch.ones_like(x) for x in grid_levels(pyramid())]
    convs = head.masks if head_class is SOLOHead else [*head.masks[0], *head.masks[1]]
    for conv in convs:
        torch.nn.init.normal_(conv.weight)
    _, masks = head(levels)
    (mask,) = masks[0].probs(0, torch.tensor([6]))
    inner = mask[6:-6, 6:-6]  # zero padding makes borders differ anyway
    assert inner.std() > 1e-6
