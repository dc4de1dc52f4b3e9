import copy
import math

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from gradients import backward, without_gradient
from torch import nn

from isda import add_istr_config
from isda.checkpoint import Checkpointer, WeightsError
from isda.data.dataset_mapper import InstanceDatasetMapper
from isda.engine.evaluation import build_evaluator
from isda.engine.setup import load_config
from isda.modeling.mask_dictionary import DictionaryError
from isda.modeling.mask_embedding import MaskEmbedding, crop_masks
from isda.modeling.refinement import image_features
from isda.structures import EmbeddedPrediction

TERMS = ("loss_cls", "loss_bbox", "loss_giou", "loss_embed", "loss_mask")


def small_config():
    cfg = get_cfg()
    add_istr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ISTR"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ISTR.HIDDEN_DIM = 32
    cfg.MODEL.ISTR.NUM_CLASSES = 3
    cfg.MODEL.ISTR.NUM_QUERIES = 10
    cfg.MODEL.ISTR.NUM_STEPS = 2
    cfg.MODEL.ISTR.NUM_HEADS = 4
    cfg.MODEL.ISTR.FEEDFORWARD_DIM = 48
    cfg.MODEL.ISTR.DYNAMIC_DIM = 8
    return cfg


def with_other_boxes(model):
    """Query boxes as if trained: fresh ones are all alike, and predict the whole image."""
    torch.manual_seed(1)
    with torch.no_grad():
        centres, sizes = model.queries.boxes.weight.chunk(2, dim=1)
        centres.copy_(0.2 + 0.6 * torch.rand_like(centres))
        sizes.copy_(0.2 + 0.3 * torch.rand_like(sizes))
        for step in model.refinement.steps:
            nn.init.normal_(step.classes.weight, std=0.3)
            nn.init.normal_(step.classes.bias)
            step.deltas.weight *= 0.1
    return model


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
        ([(96, 128), (96, 128)], (500, 1), 3),  # more than there are queries
    ],
)
def test_training_reaches_every_parameter(tiny_istr, random_input, sizes, counts, num_classes):
    model = tiny_istr(num_classes=num_classes)
    inputs = [
        random_input(*size, count, num_classes, seed)
        for seed, (size, count) in enumerate(zip(sizes, counts, strict=True))
    ]
    losses = backward(model, inputs)
    assert sorted(losses) == sorted(f"{t}{suffix}" for t in TERMS for suffix in ("", "_0", "_1"))
    assert all(loss > 0 for loss in losses.values())
    assert without_gradient(model) == set()


@pytest.mark.parametrize("batch", [1, 2])
def test_training_without_any_instance(tiny_istr, random_input, batch):
    model = tiny_istr()
    losses = backward(model, [random_input(96, 128, num_instances=0)] * batch)
    for name, loss in losses.items():
        assert (loss > 0) == name.startswith("loss_cls"), name
    idle = without_gradient(model)
    branches = [f"refinement.steps.{t}.{b}" for t in range(3) for b in ("box_", "mask_")]
    ends = [f"refinement.steps.{t}.{b}." for t in range(3) for b in ("deltas", "masks")]
    assert idle == {n for n, _ in model.named_parameters() if n.startswith((*branches, *ends))} | {
        "queries.boxes.weight"
    }


def test_an_image_with_nothing_but_crowds(tiny_istr, tmp_path):
    cv2.imwrite(str(tmp_path / "crowd.png"), np.zeros((64, 96, 3), np.uint8))
    crowd = {"iscrowd": 1, "category_id": 0, "bbox": [0, 0, 9, 9], "bbox_mode": 1}
    crowd["segmentation"] = {"size": [64, 96], "counts": [0, 64 * 96]}
    record = {"file_name": str(tmp_path / "crowd.png"), "annotations": [crowd]}
    x = InstanceDatasetMapper(is_train=True, augmentations=[])(record)
    assert len(x["instances"]) == 0
    losses = backward(tiny_istr(), [x])
    # As Detectron2's own mapper hands it over: without the field of masks.
    x["instances"] = Instances((64, 96))
    x["instances"].gt_boxes = Boxes(torch.zeros(0, 4))
    x["instances"].gt_classes = torch.zeros(0, dtype=torch.int64)
    assert backward(tiny_istr(), [x]) == losses


