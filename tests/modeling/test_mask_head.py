import math

import pytest
import torch
import torch.nn.functional as F

from isda.modeling.initialization import prior_bias
from isda.modeling.mask_head import InstanceHead, MaskFeatureHead, position_channels


def random_levels(channels, height=64, width=96, batch=2):
    """P2..P5 of padded images."""
    torch.manual_seed(1)
    return [torch.randn(batch, channels, height // s, width // s) for s in (4, 8, 16, 32)]


def with_larger_weights(head):
    """Random norms and weights of ordinary size: GroupNorm's epsilon counts for those of 0.01."""
    torch.manual_seed(0)
    for name, parameter in head.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.2)
    return head


def test_parameter_counts_of_the_paper():
    instance_head = InstanceHead(hidden_dim=256, num_classes=80, mask_dim=256, position=True)
    assert sum(p.numel() for p in instance_head.classes.parameters()) == 20_560
    assert sum(p.numel() for p in instance_head.kernels.parameters()) == 196_862
    assert sum(p.numel() for p in MaskFeatureHead().parameters()) == 1_659_392


def test_initialisation():
    torch.manual_seed(0)
    instance_head = InstanceHead(hidden_dim=256, num_classes=80, mask_dim=256, position=True)
    assert prior_bias() == pytest.approx(-math.log(99))
    torch.testing.assert_close(
        instance_head.classes.bias.sigmoid(), torch.full((80,), 0.01), rtol=1e-4, atol=0
    )
    # PyTorch's default for Linear: uniform up to 1 / sqrt(fan in).
    for linear in (instance_head.classes, *instance_head.kernels[::2]):
        assert linear.weight.abs().max() <= 1 / 16
        assert linear.weight.std().item() == pytest.approx(1 / 16 / math.sqrt(3), rel=0.05)
    weights = [p for p in MaskFeatureHead().parameters() if p.dim() == 4]
    assert len(weights) == 8
    for weight in weights:
        assert weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert weight.mean().item() == pytest.approx(0, abs=2e-4)


def test_no_convolution_has_a_bias():
    for module in MaskFeatureHead().modules():
        assert not isinstance(module, torch.nn.Conv2d) or module.bias is None


def test_kernels_carry_their_reference_points():
    torch.manual_seed(0)
    head = InstanceHead(hidden_dim=16, num_classes=3, mask_dim=8, position=True)
    states, points = torch.randn(4, 2, 5, 16), torch.rand(2, 5, 2)
    logits, kernels = head(states, points)
    assert logits.shape == (4, 2, 5, 3)
    assert kernels.shape == (4, 2, 5, 8)
    expected = torch.log(points / (1 - points)).expand(4, 2, 5, 2)
    torch.testing.assert_close(kernels[..., 6:], expected, rtol=1e-4, atol=1e-5)


def test_shifting_a_reference_point_changes_two_kernel_numbers():
    torch.manual_seed(0)
    head = InstanceHead(hidden_dim=16, num_classes=3, mask_dim=8, position=True)
    states, points = torch.randn(2, 1, 5, 16), torch.rand(1, 5, 2) * 0.5
    logits, kernels = head(states, points)
    shifted = points.clone()
    shifted[0, 3] += 0.3
    shifted_logits, shifted_kernels = head(states, shifted)
    assert torch.equal(logits, shifted_logits)
    changed = (kernels != shifted_kernels).nonzero().tolist()
    assert changed == [[layer, 0, 3, c] for layer in (0, 1) for c in (6, 7)]


def test_reference_points_at_the_border_are_clamped():
    head = InstanceHead(hidden_dim=16, num_classes=3, mask_dim=8, position=True)
    points = torch.tensor([[[0.0, 1.0], [1e-7, 1 - 1e-7]]])
    _, kernels = head(torch.zeros(1, 2, 16), points)
    limit = math.log((1 - 1e-5) / 1e-5)
    expected = torch.tensor([[[-limit, limit]] * 2])
    torch.testing.assert_close(kernels[..., 6:], expected, rtol=1e-3, atol=0)


def test_kernels_without_position():
    head = InstanceHead(hidden_dim=16, num_classes=3, mask_dim=8, position=False)
    states = torch.randn(2, 1, 5, 16)
    _, kernels = head(states, torch.rand(1, 5, 2))
    _, elsewhere = head(states, torch.rand(1, 5, 2))
    assert kernels.shape == (2, 1, 5, 8)
    assert torch.equal(kernels, elsewhere)


@pytest.mark.parametrize("cells", [(3, 5), (1, 1), (4, 2)])
def test_position_channels_against_loops(cells):
    height, width = cells
    # Whole cells: 33 pixels are two cells of 32; what the image has of one is not asked.
    sizes = [(32 * height, 32 * width), (32 * height - 31, 32 * width - 1), (20, 33), (7, 32)]
    sizes = [(h, w) for h, w in sizes if h <= 32 * height and w <= 32 * width]
    channels = position_channels(torch.zeros(len(sizes), 9, height, width), sizes)
    assert channels.shape == (len(sizes), 2, height, width)
    for image, size in enumerate(sizes):
        rows, columns = (math.ceil(pixels / 32) for pixels in size)
        for row in range(height):
            for column in range(width):
                x = 2 * column / (columns - 1) - 1 if columns > 1 else None
                y = 2 * row / (rows - 1) - 1 if rows > 1 else None
                for found, expected, cell in zip(
                    channels[image, :, row, column].tolist(), (x, y), (column, row), strict=True
                ):
                    if expected is None and cell == 0:
                        assert found == -1  # the only valid cell
                    elif expected is not None:
                        assert found == pytest.approx(expected, abs=1e-6)


def test_position_runs_from_minus_one_to_one_and_past_it_in_the_padding():
    channels = position_channels(torch.zeros(1, 4, 5, 7), [(3 * 32, 4 * 32)])
    assert channels[0, 0, 0].tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1, 5 / 3, 7 / 3, 3])
    assert channels[0, 1, :, 0].tolist() == pytest.approx([-1, 0, 1, 2, 3])


