import math

import pytest
import torch

from isda.modeling.ellipse import EllipseHead, ellipse_channels, ellipse_kernels
from isda.modeling.mask_head import InstanceHead, MaskFeatureHead


def ellipse_by_loops(centre, radii, strength, size, stride, image_size):
    """The formula at every cell's centre, in float64, one cell at a time."""
    logits = torch.zeros(*size, dtype=torch.float64)
    for row in range(size[0]):
        for column in range(size[1]):
            x = (column + 0.5) * stride / image_size[1]
            y = (row + 0.5) * stride / image_size[0]
            distance = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2
            logits[row, column] = strength * (1 - distance)
    return logits


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("radius", [0.02, 0.1, 0.7])
def test_product_of_kernels_and_channels_is_an_ellipse(stride, radius):
    torch.manual_seed(0)
    centres = torch.rand(4, 2)
    radii = radius * (0.5 + torch.rand(4, 2))
    strengths = torch.tensor([0.1, 2.0, 2.0, 40.0])
    features = torch.zeros(2, 3, 12, 20)
    image_sizes = [(12 * stride, 20 * stride), (9 * stride, 15 * stride - 1)]
    channels = ellipse_channels(features, stride, image_sizes)
    logits = torch.einsum(
        "nc,bchw->bnhw", ellipse_kernels(centres, radii, strengths), channels
    ).double()
    for image, image_size in enumerate(image_sizes):
        for n in range(4):
            expected = ellipse_by_loops(
                centres[n].tolist(),
                radii[n].tolist(),
                strengths[n].item(),
                (12, 20),
                stride,
                image_size,
            )
            # In units of the strength: the bound that the docstring states, and rounding.
            error = (logits[image, n] - expected).abs() / strengths[n]
            size_of_result = 1 + expected.abs() / strengths[n]
            assert (error <= 2e-4 * (0.02 / radius) ** 2 + 1e-6 * size_of_result).all()


def test_head_starts_with_the_box_and_stays_within_bounds():
    torch.manual_seed(0)
    head, states = EllipseHead(16), 100 * torch.randn(5, 16)
    boxes = torch.rand(5, 4)
    centres, radii, strengths = head(states, boxes)
    assert torch.equal(centres, boxes[:, :2])
    torch.testing.assert_close(radii, 0.6 * boxes[:, 2:])
    torch.testing.assert_close(strengths, torch.full((5,), 2.0))
    torch.nn.init.normal_(head.adjustment.weight)
    _, radii, strengths = head(states, boxes)
    ratio = radii / (0.6 * boxes[:, 2:])
    assert ratio.max() <= math.e * 1.0001
    assert ratio.min() >= 0.9999 / math.e
    assert strengths.max() <= 2 * math.exp(3) * 1.0001
    assert strengths.min() >= 2 * math.exp(-3) * 0.9999
    assert len(strengths.unique()) > 1


def test_vanishing_boxes_keep_logits_and_gradients_finite():
    boxes = torch.tensor([[0.5, 0.5, 0.0, 1e-12]], requires_grad=True)
    kernels = ellipse_kernels(*EllipseHead(16)(torch.randn(1, 16), boxes))
    logits = kernels @ ellipse_channels(torch.zeros(1, 1, 4, 4), 4, [(16, 16)])[0].flatten(1)
    logits.sigmoid().sum().backward()
    assert logits.isfinite().all()
    assert boxes.grad.isfinite().all()


def test_autocast_leaves_ellipses_in_float32():
    torch.manual_seed(0)
    head = InstanceHead(hidden_dim=32, num_classes=2, mask_dim=32, position=False, ellipse=True)
    features = MaskFeatureHead(hidden_dim=32, head_dim=32, mask_dim=32, ellipse=True)
    states, boxes = torch.randn(1, 5, 32), torch.rand(1, 5, 4)
    levels = [torch.randn(1, 32, 16 >> level, 16 >> level) for level in range(4)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, kernels = head(states.bfloat16(), boxes[..., :2], boxes)
        maps = features(levels, [(61, 64)])
    assert kernels.dtype == maps.dtype == torch.float32
    exact = ellipse_kernels(*head.ellipse(states.bfloat16().float(), boxes))
    assert torch.equal(kernels[..., -5:], exact)
    assert torch.equal(maps[:, -5:], ellipse_channels(maps, 4, [(61, 64)]))


@pytest.mark.parametrize("mask_stride", [1, 2, 4])
def test_enlarging_features_is_enlarging_logits(mask_stride):
    torch.manual_seed(0)
    sizes = {"hidden_dim": 32, "head_dim": 32, "mask_dim": 32}
    coarse = MaskFeatureHead(**sizes)
    fine = MaskFeatureHead(**sizes, mask_stride=mask_stride, feature_stride=4)
    fine.load_state_dict(coarse.state_dict())
    levels = [torch.randn(2, 32, 16 >> level, 24 >> level) for level in range(4)]
    kernels, image_sizes = torch.randn(2, 3, 32), [(64, 96), (50, 71)]
    logits = torch.einsum("bnc,bchw->bnhw", kernels, coarse(levels, image_sizes))
    enlarged = torch.nn.functional.interpolate(
        logits, scale_factor=4 / mask_stride, mode="bilinear", align_corners=False
    )
    found = torch.einsum("bnc,bchw->bnhw", kernels, fine(levels, image_sizes))
    torch.testing.assert_close(found, enlarged)


@pytest.mark.parametrize(("mask_stride", "feature_stride"), [(3, 4), (4, 2), (1, None), (2, 1)])
def test_strides_that_do_not_go_together(mask_stride, feature_stride):
    with pytest.raises(ValueError, match="(mask|feature)_stride must"):
        MaskFeatureHead(mask_stride=mask_stride, feature_stride=feature_stride)