def test_boxes_of_one_pixel(tiny_istr, random_input):
    x = random_input(64, 96, num_instances=3)
    masks = torch.zeros(3, 64, 96, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 63, 95] = masks[2, 20, 30] = True
    x["instances"].gt_masks = BitMasks(masks)
    x["instances"].gt_boxes = x["instances"].gt_masks.get_bounding_boxes()
    model = tiny_istr()
    (target,) = model.targets([x])
    assert target.boxes.tolist() == [[0, 0, 1, 1], [95, 63, 96, 64], [30, 20, 31, 21]]
    assert target.masks.flatten(1).any(dim=1).all()
    backward(model, [x])
    assert without_gradient(model) == set()


def test_what_training_must_not_change(random_input):
    torch.manual_seed(0)
    model = build_model(small_config())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert any(n.startswith("backbone.bottom_up.stem") for n in frozen)
    assert any(n.startswith("backbone.bottom_up.res2") for n in frozen)
    assert not any(n.startswith("backbone.bottom_up.res3") and "norm" not in n for n in frozen)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        optimizer.zero_grad()
        backward(model, [random_input(64, 96)])
        optimizer.step()
    after = model.state_dict()
    dictionary = [n for n in after if n.startswith("mask_embedding.")]
    assert len(dictionary) == 3
    assert all(torch.equal(before[name], after[name]) for name in [*dictionary, *frozen])
    assert all(model.get_parameter(name).grad is None for name in frozen)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert [n for n in trained if torch.equal(before[n], after[n])] == []


def test_initial_boxes_learn_through_the_first_step_only(tiny_istr, random_input):
    model = tiny_istr()
    losses = model([random_input(96, 128)])
    boxes = model.queries.boxes.weight
    for name, loss in losses.items():
        (grad,) = torch.autograd.grad(loss, boxes, retain_graph=True, allow_unused=True)
        reached = grad is not None and bool(grad.any())
        assert reached == (name in ("loss_bbox_0", "loss_giou_0")), name


@pytest.mark.parametrize("weight", ["mask_weight", "embedding_weight"])
def test_either_mask_loss_alone_trains_the_mask_tower(tiny_istr, random_input, weight):
    # A decoder without gradient would leave the dice loss without effect.
    weights = {"class_weight": 0.0, "box_weight": 0.0, "giou_weight": 0.0}
    weights |= {"mask_weight": 0.0, "embedding_weight": 0.0, weight: 2.0}
    model = tiny_istr(**weights)
    backward(model, [random_input(96, 128)])
    for step in model.refinement.steps:
        assert step.masks.weight.grad.any()
        assert step.mask_tower[0].weight.grad.any()
        assert not step.deltas.weight.grad.any()


def test_targets_are_the_same_each_time_and_encoded_once(tiny_istr, random_input):
    model = tiny_istr()
    inputs = [random_input(96, 128), random_input(65, 99, seed=1)]
    encoded, encode = [], model.mask_embedding.encode
    model.mask_embedding.encode = lambda masks: encoded.append(len(masks)) or encode(masks)
    losses = model(inputs)
    assert encoded == [3, 3]
    assert model(inputs) == losses


def test_bfloat16_autocast(tiny_istr, random_input):
    inputs = [random_input(96, 128), random_input(65, 99, seed=1)]
    exact = with_other_boxes(tiny_istr())(inputs)
    model = with_other_boxes(tiny_istr())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.1), name
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert without_gradient(model) == set()


