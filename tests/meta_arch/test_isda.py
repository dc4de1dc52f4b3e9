import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from gradients import backward, without_gradient
from torch import nn

from isda import add_isda_config

NAMES = ["res2", "res3", "res4", "res5"]


def small_config():
    cfg = get_cfg()
    add_isda_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ISDA"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = NAMES
    cfg.MODEL.ISDA.NUM_CLASSES = 3
    cfg.MODEL.ISDA.HIDDEN_DIM = 64
    cfg.MODEL.ISDA.NUM_QUERIES = 10
    cfg.MODEL.ISDA.ENCODER_LAYERS = cfg.MODEL.ISDA.DECODER_LAYERS = 2
    cfg.MODEL.ISDA.FEEDFORWARD_DIM = 64
    cfg.MODEL.ISDA.MASK_HEAD_DIM = cfg.MODEL.ISDA.MASK_DIM = 32
    cfg.MODEL.ISDA.DROPOUT = 0.0
    return cfg


def mask_branch(model):
    """What only the mask loss reaches."""
    parts = [(n, m) for n, m in model.named_children() if n == "mask_feature_head"]
    parts.append(("instance_head.kernels", model.instance_head.kernels))
    return {f"{prefix}.{n}" for prefix, m in parts for n, _ in m.named_parameters()}


# ---- training ----


@pytest.mark.parametrize(
    ("sizes", "counts", "num_classes"),
    [
        ([(96, 128), (128, 96)], (3, 2), 3),
        ([(96, 128)], (3,), 1),
        ([(96, 128)], (3,), 4),
        ([(97, 131), (65, 99)], (3, 2), 3),
        ([(7, 200), (131, 1)], (3, 2), 3),
        ([(96, 128), (128, 96)], (0, 2), 3),
        ([(96, 128), (96, 128)], (500, 1), 3),
    ],
)
def test_training_reaches_every_parameter(
    tiny_isda, attentive, random_input, sizes, counts, num_classes
):
    model = attentive(tiny_isda(num_classes=num_classes))
    inputs = [
        random_input(*size, count, num_classes, seed)
        for seed, (size, count) in enumerate(zip(sizes, counts, strict=True))
    ]
    losses = backward(model, inputs)
    assert sorted(losses) == ["loss_cls", "loss_cls_0", "loss_mask", "loss_mask_0"]
    assert all(loss > 0 for loss in losses.values())
    assert without_gradient(model) == set()


@pytest.mark.parametrize("batch", [1, 2])
def test_training_without_any_instance(tiny_isda, attentive, random_input, batch):
    model = attentive(tiny_isda())
    losses = backward(model, [random_input(96, 128, num_instances=0)] * batch)
    assert losses["loss_mask"] == losses["loss_mask_0"] == 0
    assert losses["loss_cls"] > 0
    idle = without_gradient(model)
    # The finest neck level feeds mask features only.
    assert idle == mask_branch(model) | {n for n in idle if n.startswith("neck.projections.0.")}
    assert len(idle) > len(mask_branch(model))


@pytest.mark.parametrize("mask_stride", [2, 4, 8])
@pytest.mark.parametrize(("mask_position", "kernel_position"), [(False, False), (True, False)])
def test_training_of_the_ablations(
    tiny_isda, attentive, random_input, mask_stride, mask_position, kernel_position
):
    model = tiny_isda(
        mask_stride=mask_stride, mask_position=mask_position, kernel_position=kernel_position
    )
    backward(attentive(model), [random_input(97, 131)])
    assert without_gradient(model) == set()


