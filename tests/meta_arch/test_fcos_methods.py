"""CondInst and BlendMask: what they have in common, and the masks of each."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from small_models import ROOT, small_config
from torch import nn

from isda.engine.setup import check_config, load_config
from isda.errors import ConfigError
from isda.modeling.fcos import Detections
from isda.modeling.postprocessing import binary_masks, paste_masks
from isda.modeling.upsampling import aligned_bilinear

NAMES = ["condinst", "blendmask"]
FCOS = ["loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"]
LOSSES = {"condinst": [*FCOS, "loss_mask"], "blendmask": [*FCOS, "loss_mask", "loss_basis_sem"]}
SEMANTIC = ("MODEL.CONDINST.SEMANTIC", "True")


def small_model(name, *opts):
    """As if trained a little: boxes of some size, and scores and masks that differ."""
    torch.manual_seed(0)
    model = build_model(small_config(name, *opts)).eval()
    torch.manual_seed(1)
    head = model.head
    nn.init.normal_(head.classes.weight, std=0.2)
    nn.init.constant_(head.classes.bias, -1.5)
    nn.init.normal_(head.distances.weight, std=0.05)
    nn.init.constant_(head.distances.bias, 2.0)
    for module in (getattr(model, "controller", None), getattr(model, "attention", None)):
        if module is not None:
            nn.init.normal_(module.conv.weight, std=0.1)
            nn.init.normal_(module.conv.bias)
    return model


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


# ---- training ----


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ([(96, 128), (128, 96)], (3, 2)),
        ([(97, 131)], (3,)),
        ([(96, 128), (96, 128)], (0, 2)),
        ([(96, 128)], (0,)),
        ([(96, 128), (96, 128)], (600, 1)),
    ],
)
def test_training_reaches_every_parameter(name, random_input, sizes, counts):
    model = small_model(name).train()
    inputs = [
        random_input(*size, count, 3, seed)
        for seed, (size, count) in enumerate(zip(sizes, counts, strict=True))
    ]
    losses = model(inputs)
    assert list(losses) == LOSSES[name]
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    for key, loss in losses.items():
        if key in ("loss_mask", "loss_fcos_loc", "loss_fcos_ctr"):
            assert (loss > 0) == (sum(counts) > 0), key
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    if sum(counts) > 0:
        idle = {n for n, p in model.named_parameters() if not p.grad.any()}
        assert not any("controller" in n or "attention" in n or "mask_branch" in n for n in idle)


def test_masks_of_one_pixel(name, random_input):
    inputs = random_input(96, 128, 4)
    masks = torch.zeros(4, 96, 128, dtype=torch.bool)
    for index, (y, x) in enumerate([(0, 0), (95, 127), (50, 61), (50, 60)]):
        masks[index, y, x] = True
    inputs["instances"].gt_masks = BitMasks(masks)
    inputs["instances"].gt_boxes = Boxes(BitMasks(masks).get_bounding_boxes().tensor)
    model = small_model(name).train()
    losses = model([inputs])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_half_precision(name, random_input):
    inputs = [random_input(96, 128, 3)]
    model = small_model(name).train()
    exact = model(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs)
        found = model.eval()(inputs)[0]["instances"]
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[key], rtol=0.1, atol=0.02)
    assert len(found) > 0
    assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32


@pytest.mark.parametrize("what", ["classes", "masks"])
def test_ground_truths_that_do_not_fit_are_named(name, random_input, what):
    inputs = random_input(64, 64, 2)
    if what == "classes":
        inputs["instances"].gt_classes[1] = 3
        message = f"class 3, but the model has only 3 classes: set MODEL.{name.upper()}.NUM_CLASSES"
    else:
        inputs["instances"].remove("gt_masks")
        message = "no masks"
    with pytest.raises(ValueError, match=message):
        small_model(name).train()([inputs])


def test_polygons_teach_what_bitmaps_do(name, random_input):
    inputs = random_input(96, 128, 3)
    boxes = inputs["instances"].gt_boxes.tensor.tolist()
    polygons = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes]
    model = small_model(name).train()
    exact = model([inputs])
    inputs["instances"].gt_masks = PolygonMasks(polygons)
    for key, loss in model([inputs]).items():
        torch.testing.assert_close(loss, exact[key], rtol=1e-3, atol=1e-4)


def scene(seed):
    """A dark noisy image with three bright shapes in colours of their classes, apart."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(60, (3, 64, 96), generator=generator, dtype=torch.uint8)
    rows, columns = torch.arange(64)[:, None], torch.arange(96)
    masks = []
    for label, (y, x) in enumerate([(16, 18), (40, 50), (22, 78)]):
        y, x = (c + int(torch.randint(-4, 5, (), generator=generator)) for c in (y, x))
        height, width = 9 + 2 * label, 15 - 2 * label
        mask = ((rows - y) / height).abs() + ((columns - x) / width).abs() <= 1  # a diamond
        image[label, mask] = 230
        masks.append(mask)
    return {"image": image, "instances": instances_of(torch.stack(masks), torch.arange(3))}


