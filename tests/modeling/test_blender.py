import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign

from isda.modeling.blender import Blender

BLENDER = Blender(4, attention_size=14, mask_size=56)
BOXES = [torch.tensor([[8.0, 4.0, 60.0, 44.0], [0.0, 0.0, 30.0, 64.0]]), torch.zeros(0, 4)]


def regions(num_bases=4):
    torch.manual_seed(0)
    bases = torch.randn(2, num_bases, 16, 24)
    return bases, BLENDER.pool(bases, BOXES)


def test_regions_are_roi_align_version_2():
    bases, found = regions()
    align = ROIAlign((56, 56), 0.25, sampling_ratio=1, aligned=True)
    expected = align(bases, F.pad(BOXES[0], (1, 0)))
    assert found.equal(expected)


def test_blending_against_loops():
    _, found = regions()
    attention = torch.randn(2, 4 * 14 * 14)
    logits = BLENDER.blend(found, attention)
    for instance in range(2):
        maps = attention[instance].view(1, 4, 14, 14)
        maps = F.interpolate(maps, size=(56, 56), mode="bilinear", align_corners=False)[0]
        for i, j in [(0, 0), (3, 50), (27, 28), (55, 55), (55, 0)]:
            weights = [float(maps[k, i, j].exp()) for k in range(4)]
            mean = sum(w * float(found[instance, k, i, j]) for k, w in enumerate(weights)) / sum(
                weights
            )
            assert logits[instance, i, j].item() == pytest.approx(mean, rel=1e-4, abs=1e-5)


def test_equal_bases_leave_nothing_to_attention():
    base = torch.randn(1, 1, 16, 24).expand(1, 4, 16, 24)
    pooled = BLENDER.pool(base, BOXES[:1])
    logits = BLENDER.blend(pooled, 5 * torch.randn(2, 784))
    torch.testing.assert_close(logits, pooled[:, 0])


@pytest.mark.parametrize("chosen", [0, 3])
def test_a_dominating_channel_selects_its_basis(chosen):
    _, found = regions()
    attention = torch.zeros(2, 4, 14, 14)
    attention[:, chosen] = 100
    torch.testing.assert_close(BLENDER.blend(found, attention.flatten(1)), found[:, chosen])


def test_no_box():
    bases, _ = regions()
    pooled = BLENDER.pool(bases, [BOXES[1], BOXES[1]])
    assert BLENDER.blend(pooled, torch.zeros(0, 784)).shape == (0, 56, 56)


def test_boxes_keep_their_place_in_half_precision():
    bases, found = regions()
    half = BLENDER.pool(bases.bfloat16(), [b + 300.3 for b in BOXES])
    exact = BLENDER.pool(bases.bfloat16().float(), [b + 300.3 for b in BOXES])
    assert half.dtype == torch.float32
    assert half.equal(exact)
