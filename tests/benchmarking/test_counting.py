"""Counts against products written down by hand."""

import pytest
import torch
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from small_models import SMALL, random_image, small_model
from torch import nn

from isda.benchmarking.counting import count_flops, count_parameters
from isda.benchmarking.workload import load_config
from isda.layers import MSDeformAttention

HEIGHT, WIDTH = 6, 10


class Toy(nn.Module):
    """A convolution, then attention of two kinds over its cells, then a product of its own."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.transformer = nn.Module()
        self.transformer.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.transformer.forward = self.attend
        self.neck = MSDeformAttention(8, num_levels=2, num_heads=2, num_points=3)

    def attend(self, queries):
        return self.transformer.attention(queries, queries, queries, need_weights=False)[0]

    def forward(self, inputs):
        cells = self.backbone(inputs[0]["image"].float()[None]).flatten(2).transpose(1, 2)
        queries = self.transformer(cells[:, :7])
        points = torch.full((1, 7, 2, 2), 0.5)
        # The cells are two levels, of five rows and of one.
        queries = self.neck(queries, points, cells, [(5, WIDTH), (1, WIDTH)])
        return queries @ queries.transpose(1, 2)


@pytest.fixture(scope="module")
def counted():
    toy = Toy().eval()
    fused = torch.backends.mha.get_fastpath_enabled()
    result = count_flops(toy, [{"image": torch.zeros(3, HEIGHT, WIDTH)}])
    assert torch.backends.mha.get_fastpath_enabled() == fused
    return result


def test_convolution(counted):
    assert counted[0]["backbone"] == HEIGHT * WIDTH * 8 * 3 * 3 * 3


def test_attention(counted):
    projections = 7 * 8 * 8 * 4  # queries, keys, values, output
    pairs = 2 * 7 * 7 * 4 * 2  # heads, pairs, channels of a head, products
    assert counted[0]["transformer"] == projections + pairs


def test_deformable_attention(counted):
    queries, tokens, heads, levels, points = 7, HEIGHT * WIDTH, 2, 2, 3
    samples = heads * levels * points
    linear = queries * 8 * (2 * samples + samples + 8) + tokens * 8 * 8
    sampling = queries * samples * 4 * 4  # neighbours, channels of a head
    assert counted[0]["neck"] == linear + sampling


def test_what_belongs_to_no_module(counted):
    assert counted[0]["postprocessing"] == 7 * 7 * 8
    assert set(counted[0]) == {"backbone", "transformer", "neck", "postprocessing"}


@pytest.mark.parametrize("config", ["shapes/isda_tiny", "shapes/istr_tiny"])
def test_components_share_all_parameters(config):
    model = build_model(load_config(config, ["MODEL.DEVICE", "cpu"]))
    counts = count_parameters(model)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    backbone = model.backbone if config.endswith("isda_tiny") else model.backbone.bottom_up
    assert counts["backbone"] == sum(p.numel() for p in backbone.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_every_method_can_be_counted(name):
    """Nothing on the way to instances stops the tracer; the backbone costs what it does alone."""
    model = small_model(name).eval()
    image = random_image(64, 96).permute(2, 0, 1)
    assert len(model([{"image": image}])[0]["instances"]) > 0
    counts, _ = count_flops(model, [{"image": image}])
    network = getattr(model.backbone, "bottom_up", model.backbone)  # without the feature pyramid
    backbone = FlopCountAnalysis(network, torch.zeros(1, 3, 64, 96))
    backbone.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    backbone.tracer_warnings("none")
    assert counts["backbone"] == backbone.total()
    assert all(count > 0 for count in counts.values())