@pytest.mark.slow
def test_training_learns_one_image(tiny_istr, random_input):
    model, x = tiny_istr(num_steps=2), random_input(64, 64, num_instances=2)
    x["image"][:] = 60
    for mask, colour in zip(x["instances"].gt_masks.tensor, (150, 250), strict=True):
        x["image"][:, mask] = colour
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals, masks = [], {"loss_mask_0": 0.0, "loss_mask": 0.0}
    for _ in range(120):
        losses = model([x])
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(loss.item())
        masks = {name: total + losses[name].item() for name, total in masks.items()}
    assert totals[-1] < 0.2 * totals[0]
    # The second step sees what the first has found, so it learns faster; in the end both are near
    # what the dictionary can tell.
    assert masks["loss_mask"] < masks["loss_mask_0"]
    model.eval()
    with torch.no_grad():
        (output,) = model([x])
    best = output["instances"][:2]
    assert set(best.pred_classes.tolist()) == set(x["instances"].gt_classes.tolist())


# ---- targets ----


def test_targets_against_the_parts(tiny_istr, random_input):
    model, x = tiny_istr(), random_input(65, 99)
    (target,) = model.targets([x])
    instances = x["instances"]
    assert target.image_size == (65, 99)
    assert torch.equal(target.classes, instances.gt_classes)
    assert torch.equal(target.boxes, instances.gt_boxes.tensor)
    masks = crop_masks(instances.gt_masks, instances.gt_boxes.tensor, 28)
    assert torch.equal(target.masks, masks)
    assert torch.equal(target.embeddings, model.mask_embedding.encode(masks))
    decoded = model.mask_embedding.decode(target.embeddings) > 0.5
    assert (decoded == masks).float().mean() > 0.9


def test_polygons_and_bitmaps_alike(tiny_istr, random_input):
    x = random_input(60, 80)
    corners = (
        [[5.0, 7, 40, 7, 40, 33]],
        [[40.0, 10, 70, 10, 70, 50, 40, 50]],
        [[0.0, 0, 30, 30, 0, 50]],
    )
    polygons = PolygonMasks([list(c) for c in corners])
    bitmaps = BitMasks.from_polygon_masks(polygons, 60, 80)
    x["instances"].gt_boxes = bitmaps.get_bounding_boxes()
    targets = []
    for masks in (polygons, bitmaps):
        x["instances"].gt_masks = masks
        targets += tiny_istr().targets([x])
        backward(tiny_istr(), [x])
    assert (targets[0].masks == targets[1].masks).float().mean() > 0.97


def test_annotations_without_masks_are_refused(tiny_istr, random_input):
    x = random_input(50, 70)
    x["instances"].remove("gt_masks")
    with pytest.raises(ValueError, match=r"no masks \(gt_masks\).*set MODEL\.MASK_ON True"):
        tiny_istr()([x])


def test_a_class_beyond_the_head_is_refused(tiny_istr, random_input):
    x = random_input(50, 70)
    x["instances"].gt_classes[1] = 3
    message = r"class 3, but the model has only 3 classes: set MODEL\.ISTR\.NUM_CLASSES"
    with pytest.raises(ValueError, match=message):
        tiny_istr(num_classes=3)([x])


# ---- one image and several, one order and another ----


def predict(model, inputs):
    with torch.no_grad():
        return model.predict(model.preprocess(inputs))


def assert_alike(one: EmbeddedPrediction, other: EmbeddedPrediction):
    for name in ("class_logits", "boxes", "embeddings"):
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), rtol=1e-3, atol=1e-3, msg=name
        )


def test_batch_equals_single_images(tiny_istr, random_input):
    model = with_other_boxes(tiny_istr())
    inputs = [random_input(96, 128, seed=seed) for seed in range(2)]
    together = predict(model, inputs)
    assert len(together) == 3
    for index, x in enumerate(inputs):
        for single, batched in zip(predict(model, [x]), together, strict=True):
            one = slice(index, index + 1)
            of_image = EmbeddedPrediction(
                batched.class_logits[one], batched.boxes[one], batched.embeddings[one]
            )
            assert_alike(single, of_image)
    model.eval()
    with torch.no_grad():
        outputs = model(inputs)
        for x, output in zip(inputs, outputs, strict=True):
            alone = model([x])[0]["instances"]
            torch.testing.assert_close(alone.scores, output["instances"].scores, atol=1e-4, rtol=0)
            assert torch.equal(alone.pred_classes, output["instances"].pred_classes)
            differing = alone.pred_masks != output["instances"].pred_masks
            assert differing.float().mean() < 1e-3