@pytest.mark.slow
def test_two_images_are_overfit(name):
    """Every instance is found, once, and its mask fits."""
    node = f"MODEL.{name.upper()}"
    torch.manual_seed(0)
    model = build_model(small_config(name, f"{node}.NORM", "GN", f"{node}.BRANCH_DIM", "32"))
    inputs = [scene(seed) for seed in range(2)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        sum(model.train()(inputs).values()).backward()
        optimizer.step()
    for given, out in zip(inputs, model.eval()(inputs), strict=True):
        truth, found = given["instances"], out["instances"]
        found = found[found.scores > 0.4]
        assert sorted(found.pred_classes.tolist()) == [0, 1, 2]
        for label, mask in zip(found.pred_classes, found.pred_masks, strict=True):
            expected = truth.gt_masks.tensor[label]
            assert (mask & expected).sum() / (mask | expected).sum() > 0.8, label


# ---- inference ----


def test_a_batch_is_its_images(name, random_input):
    model = small_model(name)
    inputs = [random_input(96, 128, seed=seed) for seed in range(2)]
    together = model(inputs)
    assert any(len(out["instances"]) > 0 for out in together)
    for one, out in zip(inputs, together, strict=True):
        (alone,) = model([one])
        for field in ("scores", "pred_classes", "pred_masks"):
            a, b = alone["instances"].get(field), out["instances"].get(field)
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(
            alone["instances"].pred_boxes.tensor, out["instances"].pred_boxes.tensor
        )


@pytest.mark.parametrize("threshold", ["0.05", "0.999"])
def test_results_have_their_types(name, random_input, threshold):
    """With detections and without any; at an output size of its own."""
    model = small_model(name, f"MODEL.{name.upper()}.SCORE_THRESH_TEST", threshold)
    inputs = random_input(90, 125) | {"height": 180, "width": 200}
    del inputs["instances"]
    found = model([inputs])[0]["instances"]
    count = len(found)
    assert (count > 0) == (threshold == "0.05")
    assert count <= 12  # TEST.DETECTIONS_PER_IMAGE
    assert found.image_size == (180, 200)
    assert found.pred_masks.dtype == torch.bool
    assert found.pred_masks.shape == (count, 180, 200)
    assert found.pred_classes.dtype == torch.int64
    assert found.scores.shape == (count,)
    boxes = found.pred_boxes.tensor
    assert boxes.shape == (count, 4)
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 200).all()
    assert (boxes[:, 3] <= 180).all()
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert found.pred_masks.any() == (count > 0)


