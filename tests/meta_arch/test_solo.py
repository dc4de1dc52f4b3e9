"""SOLO, Decoupled SOLO and SOLOv2 as a whole: losses, gradients, instances."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Boxes, Instances
from small_models import small_model

from isda.meta_arch.grid import levels_of_pyramid
from isda.modeling import grid_instances
from isda.modeling.grid_instances import GridSelector
from isda.structures import CellMasks, GridPrediction, GridTarget
from isda.training.grid_criterion import GridCriterion

NAMES = ("solo", "solo_decoupled", "solov2")
EASY = {"min_pixels": (0,) * 5, "score_threshold": 0.3, "final_threshold": 0.0}


def image_with(count, size=(64, 96), pixels=20, seed=0):
    """An image with ``count`` squares of ``pixels`` pixels along each side."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, *size, dtype=torch.bool)
    boxes = torch.zeros(count, 4)
    for index, mask in enumerate(masks):
        top, left = (int(torch.randint(s - pixels + 1, (), generator=generator)) for s in size)
        mask[top : top + pixels, left : left + pixels] = True
        boxes[index] = torch.tensor([left, top, left + pixels, top + pixels])
    instances = Instances(
        size,
        gt_masks=BitMasks(masks),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.randint(3, (count,), generator=generator),
    )
    image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances}


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    model = small_model(request.param)
    model.selector = dataclasses.replace(model.selector, **EASY)
    return model


@pytest.fixture
def trained(model):
    """A copy to be trained."""
    return copy.deepcopy(model).train()


@pytest.mark.parametrize(
    "batch",
    [
        [(0, 20), (0, 20)],
        [(0, 20), (1, 1)],
        [(600, 12)],
        [(3, 20), (2, 40)],
    ],
    ids=["nothing", "one pixel", "600 instances", "some"],
)
def test_losses_are_finite_and_reach_every_parameter(trained, batch):
    losses = trained([image_with(count, pixels=pixels) for count, pixels in batch])
    assert set(losses) == {"loss_cls", "loss_mask"}
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert (losses["loss_mask"] > 0) == any(count for count, _ in batch)
    sum(losses.values()).backward()
    missing = [name for name, p in trained.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad.isfinite().all() for p in trained.parameters() if p.requires_grad)