def test_permuted_queries_permute_every_step(tiny_istr, random_input):
    model, x = with_other_boxes(tiny_istr()), random_input(96, 128)
    before, order = predict(model, [x]), torch.randperm(10)
    with torch.no_grad():
        for table in (model.queries.features, model.queries.boxes):
            table.weight.copy_(table.weight[order])
    for one, other in zip(before, predict(model, [x]), strict=True):
        permuted = EmbeddedPrediction(
            one.class_logits[:, order], one.boxes[:, order], one.embeddings[:, order]
        )
        assert_alike(permuted, other)


def test_values_in_padded_cells_do_not_reach_the_queries(tiny_istr, random_input):
    # The image's own cells are the same in both: this backbone looks at no neighbours.
    model = tiny_istr()
    small, large = random_input(64, 96), random_input(160, 192, seed=1)
    alone, together = model.preprocess([small]), model.preprocess([small, large])
    levels = [model.backbone(images.tensor) for images in (alone, together)]
    for name, level in levels[1].items():
        stride = together.tensor.shape[-1] // level.shape[-1]
        level = level.detach()
        level[0, :, 64 // stride :] = 1e4
        level[0, :, :, 96 // stride :] = 1e4
        levels[1][name] = level
    expected, found = (
        image_features(list(of_batch.values()), images.image_sizes)[0]
        for of_batch, images in zip(levels, (alone, together), strict=True)
    )
    torch.testing.assert_close(found, expected)
    assert together.tensor.shape[-2:] == (160, 192)


def test_image_feature_can_be_left_out(tiny_istr, random_input):
    x, y = random_input(64, 96), random_input(64, 96, seed=1)
    y["instances"] = x["instances"]

    def queries(model, image):
        images = model.preprocess([image])
        levels = list(model.backbone(images.tensor).values())
        extents = torch.tensor([[96.0, 64.0]])
        return model.queries(levels, images.image_sizes, extents)[0]

    without = tiny_istr(image_feature=False)
    assert torch.equal(queries(without, x), queries(without, y))
    assert not torch.allclose(queries(tiny_istr(), x), queries(tiny_istr(), y), atol=1e-3)


# ---- inference ----


@pytest.mark.parametrize(
    ("max_instances", "num_queries", "num_classes"), [(5, 10, 3), (100, 4, 2), (100, 1, 1)]
)
def test_inference(tiny_istr, random_input, max_instances, num_queries, num_classes):
    sizes = {"num_queries": num_queries, "num_classes": num_classes}
    model = with_other_boxes(tiny_istr(max_instances=max_instances, **sizes)).eval()
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
        boxes = instances.pred_boxes.tensor
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([size[1], size[0]] * 2)).all()


@pytest.mark.slow
def test_encoded_ground_truth_through_inference(tiny_istr, tmp_path):
    """Real masks in, the same masks out: what the embedding and the pasting lose."""
    name, mapper = "nuclei_mini_val", InstanceDatasetMapper(is_train=True, augmentations=[])
    model = tiny_istr(
        num_classes=1, embedding_dim=60, mask_embedding=MaskEmbedding.from_file("shipped", dim=60)
    )
    cfg = load_config(opts=["TEST.DETECTIONS_PER_IMAGE", "300", "MODEL.META_ARCHITECTURE", "ISTR"])
    evaluator = build_evaluator(cfg, name, str(tmp_path))
    evaluator.reset()
    model.max_instances = 300
    records = DatasetCatalog.get(name)[:6]
    for record in records:
        x = mapper(record)
        (target,) = model.targets([x])
        logits = torch.full((1, len(target.classes), 1), 10.0)
        prediction = EmbeddedPrediction(logits, target.boxes[None], target.embeddings[None])
        evaluator.process([x], model.postprocess(prediction, [x], model.preprocess([x])))
    results = evaluator.evaluate(img_ids=[record["image_id"] for record in records])
    assert results["bbox"]["AP"] > 99
    assert results["segm"]["AP"] > 85


# ---- on a GPU ----


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that PyTorch can use")
def test_cuda_equals_the_cpu(tiny_istr, random_input):
    inputs = [random_input(96, 128), random_input(65, 99, seed=1), random_input(64, 64, 0, seed=2)]
    results = []
    for device in ("cpu", "cuda"):
        model = with_other_boxes(tiny_istr()).to(device)
        losses = backward(model, inputs)
        with torch.no_grad():
            instances = [output["instances"].to("cpu") for output in model.eval()(inputs)]
        results.append((losses, dict(model.named_parameters()), instances))
    (losses, parameters, expected), (on_gpu, gpu_parameters, found) = results
    for name, loss in losses.items():
        assert on_gpu[name].item() == pytest.approx(loss.item(), rel=1e-3, abs=1e-5), name
    for name, parameter in gpu_parameters.items():
        grad, scale = parameters[name].grad, parameters[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad.cpu(), grad, rtol=0.05, atol=0.01 * scale + 1e-6)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-2, atol=1e-3)