def test_values_are_checked(name):
    node = name.upper()
    for opts, message in (
        ([f"MODEL.{node}.SCORE_THRESH_TEST", "2"], f"MODEL.{node}.SCORE_THRESH_TEST must be betw"),
        ([f"MODEL.{node}.NORM", "LN"], f"MODEL.{node}.NORM must be one of BN, SyncBN, GN"),
        ([f"MODEL.{node}.NORM", "GN", f"MODEL.{node}.BRANCH_DIM", "40"], "multiple of 32 for"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_config(small_config(name, *opts))
    for opts, message in (
        ([f"MODEL.{node}.BRANCH_IN_FEATURES", "['p5','p6']"], "strides \\[32, 64\\]"),
        ([f"MODEL.{node}.IN_FEATURES", "['p2','p7']"], "names \\['p7'\\]"),
        (
            [f"MODEL.{node}.NUM_CLASSES", "0", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"],
            f"MODEL.{node}.NUM_CLASSES is 0 and DATASETS.TRAIN is empty",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(small_config(name, *opts))


# ---- CondInst ----


def instances_of(masks, classes=None, boxes=None):
    instances = Instances(tuple(masks.shape[1:]))
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = boxes or Boxes(BitMasks(masks).get_bounding_boxes().tensor)
    instances.gt_classes = (
        torch.zeros(len(masks), dtype=torch.int64) if classes is None else classes
    )
    return instances


def test_condinst_answers_near_the_mass_of_a_mask():
    model = small_model("condinst")
    masks = torch.zeros(3, 64, 96, dtype=torch.bool)
    masks[0, 8:40, 16:32] = True  # a box: its own centre
    masks[1, 8:40, 16:24] = masks[1, 32:40, 16:48] = True  # an L, and nothing of the third
    boxes = Boxes(torch.tensor([[16.0, 8, 32, 40], [16, 8, 48, 40], [10, 10, 30, 50]]))
    centres = model.centres(model._truth(instances_of(masks, boxes=boxes)))
    rows, columns = masks[1].nonzero().float().unbind(1)
    expected = [[24.0, 24.0], [columns.mean() + 0.5, rows.mean() + 0.5], [20.0, 30.0]]
    torch.testing.assert_close(centres, torch.tensor(expected))


def plain_masks(model, prediction, image, locations):
    """Logits of the authors' form: every location's parameters, a grouped convolution."""
    dense, features = prediction.dense, prediction.mask_features[image]
    everywhere = torch.cat(
        [model.controller.conv(x)[image].flatten(1).T for x in dense.tower], dim=0
    )
    height, width = features.shape[1:]
    logits = []
    for location in locations.tolist():
        level, row, column = dense.locations.cells[location].tolist()
        stride = dense.locations.strides[level]
        cells = torch.stack(
            [
                ((column + 0.5) * stride - 4 * (torch.arange(width) + 0.5)).expand(height, -1),
                ((row + 0.5) * stride - 4 * (torch.arange(height) + 0.5))[:, None].expand(
                    -1, width
                ),
            ]
        ) / (8 * stride)
        w1, w2, w3, b1, b2, b3 = everywhere[location].split([80, 64, 8, 8, 8, 1])
        x = torch.cat([cells, features])[None]
        for weight, bias in ((w1.view(8, 10), b1), (w2.view(8, 8), b2), (w3.view(1, 8), b3)):
            x = F.conv2d(x.relu() if x.shape[1] == 8 else x, weight[:, :, None, None], bias)
        logits.append(x[0, 0])
    return torch.stack(logits)


def test_condinst_against_its_plain_form(random_input):
    model = small_model("condinst")
    inputs = random_input(90, 125)
    images = model.preprocess([inputs])
    with torch.no_grad():
        prediction = model.predict(images)
        found = model.detections(prediction, 0)
        logits = plain_masks(model, prediction, 0, found.locations)
        instances = model([inputs])[0]["instances"]
    inside = Boxes(found.boxes)
    inside.clip((90, 125))
    kept = inside.nonempty()
    assert kept.sum() == len(instances) > 2
    torch.testing.assert_close(instances.pred_boxes.tensor, inside.tensor[kept])
    probs = aligned_bilinear(logits[None, kept], 2)[0].sigmoid()
    full = aligned_bilinear(probs[None], 2)[0, :, :90, :125]
    differing = (instances.pred_masks != (full > 0.5)) & ((full - 0.5).abs() > 1e-4)
    assert not differing.any()
    assert 0 < instances.pred_masks.float().mean() < 1


def test_condinsts_mask_loss_against_loops(random_input):
    model = small_model("condinst").train()
    inputs = [random_input(90, 125, 3, seed=0), random_input(96, 128, 2, seed=1)]
    images = model.preprocess(inputs)
    prediction = model.predict(images)
    truths = [model._truth(x["instances"]) for x in inputs]
    targets = model.targets(prediction.dense, truths)
    dice = []
    for image, location, instance in zip(
        targets.images.tolist(), targets.locations, targets.instances.tolist(), strict=True
    ):
        logits = plain_masks(model, prediction, image, location[None])
        probs = aligned_bilinear(logits[None], 2)[0, 0].sigmoid()
        padded = torch.zeros(images.tensor.shape[-2:])
        mask = inputs[image]["instances"].gt_masks.tensor[instance]
        padded[: mask.shape[0], : mask.shape[1]] = mask
        target = padded[1::2, 1::2]  # masks have stride 2 here
        total = (probs**2).sum() + (target**2).sum() + 1e-5
        dice.append((1 - 2 * (probs * target).sum() / total).item())
    loss = model.mask_loss(prediction, targets, truths, tuple(images.tensor.shape[-2:]))
    assert len(dice) > 5
    assert loss.item() == pytest.approx(sum(dice) / len(dice), rel=1e-4)
    # Of more locations than are allowed some are drawn.
    model.max_masks = 1
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        single = model.mask_loss(prediction, targets, truths, tuple(images.tensor.shape[-2:]))
        (nearest,) = [
            i for i, x in enumerate(dice) if x == min(dice, key=lambda d: abs(d - single))
        ]
        assert single.item() == pytest.approx(dice[nearest], rel=1e-4)
        seen.add(nearest)
    assert len(seen) > 1


def focal(logit, is_positive):
    p = 1 / (1 + math.exp(-logit))
    if is_positive:
        return -0.25 * (1 - p) ** 2 * math.log(p)
    return -0.75 * p**2 * math.log(1 - p)


def two_nested(size=(64, 96)):
    """A large instance of class 2, and before it in the list a small one inside, of class 1."""
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, 20:33, 30:50] = True
    masks[1, 3:60, 5:90] = True
    return instances_of(masks, torch.tensor([1, 2]))


def test_condinsts_semantic_loss_against_loops(random_input):
    model = small_model("condinst", *SEMANTIC).train()
    inputs = random_input(64, 96) | {"instances": two_nested()}
    losses = model([inputs])
    assert list(losses) == [*FCOS, "loss_mask", "loss_sem"]
    masks, total, positive = two_nested().gt_masks.tensor, 0.0, 0
    features = model.backbone(model.preprocess([inputs]).tensor)
    logits = model.semantic_head(features["p2"])[0].detach()
    for i, j in itertools.product(range(16), range(24)):
        small, large = masks[:, 4 * i + 2, 4 * j + 2].tolist()
        label = 1 if small else 2 if large else None
        positive += label is not None
        total += sum(focal(logits[k, i, j].item(), k == label) for k in range(3))
    assert losses["loss_sem"].item() == pytest.approx(total / positive, rel=1e-4)


# ---- BlendMask ----


def test_blendmasks_mask_loss_against_loops(random_input):
    """Regions are pooled for every location here, and not once for a ground truth."""
    model = small_model("blendmask").train()
    inputs = [random_input(96, 128, 3, seed=0), random_input(96, 128, 2, seed=1)]
    prediction = model.predict(model.preprocess(inputs))
    truths = [model._truth(x["instances"]) for x in inputs]
    targets = model.targets(prediction.dense, truths)
    maps = [model.attention.conv(x).flatten(2).transpose(1, 2) for x in prediction.dense.tower]
    attention = torch.cat(maps, dim=1)
    align = ROIAlign((28, 28), 0.5, sampling_ratio=1, aligned=True)
    total = 0.0
    for row, (image, location, instance) in enumerate(
        zip(targets.images.tolist(), targets.locations, targets.instances, strict=True)
    ):
        given = inputs[image]["instances"]
        box = given.gt_boxes.tensor[instance]
        region = align(prediction.mask_features, torch.cat([torch.tensor([image]), box])[None])[0]
        weights = attention[image, location].view(1, 4, 7, 7)
        weights = F.interpolate(weights, size=(28, 28), mode="bilinear").softmax(dim=1)[0]
        logits = (region * weights).sum(dim=0)
        mask = given.gt_masks[int(instance)].crop_and_resize(box[None], 28)[0].float()
        loss = F.binary_cross_entropy_with_logits(logits, mask)
        total += targets.centreness[row].item() * loss.item()
    loss = model.mask_loss(prediction, targets, truths, (96, 128))
    assert len(targets) > 5
    expected = total / sum(targets.centreness.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_many_masks_are_blended_in_parts(random_input, monkeypatch):
    model = small_model("blendmask").train()
    inputs = [random_input(96, 128, 3)]
    outcomes = []
    for chunk in (512, 4):
        monkeypatch.setattr("isda.meta_arch.blendmask._CHUNK", chunk)
        model.zero_grad()
        loss = model(inputs)["loss_mask"]
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        outcomes.append([loss.detach(), *gradients])
    for whole, parts in zip(*outcomes, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)


def test_blendmasks_semantic_loss_against_loops(random_input):
    model = small_model("blendmask").train()
    inputs = random_input(64, 96) | {"instances": two_nested()}
    loss = model([inputs])["loss_basis_sem"]
    masks, total = two_nested().gt_masks.tensor, 0.0
    features = model.backbone(model.preprocess([inputs]).tensor)
    logits = model.semantic_head(features["p2"])[0].detach()
    assert logits.shape == (4, 16, 24)
    for i, j in itertools.product(range(16), range(24)):
        small, large = masks[:, 4 * i, 4 * j].tolist()
        label = 2 if small else 3 if large else 0
        total -= logits[:, i, j].log_softmax(dim=0)[label].item()
    assert loss.item() == pytest.approx(0.3 * total / (16 * 24), rel=1e-4)


def test_a_box_across_the_border_has_the_mask_of_its_clipped_box(random_input, monkeypatch):
    model = small_model("blendmask")
    inputs = random_input(90, 125)
    across = torch.tensor([[-30.0, 20.0, 60.0, 80.0], [70.0, -9.0, 160.0, 100.0]])
    results = []
    for clipped in (False, True):
        boxes = across.clone()
        if clipped:
            boxes = torch.stack([boxes[:, i].clamp(0, [125, 90][i % 2]) for i in range(4)], dim=1)
        given = Detections(
            boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), torch.tensor([30, 200])
        )
        monkeypatch.setattr(model, "detections", lambda *_, given=given: given)
        results.append(model([inputs])[0]["instances"])
    assert results[0].pred_masks.any()
    assert results[0].pred_masks.equal(results[1].pred_masks)
    assert results[0].pred_boxes.tensor.equal(results[1].pred_boxes.tensor)


# ---- the recipes ----


@pytest.mark.parametrize(("kind", "node"), [("condinst", "CONDINST"), ("blendmask", "BLENDMASK")])
def test_recipes_in_numbers(kind, node):
    for schedule, numbers in (("1x", (12.28, (8.19, 10.92))), ("3x", (36.84, (28.65, 34.11)))):
        path = f"configs/COCO-InstanceSegmentation/{kind}_R_50_FPN_{schedule}.yaml"
        cfg = load_config(str(ROOT / path))
        solver, inputs, method = cfg.SOLVER, cfg.INPUT, cfg.MODEL[node]
        assert (*numbers, 0.1) == (solver.EPOCHS, solver.STEP_EPOCHS, solver.GAMMA)
        assert (solver.OPTIMIZER, solver.BASE_LR, solver.MOMENTUM) == ("SGD", 0.01, 0.9)
        assert (solver.WEIGHT_DECAY, solver.BACKBONE_MULTIPLIER) == (1e-4, 1)
        assert (solver.IMS_PER_BATCH, solver.REFERENCE_BATCH) == (16, 16)
        assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.WARMUP_METHOD) == (
            1000,
            0.001,
            "linear",
        )
        assert not solver.CLIP_GRADIENTS.ENABLED
        assert tuple(inputs.MIN_SIZE_TRAIN) == tuple(range(640, 801, 32))
        assert (inputs.MAX_SIZE_TRAIN, inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST) == (
            1333,
            800,
            1333,
        )
        assert (inputs.FORMAT, cfg.MODEL.PIXEL_STD) == ("BGR", [1.0, 1.0, 1.0])
        assert inputs.RANDOM_FLIP == "horizontal"
        assert (cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM) == (2, "FrozenBN")
        assert cfg.MODEL.FPN.IN_FEATURES == ["res3", "res4", "res5"]
        assert method.IN_FEATURES == ["p3", "p4", "p5", "p6", "p7"]
        assert (method.NUM_CONVS, method.BRANCH_DIM, method.MASK_THRESHOLD) == (4, 128, 0.5)
        thresholds = (method.SCORE_THRESH_TEST, method.NMS_THRESH_TEST, method.TOPK_CANDIDATES_TEST)
        assert thresholds == (0.05, 0.6, 1000)
    if kind == "condinst":
        own = (method.BRANCH_CONVS, method.NORM, method.MASK_DIM, method.MAX_MASKS_TRAIN)
        assert (*own, method.SEMANTIC) == (4, "BN", 8, 500, False)
    else:
        own = (method.BRANCH_CONVS, method.NORM, method.NUM_BASES, method.ATTENTION_SIZE)
        assert (*own, method.MASK_SIZE, method.SEMANTIC, method.SEMANTIC_WEIGHT) == (
            *(3, "SyncBN", 4, 14),
            *(56, True, 0.3),
        )


def test_masks_pasted_whole_and_in_windows_are_alike():
    torch.manual_seed(0)
    coarse = 4 * torch.randn(1, 5, 3, 4)
    probs = F.interpolate(coarse, size=(24, 32), mode="bilinear")[0].sigmoid()
    probs[4] = 0.1
    sizes = ((96, 128), (90, 125), (180, 200))
    expected = paste_masks(probs, *sizes, aligned=True)
    found = binary_masks(probs, *sizes, aligned=True)
    full = aligned_bilinear(probs[None], 4)[..., :90, :125]
    full = F.interpolate(full, size=(180, 200), mode="bilinear")[0]
    sure = (full - 0.5).abs() > 1e-4
    assert not ((expected != (full > 0.5)) & sure).any()
    assert not ((found != (full > 0.5)) & sure).any()
    assert found.shape == (5, 180, 200)
    assert not found[4].any()
    assert not (found == paste_masks(probs, *sizes)).all()  # half a cell beside
    assert binary_masks(probs[:0], *sizes, aligned=True).shape == (0, 180, 200)
