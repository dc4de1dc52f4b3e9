import pytest
import torch
import torch.nn.functional as F

from isda.modeling.dynamic_masks import DynamicMasks
from isda.modeling.mask_branch import FusedMaskBranch, SemanticHead, norm_for

HEAD = DynamicMasks()


def random_instances(count=5, size=(6, 9), seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    strides = 2.0 ** torch.randint(3, 8, (count,), generator=generator).double()
    return random(count, 169), random(8, *size), 40 * random(count, 2), strides


def by_grouped_convolution(parameters, features, points, strides, stride):
    """The authors' form, one grouped convolution per layer over n copies of the features.

    Returns the pre-activations of the first layer ``(n, 8, h, w)`` and the logits.
    """
    count, (height, width) = len(parameters), features.shape[1:]
    copies = []
    for (x, y), level_stride in zip(points.tolist(), strides.tolist(), strict=True):
        maps = torch.empty(2, height, width, dtype=torch.float64)
        for i in range(height):
            for j in range(width):
                maps[0, i, j] = (x - (j * stride + stride / 2)) / (8 * level_stride)
                maps[1, i, j] = (y - (i * stride + stride / 2)) / (8 * level_stride)
        copies.append(torch.cat([maps, features]))
    w1, w2, w3, b1, b2, b3 = parameters.split([80, 64, 8, 8, 8, 1], dim=1)
    x = torch.cat(copies)[None]
    first = F.conv2d(x, w1.reshape(-1, 10, 1, 1), b1.flatten(), groups=count)
    x = F.conv2d(first.relu(), w2.reshape(-1, 8, 1, 1), b2.flatten(), groups=count).relu()
    logits = F.conv2d(x, w3.reshape(-1, 8, 1, 1), b3.flatten(), groups=count)
    return first.view(count, 8, height, width), logits[0]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_products_equal_the_grouped_convolution(count):
    inputs = random_instances(count)
    found = HEAD(*inputs, 8)
    assert found.shape == (count, 6, 9)
    if count:
        torch.testing.assert_close(
            found, by_grouped_convolution(*inputs, 8)[1], atol=1e-12, rtol=1e-12
        )


def test_float32_is_precise_far_from_an_instance():
    """The difference of two products replaces the product of a difference."""
    parameters, _, _, strides = random_instances(20)
    features = random_instances(1, (100, 168))[1]
    points = torch.rand(20, 2, dtype=torch.float64) * torch.tensor([1344.0, 800.0])
    exact = HEAD(parameters, features, points, strides, 8)
    found = HEAD(*(x.float() for x in (parameters, features, points, strides)), 8)
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


def test_bfloat16_parameters_are_computed_in_float32():
    inputs = [x.float() for x in random_instances()]
    rounded = [inputs[0].bfloat16(), inputs[1].bfloat16(), *inputs[2:]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = HEAD(*rounded, 8)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, HEAD(*(x.float() for x in rounded), 8))


def test_moving_an_instance_shifts_its_first_layer():
    """By W_xy · d / size at every cell; seen through layers that pass channel 0 on."""
    parameters, features, points, strides = random_instances(3)
    w1, _, _, b1, _, _ = parameters.split([80, 64, 8, 8, 8, 1], dim=1)
    w2, w3 = torch.zeros(3, 8, 8), torch.zeros(3, 8)
    w2[:, 0, 0] = w3[:, 0] = 1
    b1 = b1 + 1e3  # so that no ReLU cuts anything off
    zeros = torch.zeros(3, 9)
    passing = torch.cat([w1, w2.flatten(1), w3, b1, zeros], dim=1)
    d = torch.tensor([3.0, -7.0], dtype=torch.float64)
    shift = HEAD(passing, features, points + d, strides, 8) - HEAD(
        passing, features, points, strides, 8
    )
    of_place = w1.view(3, 8, 10)[:, 0, :2]
    expected = (of_place * d).sum(dim=1) / (8 * strides)
    torch.testing.assert_close(shift, expected[:, None, None].expand(3, 6, 9), atol=1e-9, rtol=0)


def test_a_diamond_around_the_location():
    """ReLU(±Δx), ReLU(±Δy); passed on; then t − their sum: |Δx| + |Δy| < t."""
    w1, w2, w3 = torch.zeros(8, 10), torch.eye(8), torch.zeros(8)
    for unit, (axis, sign) in enumerate([(0, 1), (0, -1), (1, 1), (1, -1)]):
        w1[unit, axis] = sign
        w3[unit] = -1
    t, stride, size = 0.5, 8, 64  # an instance of P3: distances are in 64 pixels
    biases = torch.zeros(17)
    biases[-1] = t
    parameters = torch.cat([w1.flatten(), w2.flatten(), w3, biases])[None]
    x, y = 52.0, 44.0
    logits = HEAD(
        parameters, torch.randn(8, 12, 14), torch.tensor([[x, y]]), torch.tensor([8.0]), 8
    )
    for i in range(12):
        for j in range(14):
            away = abs(x - (j + 0.5) * stride) + abs(y - (i + 0.5) * stride)
            assert logits[0, i, j].item() == pytest.approx(t - away / size, abs=1e-5)


def test_parameters_come_in_the_authors_order():
    assert HEAD.num_parameters == 169
    assert DynamicMasks(4, 6).num_parameters == 6 * 6 + 36 + 6 + 6 + 6 + 1


# ---- the branches ----


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_the_branches():
    levels = [256, 256, 256]
    condinst = FusedMaskBranch(
        in_channels=levels, out_channels=8, num_convs=4, norm="BN", aligned=True
    )
    assert count(condinst) == 1_477_384
    bases = FusedMaskBranch(
        in_channels=levels,
        out_channels=4,
        num_convs=3,
        norm="BN",
        aligned=False,
        final_upsampling=True,
    )
    assert count(bases) == 1_476_868
    heads = [
        SemanticHead(in_channels=256, out_channels=n, norm="BN", is_sigmoid=is_sigmoid)
        for n, is_sigmoid in ((80, True), (81, False))
    ]
    assert [count(head) for head in heads] == [453_200, 453_329]
    assert heads[0].output.bias.detach().sigmoid().allclose(torch.tensor(0.01))
    assert heads[1].output.bias.detach().abs().max() < 0.1


def test_a_branch_is_its_sum():
    torch.manual_seed(0)
    branch = FusedMaskBranch(
        in_channels=[3, 4], out_channels=2, width=8, num_convs=1, norm="BN", aligned=False
    ).eval()
    levels = [torch.randn(2, 3, 4, 6), torch.randn(2, 4, 2, 3)]
    fine, coarse = (conv(x) for conv, x in zip(branch.levels, levels, strict=True))
    coarse = F.interpolate(coarse, size=(4, 6), mode="bilinear", align_corners=False)
    expected = branch.output(branch.convs[0](fine + coarse))
    torch.testing.assert_close(branch(levels), expected)


@pytest.mark.parametrize(("final_upsampling", "size"), [(False, (4, 5)), (True, (8, 10))])
def test_the_last_upsampling(final_upsampling, size):
    branch = FusedMaskBranch(
        in_channels=[3],
        out_channels=2,
        width=32,
        num_convs=1,
        norm="GN",
        aligned=False,
        final_upsampling=final_upsampling,
    )
    assert branch([torch.randn(2, 3, 4, 5)]).shape == (2, 2, *size)


def test_norms_of_a_device():
    assert norm_for("SyncBN", "cuda") == "SyncBN"
    assert norm_for("SyncBN", "cpu") == "naiveSyncBN"
    assert [norm_for(norm, "cpu") for norm in ("BN", "GN", "")] == ["BN", "GN", ""]