def test_gradient_checkpointing_in_the_whole_model(tiny_isda, random_input):
    results = []
    for checkpointing in (False, True):
        model = tiny_isda(gradient_checkpointing=checkpointing)
        losses = backward(model, [random_input(96, 128)])
        results.append([*losses.values(), *(p.grad for p in model.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_bfloat16_autocast(tiny_isda, attentive, random_input):
    inputs = [random_input(96, 128), random_input(65, 99, seed=1)]
    exact = attentive(tiny_isda())(inputs)
    model = attentive(tiny_isda())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.05), name
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert without_gradient(model) == set()


@pytest.mark.slow
def test_training_learns_one_image(tiny_isda, random_input):
    model, x = tiny_isda(), random_input(64, 64, num_instances=2)
    x["image"][:] = 60
    for mask, colour in zip(x["instances"].gt_masks.tensor, (150, 250), strict=True):
        x["image"][:, mask] = colour
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(80):
        loss = sum(model([x]).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.4 * totals[0]
    with torch.no_grad():
        (exact,) = model.eval()([x])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (reduced,) = model([x])
    assert_same_masks(reduced["instances"], exact["instances"])


def assert_same_masks(reduced, exact):
    """Those of the two best queries, which have learned something."""
    assert reduced.scores.dtype == torch.float32
    for number in range(2):
        query = exact.queries[number]
        (mask,) = reduced.pred_masks[reduced.queries == query][:1]
        shared = (mask & exact.pred_masks[number]).sum()
        assert shared > 100
        assert shared / (mask | exact.pred_masks[number]).sum() > 0.98
        score = reduced.scores[reduced.queries == query][0].item()
        # Emulated bfloat16 adds in float32; AVX-512 BF16 differs by 0.034.
        assert score == pytest.approx(exact.scores[number].item(), rel=0.05)


# ---- one image and several ----


def compare_instances(alone, together):
    torch.testing.assert_close(alone.scores, together.scores, rtol=1e-3, atol=1e-4)
    assert torch.equal(alone.pred_classes, together.pred_classes)
    differing = (alone.pred_masks != together.pred_masks).float().mean()
    assert differing < 1e-3  # of the pixels: those at the threshold, to rounding
    assert 0.02 < alone.pred_masks.float().mean() < 0.98


def with_resnet18():
    torch.manual_seed(0)
    return build_model(small_config())


@pytest.mark.parametrize("resnet", [False, True])
def test_batch_equals_single_images(tiny_isda, random_input, confident, resnet):
    model = confident(with_resnet18() if resnet else tiny_isda()).eval()
    inputs = [random_input(96, 128, seed=seed) for seed in range(3)]
    with torch.no_grad():
        for x, together in zip(inputs, model(inputs), strict=True):
            (alone,) = model([x])
            compare_instances(alone["instances"], together["instances"])


def predict(model, inputs):
    with torch.no_grad():
        (prediction,) = model.predict(model.preprocess(inputs))
    return prediction


def remove_group_norms(model):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())


def cells_that_see_padding(position):
    """How many rows or columns of mask features (stride 4) next to the padding it can change.

    Neck and backbone of this model keep padding at zero, as a border is. The mask feature head
    does not: a convolution writes into the padding and the next one reads it; bilinear upsampling
    repeats a border but reads a padded neighbour. The position channels are no zeros there
    either, so that with them the first convolution differs already.
    """
    cells = int(position)  # at stride 32, after the first convolution
    for stride in (16, 8, 4):
        cells = 2 * cells + 1  # upsampling
        cells += int(stride > 4)  # the next convolution
    return cells


@pytest.mark.parametrize("position", [False, True])
@pytest.mark.parametrize("group_norm", [False, True])
def test_images_of_other_sizes_matter_through_group_norm_only(
    tiny_isda, random_input, confident, position, group_norm
):
    # What can be exact: sizes whose stride-64 level has the same valid cells in both paddings
    # (multiples of 64), and a backbone that keeps padding at zero. Then classes and kernels are
    # equal to rounding, and mask features are away from the border with the padding.
    model = confident(tiny_isda(mask_position=position)).eval()
    if not group_norm:
        remove_group_norms(model)
        for branch in model.mask_feature_head.modules():
            if isinstance(branch, nn.Conv2d):
                nn.init.normal_(branch.weight, std=0.1)  # 0.01 would vanish without the norms
    small, large = random_input(192, 128), random_input(256, 192, seed=1)
    alone, together = predict(model, [small]), predict(model, [small, large])
    first_seen = cells_that_see_padding(position)
    inner = (slice(None), slice(0, 48 - first_seen), slice(0, 32 - first_seen))
    features = together.mask_features[0]
    expected = alone.mask_features[0]
    scale = expected.abs().amax()
    assert scale > 1e-3
    pairs = [
        (alone.class_logits[0], together.class_logits[0]),
        (alone.kernels[0], together.kernels[0]),
        (expected[inner] / scale, features[inner] / scale),
    ]
    for single, batched in pairs:
        if group_norm:
            assert not torch.allclose(single, batched, rtol=1e-2, atol=1e-2)
        else:
            torch.testing.assert_close(single, batched, rtol=1e-4, atol=1e-4)


def test_padding_pixels_of_a_single_image_do_not_shift_its_masks(tiny_isda, random_input):
    # Positions span whole cells of the valid extent, whatever the padding of the batch is.
    model = tiny_isda()
    x = random_input(64, 128)
    alone = model.preprocess([x])
    together = model.preprocess([x, random_input(128, 320)])
    assert alone.image_sizes[0] == together.image_sizes[0] == (64, 128)
    assert tuple(together.tensor.shape[-2:]) == (128, 320)
    assert torch.equal(alone.tensor[0], together.tensor[0, :, :64, :128])
    assert not together.tensor[0, :, 64:].any()


def test_permuted_queries_give_the_same_instances(tiny_isda, random_input, confident):
    model, x = confident(tiny_isda()).eval(), random_input(96, 128)
    with torch.no_grad():
        (before,) = model([x])
        model.transformer.query_embed.weight.copy_(
            model.transformer.query_embed.weight[torch.randperm(10)]
        )
        (after,) = model([x])
    compare_instances(before["instances"], after["instances"])


# ---- inference ----


@pytest.mark.parametrize(
    ("max_instances", "num_queries", "num_classes"), [(5, 10, 3), (100, 4, 2), (100, 1, 1)]
)
def test_inference(tiny_isda, random_input, confident, max_instances, num_queries, num_classes):
    model = confident(
        tiny_isda(max_instances=max_instances, num_queries=num_queries, num_classes=num_classes)
    ).eval()
    inputs = [random_input(96, 128), random_input(65, 99, seed=1)]
    inputs[0] |= {"height": 47, "width": 211}
    del inputs[1]["height"], inputs[1]["width"], inputs[1]["instances"]
    with torch.no_grad():
        outputs = model(inputs)
    for output, size in zip(outputs, [(47, 211), (65, 99)], strict=True):
        instances = output["instances"]
        assert instances.image_size == size
        assert instances.pred_masks.shape == (len(instances), *size)
        assert instances.pred_masks.dtype == torch.bool
        assert 0 < len(instances) <= min(max_instances, num_queries * num_classes)
        assert (instances.scores.diff() <= 0).all()
        assert ((instances.scores > 0) & (instances.scores < 1)).all()
        assert instances.pred_classes.max() < num_classes
        for mask, box in zip(instances.pred_masks, instances.pred_boxes.tensor, strict=True):
            rows, columns = mask.nonzero(as_tuple=True)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [int(edge) for edge in tight]


def test_inference_predicts_the_last_layer_only(tiny_isda, random_input):
    model = tiny_isda(decoder_layers=3)
    images = model.preprocess([random_input(64, 64)])
    in_training = model.predict(images)
    assert len(in_training) == 3
    (last,) = model.eval().predict(images)
    torch.testing.assert_close(last.class_logits, in_training[-1].class_logits)
    torch.testing.assert_close(last.kernels, in_training[-1].kernels)


def test_shifted_reference_points_change_two_kernel_numbers(tiny_isda, random_input):
    model = tiny_isda(decoder_layers=1).eval()
    before = predict(model, [random_input(64, 64)])
    head = model.instance_head.forward
    model.instance_head.forward = lambda states, points, boxes: head(states, points * 0.9, boxes)
    after = predict(model, [random_input(64, 64)])
    changed = (before.kernels != after.kernels)[0]
    assert changed[:, -2:].all()
    assert not changed[:, :-2].any()


def test_state_dict_round_trip(tiny_isda, random_input, confident, tmp_path):
    model, inputs = confident(tiny_isda()).eval(), [random_input(65, 99)]
    torch.save(model.state_dict(), tmp_path / "model.pth")
    other = tiny_isda().eval()
    before = predict(other, inputs)
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    expected, found = predict(model, inputs), predict(other, inputs)
    assert torch.equal(found.class_logits, expected.class_logits)
    assert torch.equal(found.kernels, expected.kernels)
    assert not torch.allclose(before.kernels, expected.kernels, atol=1e-2)


# ---- from a config ----


def test_config_reaches_the_parts():
    cfg = small_config()
    cfg.MODEL.ISDA.MASK_STRIDE = 8
    cfg.MODEL.ISDA.KERNEL_POSITION = False
    cfg.MODEL.ISDA.MASK_POSITION = False
    cfg.MODEL.ISDA.DROPOUT = 0.2
    cfg.MODEL.ISDA.NUM_HEADS, cfg.MODEL.ISDA.NUM_POINTS = 2, 3
    cfg.MODEL.ISDA.GRADIENT_CHECKPOINTING = True
    cfg.MODEL.ISDA.CLASS_WEIGHT, cfg.MODEL.ISDA.MASK_WEIGHT = 4.0, 5.0
    cfg.MODEL.ISDA.CLASS_COST, cfg.MODEL.ISDA.MASK_COST = 6.0, 7.0
    cfg.MODEL.ISDA.MASK_THRESHOLD = 0.4
    cfg.TEST.DETECTIONS_PER_IMAGE = 17
    model = build_model(cfg)
    assert model.mask_feature_head.mask_stride == 8
    assert not model.mask_feature_head.position
    assert not model.instance_head.position
    assert model.instance_head.kernels[-1].out_features == 32
    assert model.instance_head.classes.out_features == 3
    transformer = model.transformer
    assert transformer.query_embed.weight.shape == (10, 128)
    assert (len(transformer.encoder), len(transformer.decoder)) == (2, 2)
    assert transformer.encoder[0].feedforward.linear1.out_features == 64
    assert transformer.encoder[0].dropout.p == 0.2
    assert transformer.gradient_checkpointing
    attention = transformer.decoder[0].cross_attn
    assert (attention.num_heads, attention.num_points) == (2, 3)
    criterion = model.criterion
    assert (criterion.class_weight, criterion.mask_weight) == (4.0, 5.0)
    assert (criterion.matcher.class_cost, criterion.matcher.mask_cost) == (6.0, 7.0)
    assert (model.max_instances, model.mask_threshold) == (17, 0.4)
    assert model.pixel_mean.flatten().tolist() == pytest.approx(cfg.MODEL.PIXEL_MEAN)
    assert model.pixel_std.flatten().tolist() == pytest.approx(cfg.MODEL.PIXEL_STD)


def test_images_are_normalised(tiny_isda, random_input):
    x = random_input(33, 40)
    images = tiny_isda().preprocess([x])
    assert tuple(images.tensor.shape) == (1, 3, 64, 64)
    for channel, (mean, std) in enumerate(zip((120, 115, 105), (58, 57, 57.5), strict=True)):
        expected = (x["image"][channel].float() - mean) / std
        torch.testing.assert_close(images.tensor[0, channel, :33, :40], expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("HIDDEN_DIM", 100),
        ("MASK_STRIDE", 3),
        ("NUM_QUERIES", -1),
        ("NUM_CLASSES", 0),
        ("IN_FEATURES", ["res3", "res4", "res5"]),
        ("MASK_DIM", 33),
    ],
)
def test_a_wrong_value_is_named(key, value):
    cfg = small_config()
    cfg.MODEL.ISDA[key] = value
    with pytest.raises(ValueError, match=rf"MODEL\.ISDA\.{key}.*{str(value).strip('[]')}"):
        build_model(cfg)


def test_resnet18_trains_from_a_config(random_input):
    torch.manual_seed(0)
    model = build_model(small_config())
    losses = backward(model, [random_input(96, 128), random_input(65, 99, num_instances=0)])
    # Fresh attention ignores its query, and with it the level embedding.
    assert without_gradient(model) == {"transformer.level_embed"}
    # A fresh classifier answers 0.01 everywhere: the focal loss of 2 images, 10 queries and
    # 3 classes, nearly all of them negative, over 3 instances.
    negatives = 0.75 * 0.01**2 * -math.log(0.99) * (2 * 10 * 3 - 3)
    positives = 0.25 * 0.99**2 * -math.log(0.01) * 3
    expected = 2 * (negatives + positives) / 3
    assert losses["loss_cls"].item() == pytest.approx(expected, rel=0.5)