def convolved(x, conv, padding):
    x = F.conv2d(x, conv.weight, padding=padding)
    return F.group_norm(x, min(32, x.shape[1] // 2), conv.norm.weight, conv.norm.bias).relu()


def doubled(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def mask_features(head, levels, image_sizes, position):
    """The paper's description, level by level."""
    p2, p3, p4, p5 = levels
    if position:
        x_and_y = position_channels(p5, image_sizes)
        p5 = torch.cat([p5, x_and_y], dim=1)
    (c2,), (c3, _), (c41, _, c42, _), (c51, _, c52, _, c53, _) = head.branches
    total = convolved(p2, c2, 1)
    total = total + doubled(convolved(p3, c3, 1))
    total = total + doubled(convolved(doubled(convolved(p4, c41, 1)), c42, 1))
    p5 = doubled(convolved(doubled(convolved(p5, c51, 1)), c52, 1))
    total = total + doubled(convolved(p5, c53, 1))
    return convolved(total, head.output, 0)


@pytest.mark.parametrize("position", [True, False])
def test_mask_features_against_another_formulation(position):
    head = MaskFeatureHead(hidden_dim=16, head_dim=32, mask_dim=64, position=position)
    with_larger_weights(head)
    levels, sizes = random_levels(16), [(64, 96), (50, 40)]
    expected = mask_features(head, levels, sizes, position)
    found = head(levels, sizes)
    assert found.shape == (2, 64, 16, 24)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_position_comes_last_and_only_with_p5():
    head = MaskFeatureHead(hidden_dim=16, head_dim=32, mask_dim=32)
    inputs = [branch[0].weight.shape[1] for branch in head.branches]
    assert inputs == [16, 16, 16, 18]
    with torch.no_grad():
        head.branches[3][0].weight[:, 16:] = 0  # as if there were no position
    levels = random_levels(16)
    assert torch.equal(head(levels, [(64, 96)] * 2), head(levels, [(30, 30)] * 2))


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_strides_share_parameters(stride):
    sizes = [(64, 96), (50, 40)]
    reference = with_larger_weights(MaskFeatureHead(hidden_dim=16, head_dim=32, mask_dim=32))
    head = MaskFeatureHead(hidden_dim=16, head_dim=32, mask_dim=32, mask_stride=stride)
    head.load_state_dict(reference.state_dict())
    features = head(random_levels(16), sizes)
    assert features.shape == (2, 32, 64 // stride, 96 // stride)
    assert features.std() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_stride": 3}, "mask_stride must be one of 1, 2, 4, 8, got 3"),
        ({"mask_stride": 0}, "mask_stride must be one of 1, 2, 4, 8, got 0"),
        ({"head_dim": 100}, "head_dim must be a positive multiple of 32, .*got 100"),
        ({"mask_dim": 0}, "mask_dim must be a positive multiple of 32, .*got 0"),
    ],
)
def test_messages_of_the_mask_feature_head(changes, message):
    with pytest.raises(ValueError, match=message):
        MaskFeatureHead(**changes)


@pytest.mark.parametrize("num_classes", [0, -1])
def test_message_of_the_instance_head(num_classes):
    message = f"num_classes must be at least 1, got {num_classes}"
    with pytest.raises(ValueError, match=message):
        InstanceHead(hidden_dim=16, num_classes=num_classes, mask_dim=8, position=True)