def test_an_image_whose_mapper_left_out_masks_and_boxes(trained):
    """As Detectron2's own does without annotations."""
    empty = {"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}
    empty["instances"] = Instances((64, 64), gt_classes=torch.zeros(0, dtype=torch.long))
    assert trained([empty])["loss_mask"] == 0


def test_a_class_too_many_is_named(trained):
    bad = image_with(1)
    bad["instances"].gt_classes[:] = 3
    with pytest.raises(ValueError, match=rf"set MODEL\.{trained.config_node}\.NUM_CLASSES"):
        trained([bad])


def test_bfloat16(trained):
    with torch.autocast("cpu", torch.bfloat16):
        losses = trained([image_with(3)])
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (result,) = trained.eval()([image_with(0)])
    assert result["instances"].scores.dtype == torch.float32


@torch.no_grad()
def test_instances(model):
    inputs = [image_with(0) | {"height": 50, "width": 70}, image_with(0, (40, 60), seed=1)]
    results = [result["instances"] for result in model(inputs)]
    assert [x.image_size for x in results] == [(50, 70), (40, 60)]
    for found in results:
        assert 0 < len(found) <= model.max_instances
        assert found.pred_masks.dtype == torch.bool
        assert tuple(found.pred_masks.shape[1:]) == found.image_size
        assert found.pred_classes.dtype == torch.int64
        assert found.scores.equal(found.scores.sort(descending=True).values)
        for mask, box in zip(found.pred_masks, found.pred_boxes.tensor.tolist(), strict=True):
            rows, columns = mask.nonzero().unbind(1)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@torch.no_grad()
@pytest.mark.parametrize("key", ["score_threshold", "final_threshold"])
def test_no_instances(model, monkeypatch, key):
    """Not a candidate, or none that matrix NMS leaves."""
    monkeypatch.setattr(model, "selector", dataclasses.replace(model.selector, **{key: 1.0}))
    (result,) = model([image_with(0)])
    found = result["instances"]
    assert len(found) == len(found.pred_boxes) == 0
    assert found.pred_masks.shape == (0, 64, 96) and found.pred_masks.dtype == torch.bool
    assert found.pred_classes.dtype == torch.int64


@torch.no_grad()
def test_batch_equals_single_images(model):
    inputs = [image_with(0, seed=seed) for seed in (1, 2)]
    for x, together in zip(inputs, model(inputs), strict=True):
        (alone,) = model([x])
        assert len(alone["instances"]) > 0
        torch.testing.assert_close(alone["instances"].scores, together["instances"].scores)
        agreement = alone["instances"].pred_masks == together["instances"].pred_masks
        assert agreement.float().mean() > 0.999


@torch.no_grad()
def test_chunked_equals_unchunked(model, monkeypatch):
    prediction = model.predict(model.preprocess([image_with(0)]))
    sizes = {"image_size": (64, 96), "padded_size": (64, 96), "output_size": (64, 96)}
    best = dataclasses.replace(model.selector, max_candidates=9)
    (few, many) = best(prediction, 0, **sizes), model.selector(prediction, 0, **sizes)
    monkeypatch.setattr(grid_instances, "_CHUNK", 2)
    chunked = best(prediction, 0, **sizes)
    torch.testing.assert_close(chunked.scores, few.scores)
    assert chunked.pred_masks.equal(few.pred_masks)
    assert len(many) > len(few)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_images_are_overfit(name):
    """Targets, losses and inference fit together."""
    node = "MODEL.SOLOV2" if name == "solov2" else "MODEL.SOLO"
    model = small_model(name, f"{node}.SCALE_RANGES", "[[1, 96], [1, 96], [9, 9], [9, 9], [9, 9]]")
    inputs = [image_with(2, seed=seed, pixels=24) for seed in (3, 4)]
    for x in inputs:  # each square of a grey of its own, as learning noise takes longer
        for mask, number in zip(x["instances"].gt_masks.tensor, x["instances"].gt_classes):
            x["image"][:, mask] = 90 + 50 * int(number)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(60):
        losses = model(inputs)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.no_grad():
        results = model.eval()(inputs)
    for x, result in zip(inputs, results, strict=True):
        best = result["instances"][:2]
        assert sorted(best.pred_classes.tolist()) == sorted(x["instances"].gt_classes.tolist())
        for mask in x["instances"].gt_masks.tensor:
            overlap = (best.pred_masks & mask).sum(dim=(1, 2))
            union = (best.pred_masks | mask).sum(dim=(1, 2))
            assert (overlap / union).max() > 0.8


# --- the parts on their own


def worked_prediction():
    """One image, one level of 2×2 cells: class logits, and masks by one-hot kernels."""
    maps = torch.full((1, 4, 8, 8), -9.0)
    maps[0, 0, 1:5, 1:5] = 3.0  # 16 pixels
    maps[0, 1, 1:5, 1:6] = 2.0  # 20, of which they share 16
    maps[0, 2, 6:, 6:] = 9.0  # 4
    probs = torch.tensor([[0.9, 0.8], [0.95, 0.05]])  # of the cells
    logits = torch.logit(torch.stack([probs, torch.full((2, 2), 0.01)]))[None]
    return GridPrediction([logits], [CellMasks(torch.eye(4)[None], maps)])


def test_scores_of_a_worked_example():
    selector = GridSelector(min_pixels=(8,), score_threshold=0.1)
    sizes = {"image_size": (32, 32), "padded_size": (32, 32), "output_size": (32, 32)}
    found = selector(worked_prediction(), 0, **sizes)
    # Point NMS removes cell 1 (0.8 beside 0.9), the size cell 2, the threshold cell 3.
    assert found.scores.tolist() == pytest.approx([0.9 * 0.9526], rel=1e-4)
    assert found.pred_classes.tolist() == [0]
    assert found.pred_boxes.tensor.tolist() == [[4, 4, 20, 20]]
    small = dataclasses.replace(selector, min_pixels=(3,))(worked_prediction(), 0, **sizes)
    assert small.scores.tolist() == pytest.approx([0.95, 0.9 * 0.9526], rel=1e-3)


def test_losses_of_a_worked_example():
    """By loops over cells and pixels, in float64."""
    torch.manual_seed(0)
    logits, maps = torch.randn(2, 3, 2, 2).double(), torch.randn(2, 4, 6, 6).double()
    prediction = GridPrediction([logits], [CellMasks(torch.eye(4).double().expand(2, 4, 4), maps)])
    true_masks = torch.rand(2, 6, 6) < 0.4
    of_first = GridTarget(
        torch.tensor([0, 3]), torch.tensor([2, 1]), torch.tensor([1, 0]), true_masks
    )
    of_second = GridTarget(*(torch.zeros(0).long() for _ in range(3)), true_masks[:0])
    losses = GridCriterion(1.0, 3.0)(prediction, [[of_first], [of_second]])
    focal = 0.0
    positives = {(0, 2, 0, 0), (0, 1, 1, 1)}
    for index, logit in zip(torch.cartesian_prod(*map(torch.arange, logits.shape)), logits.ravel()):
        p, is_positive = logit.sigmoid().item(), tuple(index.tolist()) in positives
        pt = torch.tensor(p if is_positive else 1 - p)
        focal += (-(0.25 if is_positive else 0.75) * (1 - pt) ** 2 * pt.log()).item()
    assert losses["loss_cls"].item() == pytest.approx(focal / 3, rel=1e-5)
    dice = 0.0
    for cell, g in ((0, 1), (3, 0)):
        p, m = maps[0, cell].sigmoid(), true_masks[g].double()
        dice += 1 - 2 * (p * m).sum() / ((p**2).sum() + 0.001 + (m**2).sum() + 0.001)
    assert losses["loss_mask"].item() == pytest.approx(3 * dice.item() / 2, rel=1e-6)


def test_many_masks_are_recomputed_with_the_same_gradient(trained, monkeypatch):
    inputs = [image_with(8, pixels=24)]

    def gradient():
        trained.zero_grad()
        trained(inputs)["loss_mask"].backward()
        return next(
            trained.head.masks.parameters()
            if hasattr(trained.head, "masks")
            else trained.head.kernels.parameters()
        ).grad.clone()

    whole = gradient()
    monkeypatch.setattr("isda.training.grid_criterion._CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(gradient(), whole)
    assert whole.abs().max() > 0


def test_solov2_sees_coordinates_of_the_padded_image():
    """A smaller image beside a larger one: its masks read the batch's coordinates."""
    model = small_model("solov2")
    seen = []
    model.mask_feature_head.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    with torch.no_grad():
        model([image_with(0, (64, 96)), image_with(0, (40, 60))])
    assert seen == [[(64, 96), (64, 96)]]


def test_another_pyramid_is_refused():
    model = small_model("solov2")
    node = type("Node", (), {"IN_FEATURES": ["p2", "p3", "p4", "p5"]})
    with pytest.raises(ValueError, match=r"strides \[4, 8, 16, 32\]; they must be \[4, .*, 64\]"):
        levels_of_pyramid(node, "SOLOV2", model.backbone)
    node.IN_FEATURES = ["res2"]
    with pytest.raises(ValueError, match=r"IN_FEATURES names \['res2'\], but the backbone gives"):
        levels_of_pyramid(node, "SOLOV2", model.backbone)


def test_masks_shrink_as_opencv_shrinks_bytes():
    cv2 = pytest.importorskip("cv2")
    mask = (torch.rand(64, 96) < 0.5).to(torch.uint8)
    soft = F.interpolate(mask[None, None].float(), size=(16, 24), mode="bilinear")[0, 0]
    theirs = cv2.resize(mask.numpy(), (24, 16), interpolation=cv2.INTER_LINEAR)
    assert (soft >= 0.5).equal(torch.from_numpy(theirs).bool())
