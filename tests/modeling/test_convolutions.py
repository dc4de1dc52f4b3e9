import pytest
import torch

from isda.modeling.convolutions import group_norm, normed_conv


@pytest.mark.parametrize(("channels", "groups"), [(32, 16), (64, 32), (96, 32), (256, 32)])
def test_a_group_has_two_channels_at_least(channels, groups):
    norm = group_norm(channels)
    assert (norm.num_groups, norm.num_channels) == (groups, channels)
    cell = torch.randn(1, channels, 1, 1)
    grouped = cell.view(groups, -1)
    centred = grouped - grouped.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(norm(cell), expected.view_as(cell))


def test_convolution_norm_and_relu_keep_the_size():
    for kernel_size in (1, 3):
        conv = normed_conv(5, 64, kernel_size)
        out = conv(torch.randn(2, 5, 6, 7))
        assert out.shape == (2, 64, 6, 7)
        assert out.min() == 0 < out.max()
        assert conv.bias is None
    assert not normed_conv(5, 64, bias=True).bias.any()