# ---- the dictionary ----


def test_a_saved_model_needs_no_dictionary_file(tiny_istr, random_input, tmp_path):
    model, inputs = with_other_boxes(tiny_istr()).eval(), [random_input(65, 99)]
    Checkpointer(model, str(tmp_path)).save("model")
    other = tiny_istr(mask_embedding=MaskEmbedding(28, 20)).eval()
    with pytest.raises(DictionaryError, match=r"no mask dictionary: MODEL\.ISTR\.MASK_DICTIONARY"):
        other(inputs)
    Checkpointer(other, min_matched=1.0).load(str(tmp_path / "model.pth"))
    with torch.no_grad():
        (expected,), (found,) = model(inputs), other(inputs)
    for name, value in expected["instances"].get_fields().items():
        same = found["instances"].get(name)
        assert torch.equal(getattr(value, "tensor", value), getattr(same, "tensor", same)), name
    (expected,), (found,) = model.train().targets(inputs), other.train().targets(inputs)
    assert torch.equal(expected.embeddings, found.embeddings)


def test_a_config_whose_dictionary_is_gone(random_input, tmp_path, caplog):
    cfg = small_config()
    torch.manual_seed(0)
    trained = build_model(cfg)
    Checkpointer(trained, str(tmp_path)).save("model")
    cfg.MODEL.ISTR.MASK_DICTIONARY = str(tmp_path / "gone.npz")
    model = build_model(cfg)
    assert "gone.npz, so MODEL.WEIGHTS has to bring the dictionary" in caplog.text
    with pytest.raises(DictionaryError, match="must name a file that isda mask-dictionary fit"):
        model([random_input(64, 96)])
    Checkpointer(model, min_matched=0.5).load(str(tmp_path / "model.pth"))
    assert model([random_input(64, 96)]) == trained([random_input(64, 96)])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("EMBEDDING_DIM", 200, ["100 components", "200 components"]),
        ("MASK_SIZE", 14, ["28×28", "14×14"]),
    ],
)
def test_a_dictionary_that_disagrees_with_the_config(key, value, words):
    cfg = small_config()
    cfg.MODEL.ISTR[key] = value
    with pytest.raises(DictionaryError) as error:
        build_model(cfg)
    assert all(word in str(error.value) for word in words), error.value


def test_a_checkpoint_whose_dictionary_disagrees_with_the_config(tmp_path):
    cfg = small_config()
    cfg.MODEL.ISTR.EMBEDDING_DIM = 40
    Checkpointer(build_model(cfg), str(tmp_path)).save("model")
    cfg.MODEL.ISTR.EMBEDDING_DIM = 60
    path, message = (
        str(tmp_path / "model.pth"),
        (
            "dictionary of 40 components for 28×28 masks, the configuration asks for one of 60 .*"
            r"set MODEL\.ISTR\.EMBEDDING_DIM 40 and MODEL\.ISTR\.MASK_SIZE 28"
        ),
    )
    model = build_model(cfg)
    with pytest.raises(WeightsError, match=message):
        Checkpointer(model, min_matched=0.1).load(path)
    # Asked for, the mask branch starts anew with the config's dictionary.
    fresh = build_model(cfg)
    Checkpointer(fresh, min_matched=0.0).load(path)
    assert torch.equal(
        fresh.mask_embedding.components, MaskEmbedding.from_file("shipped", dim=60).components
    )


