"""A tiny ISDA, a tiny ISTR and inputs for them."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from isda.meta_arch.isda import ISDA
from isda.meta_arch.istr import ISTR
from isda.modeling.deformable_transformer import DeformableTransformer
from isda.modeling.denoising import DenoisingQueries
from isda.modeling.mask_embedding import MaskEmbedding
from isda.modeling.mask_head import InstanceHead, MaskFeatureHead
from isda.modeling.neck import Neck
from isda.modeling.query_selection import QuerySelection
from isda.modeling.reference_boxes import ReferenceBoxes
from isda.modeling.refinement import LearnedQueries, RefinementHead, RefinementStep, build_pooler
from isda.training.criterion import EmbeddingCriterion, MaskCriterion
from isda.training.matching import EmbeddingMatcher, MaskMatcher

NAMES = ["res2", "res3", "res4", "res5"]


class PatchBackbone(Backbone):
    """Strides 4 to 32; no cell looks at its neighbours, and zeros stay zeros."""

    def __init__(self, channels: int = 16):
        super().__init__()
        sizes = [(3, 4), (channels, 2), (channels, 2), (channels, 2)]
        self.stages = nn.ModuleList(
            nn.Conv2d(inputs, channels, side, stride=side, bias=False) for inputs, side in sizes
        )
        self.channels = channels

    def forward(self, x):
        features = {}
        for name, stage in zip(NAMES, self.stages, strict=True):
            features[name] = x = F.leaky_relu(stage(x), 0.5)
        return features

    def output_shape(self):
        return {
            name: ShapeSpec(channels=self.channels, stride=4 * 2**index)
            for index, name in enumerate(NAMES)
        }


def build_tiny_isda(
    *,
    backbone: Backbone | None = None,
    num_classes: int = 3,
    mask_stride: int = 4,
    mask_position: bool = True,
    kernel_position: bool = True,
    max_instances: int = 100,
    **transformer_sizes,
) -> ISDA:
    torch.manual_seed(0)
    backbone = backbone or PatchBackbone()
    sizes = {"num_queries": 10, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
    return ISDA(
        backbone=backbone,
        neck=Neck(backbone.output_shape(), in_features=NAMES, hidden_dim=64),
        transformer=DeformableTransformer(
            hidden_dim=64, num_heads=4, feedforward_dim=64, **(sizes | transformer_sizes)
        ),
        instance_head=InstanceHead(
            hidden_dim=64, num_classes=num_classes, mask_dim=32, position=kernel_position
        ),
        mask_feature_head=MaskFeatureHead(
            hidden_dim=64,
            head_dim=32,
            mask_dim=32,
            mask_stride=mask_stride,
            position=mask_position,
        ),
        criterion=MaskCriterion(MaskMatcher()),
        pixel_mean=(120.0, 115.0, 105.0),
        pixel_std=(58.0, 57.0, 57.5),
        max_instances=max_instances,
    )


def build_tiny_isda_boxes(
    *,
    num_classes: int = 3,
    mask_stride: int = 2,
    refine: bool = True,
    selection: bool = True,
    relative: bool = True,
    exact_extent: bool = True,
    token_content: bool = True,
    relation: bool = True,
    ellipse: bool = True,
    num_noised: int = 12,
    num_mask_points: int = 0,
    num_queries: int = 10,
    max_instances: int = 100,
    **transformer_sizes,
) -> ISDA:
    """With boxes, and with what else is not switched off."""
    torch.manual_seed(0)
    backbone = PatchBackbone()
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
    return ISDA(
        backbone=backbone,
        neck=Neck(backbone.output_shape(), in_features=NAMES, hidden_dim=64),
        transformer=DeformableTransformer(
            hidden_dim=64,
            num_heads=4,
            feedforward_dim=64,
            num_queries=num_queries,
            reference_boxes=ReferenceBoxes(64, refine, relative),
            query_selection=QuerySelection(64, num_classes, num_queries, relative)
            if selection
            else None,
            exact_extent=exact_extent,
            token_content=selection and token_content,
            query_relation=relation,
            **(sizes | transformer_sizes),
        ),
        instance_head=InstanceHead(
            hidden_dim=64, num_classes=num_classes, mask_dim=32, position=False, ellipse=ellipse
        ),
        mask_feature_head=MaskFeatureHead(
            hidden_dim=64,
            head_dim=32,
            mask_dim=32,
            mask_stride=mask_stride,
            feature_stride=4,
            ellipse=ellipse,
        ),
        criterion=MaskCriterion(MaskMatcher()),
        pixel_mean=(120.0, 115.0, 105.0),
        pixel_std=(58.0, 57.0, 57.5),
        max_instances=max_instances,
        denoising=DenoisingQueries(64, num_classes, num_noised) if num_noised else None,
        num_mask_points=num_mask_points,
    )


def build_tiny_istr(
    *,
    num_classes: int = 3,
    num_queries: int = 10,
    num_steps: int = 3,
    embedding_dim: int = 20,
    image_feature: bool = True,
    mask_embedding: MaskEmbedding | None = None,
    max_instances: int = 100,
    **weights,
) -> ISTR:
    torch.manual_seed(0)
    backbone = PatchBackbone(channels=32)
    steps = [
        RefinementStep(
            num_classes=num_classes,
            embedding_dim=embedding_dim,
            hidden_dim=32,
            num_heads=4,
            feedforward_dim=48,
            dynamic_dim=8,
            roi_size=3,
        )
        for _ in range(num_steps)
    ]
    mask_embedding = mask_embedding or MaskEmbedding.from_file("shipped", dim=embedding_dim)
    return ISTR(
        backbone=backbone,
        in_features=NAMES,
        queries=LearnedQueries(num_queries=num_queries, hidden_dim=32, image_feature=image_feature),
        refinement=RefinementHead(steps, build_pooler((4, 8, 16, 32), 3)),
        mask_embedding=mask_embedding,
        criterion=EmbeddingCriterion(EmbeddingMatcher(), mask_embedding.decode, **weights),
        pixel_mean=(120.0, 115.0, 105.0),
        pixel_std=(58.0, 57.0, 57.5),
        max_instances=max_instances,
    )


def make_input(height, width, num_instances=3, num_classes=3, seed=0) -> dict:
    """A noise image with rectangles of at least 9 pixels a side (or the image's)."""
    generator = torch.Generator().manual_seed(seed)

    def random(limit):
        return int(torch.randint(max(limit, 1), (), generator=generator))

    masks = torch.zeros(num_instances, height, width, dtype=torch.bool)
    for mask in masks:
        top, left = random(height - 8), random(width - 8)
        mask[top : top + 9 + random(height // 2), left : left + 9 + random(width // 2)] = True
    instances = Instances((height, width))
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = Boxes(instances.gt_masks.get_bounding_boxes().tensor)
    instances.gt_classes = torch.randint(num_classes, (num_instances,), generator=generator)
    image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "instances": instances}


def make_attentive(model: ISDA) -> ISDA:
    """A fresh deformable attention ignores its query; here it depends on it."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "sampling_offsets" in name or "attention_weights" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


_ZEROS = (
    *("head.layers.4.weight", "boxes.layers.4.weight", "adjustment.weight"),
    *("relation.bias.weight", "relation.value.weight"),
)


def make_confident(model: ISDA) -> ISDA:
    """Weights as if trained: a fresh model's scores and mask probabilities are all alike."""
    make_attentive(model)
    nn.init.normal_(model.instance_head.classes.weight, std=0.3)
    nn.init.normal_(model.instance_head.classes.bias)
    nn.init.normal_(model.instance_head.kernels[-1].weight, std=0.5)
    for name, parameter in model.named_parameters():
        # What starts at zero: boxes that do not move, ellipses that fit them, relations unused.
        if name.endswith(_ZEROS):
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def tiny_isda():
    return build_tiny_isda


@pytest.fixture
def tiny_isda_boxes():
    return build_tiny_isda_boxes


@pytest.fixture
def tiny_istr():
    return build_tiny_istr


@pytest.fixture
def random_input():
    return make_input


@pytest.fixture
def attentive():
    return make_attentive


@pytest.fixture
def confident():
    return make_confident