def test_an_averaged_model_decodes_by_its_own_dictionary(tiny_istr):
    model = tiny_istr()
    averaged = copy.deepcopy(model)
    assert averaged.criterion.decode.__self__ is averaged.mask_embedding
    assert "criterion" not in {name.split(".")[0] for name in model.state_dict()}


# ---- from a config ----


def test_config_reaches_the_parts():
    cfg = small_config()
    istr = cfg.MODEL.ISTR
    istr.IMAGE_FEATURE, istr.MASK_NOISE, istr.EMBEDDING_DIM = False, True, 33
    istr.POOLER_RESOLUTION, istr.NUM_HEADS, istr.MASK_THRESHOLD = 5, 2, 0.4
    for number, name in enumerate(("CLASS", "BOX", "GIOU", "EMBEDDING", "MASK"), start=1):
        istr[f"{name}_WEIGHT"] = float(number)
        if name != "MASK":
            istr[f"{name}_COST"] = 10.0 * number
    cfg.TEST.DETECTIONS_PER_IMAGE = 17
    model = build_model(cfg)
    assert model.in_features == ("p2", "p3", "p4", "p5")
    assert not model.queries.image_feature
    assert model.queries.features.weight.shape == (10, 32)
    assert model.mask_embedding.noise
    assert (model.mask_embedding.dim, model.mask_embedding.side) == (33, 28)
    assert len(model.refinement.steps) == 2
    step = model.refinement.steps[1]
    assert step.self_attn.num_heads == 2
    assert step.linear1.out_features == 48
    assert step.dynamic_conv.norm1.normalized_shape == (8,)
    assert step.dynamic_conv.out_layer.in_features == 32 * 25
    assert (step.classes.out_features, step.masks.out_features) == (3, 33)
    assert model.refinement.pooler.output_size == (5, 5)
    assert [p.sampling_ratio for p in model.refinement.pooler.level_poolers] == [2] * 4
    criterion, matcher = model.criterion, model.criterion.matcher
    assert (criterion.class_weight, criterion.box_weight, criterion.giou_weight) == (1, 2, 3)
    assert (criterion.embedding_weight, criterion.mask_weight) == (4, 5)
    assert (matcher.class_cost, matcher.box_cost) == (10, 20)
    assert (matcher.giou_cost, matcher.embedding_cost) == (30, 40)
    assert (model.max_instances, model.mask_threshold) == (17, 0.4)
    assert model.pixel_mean.flatten().tolist() == pytest.approx(cfg.MODEL.PIXEL_MEAN)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("HIDDEN_DIM", 64),
        ("NUM_STEPS", 0),
        ("NUM_QUERIES", 0),
        ("NUM_CLASSES", 0),
        ("IN_FEATURES", ["p2", "p3", "p9"]),
        ("IN_FEATURES", ["p3", "p4", "p5"]),
        ("POOLER_RESOLUTION", 0),
    ],
)
def test_a_wrong_value_is_named(key, value):
    cfg = small_config()
    cfg.MODEL.ISTR[key] = value
    with pytest.raises(ValueError, match=rf"MODEL\.ISTR\.{key}"):
        build_model(cfg)


def test_resnet18_trains_from_a_config(random_input):
    torch.manual_seed(0)
    model = build_model(small_config())
    losses = backward(model, [random_input(96, 128), random_input(65, 99, num_instances=0)])
    assert without_gradient(model) == set()
    # A fresh classifier answers about 0.01: the focal loss of 2 images, 10 queries and 3 classes,
    # nearly all of them negative, over 3 instances.
    negatives = 0.75 * 0.01**2 * -math.log(0.99) * (2 * 10 * 3 - 3)
    positives = 0.25 * 0.99**2 * -math.log(0.01) * 3
    assert losses["loss_cls"].item() == pytest.approx(2 * (negatives + positives) / 3, rel=0.5)
