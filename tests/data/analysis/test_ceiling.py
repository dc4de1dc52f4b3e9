"""What sizes and stride leave of masks: by hand, by the model's own parts, and by COCO's code."""

import contextlib
import io
from dataclasses import replace

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import BitMasks
from examples_of_datasets import annotation, box
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from isda import add_isda_config
from isda.data.analysis.ceiling import AnnotatedImage, MaskForm, mask_ceilings
from isda.data.analysis.outlook import look_ahead
from isda.data.dataset_mapper import InstanceDatasetMapper
from isda.modeling.postprocessing import paste_masks
from isda.training.masks import shrink_masks


def form(stride=4, short=64, longest=128, queries=100, detections=100) -> MaskForm:
    return MaskForm(short, longest, stride, queries, detections)


def squares(*numbers, classes=None) -> AnnotatedImage:
    """An image of 64×64 pixels; each square is (x, y, side)."""
    polygons = [box(x, y, side, side) for x, y, side in numbers]
    return AnnotatedImage((64, 64), polygons, classes or [1] * len(polygons))


def ceiling(image: AnnotatedImage, *forms: MaskForm):
    return mask_ceilings([image], forms)


@pytest.mark.parametrize(
    ("stride", "square", "shape_iou", "passed"),
    [
        # One cell of 1 among zeros: a pixel d cells off its centre along x, e along y gets
        # (1 − d)(1 − e). At stride 4 d is 1/8 or 3/8: the four corners get 0.39, all others of
        # the sixteen at least 0.54.
        (4, (8, 8, 4), 12 / 16, 6),
        # At stride 8 d is 1/16, 3/16, 5/16 or 7/16: 10 of 16 pixels of a quadrant are above.
        (8, (8, 8, 8), 10 / 16, 3),
        # 16 cells: nothing but the four corner pixels is lost.
        (4, (16, 16, 16), 252 / 256, 10),
        # d is 1/4: the corner keeps 9/16, so a square on the grid comes back as it was.
        (2, (10, 20, 2), 1.0, 10),
        (1, (11, 21, 3), 1.0, 10),
        # Between the pixels that stride 4 looks at, 2 and 3 of each four.
        (4, (8, 8, 1), 0.0, 0),
    ],
)
def test_squares_by_hand(stride, square, shape_iou, passed):
    (found,) = ceiling(squares(square), form(stride))
    assert found.ap == pytest.approx(10 * passed)  # of ten thresholds
    assert found.ap50 == 100 * (shape_iou >= 0.5) and found.ap75 == 100 * (shape_iou >= 0.75)


def test_an_image_that_is_seen_at_twice_its_size():
    """Halving takes the mean of two pixels along each side, which is what stride 4 has there."""
    found = ceiling(squares((8, 8, 4)), form(8, short=128), form(4), form(8))
    assert [c.ap for c in found] == pytest.approx([60, 60, 0])


def test_an_object_in_two_parts_of_which_one_is_kept():
    """256 and 64 pixels: with both IoU is 312 / 320, with the larger 252 / 320."""
    parts = box(8, 8, 16, 16) + box(40, 8, 8, 8)
    image = AnnotatedImage((64, 64), [parts], [1])
    one = replace(form(), keep_largest_component=True)
    assert [c.ap for c in ceiling(image, form(), one)] == pytest.approx([100, 60])


def test_classes_count_alike_and_crowds_not_at_all():
    image = squares((8, 8, 4), (32, 32, 16), (1, 40, 1), classes=[5, 5, 9])
    assert ceiling(image, form())[0].ap == pytest.approx((80 + 0) / 2)
    record = {"height": 64, "width": 64}
    record["annotations"] = [
        annotation(1, 1, 5, box(32, 32, 16, 16)),
        annotation(2, 1, 5, box(8, 8, 4, 4)) | {"iscrowd": 1},
    ]
    found = ceiling(AnnotatedImage.of_dict(record), form())[0]
    assert found.ap == pytest.approx(100) and found.num_instances == 1


def test_more_instances_than_can_be_found():
    image = squares(*((16 * i, 16 * j, 16) for i in range(4) for j in range(2)))
    found = ceiling(image, form(), form(queries=6), form(detections=2), form(queries=8))
    assert [c.ap for c in found] == pytest.approx([100, 75, 25, 100])
    assert [c.num_beyond for c in found] == [0, 2, 6, 0]
    other = squares((16, 16, 16))
    assert mask_ceilings([image, other], [form(queries=4)])[0].ap == pytest.approx(100 * 5 / 9)


def test_what_cannot_be_used_is_left_out():
    broken = [[[1, 1, 5, 5, 9, 9]], {"size": [9, 9], "counts": [81]}, None, box(90, 90, 5, 5)]
    image = AnnotatedImage((64, 64), [*broken, *box_masks()], [1] * 5)
    assert ceiling(image, form())[0].num_sampled == 1
    assert mask_ceilings([AnnotatedImage((64, 64), broken, [1] * 4)], [form()]) == []
    assert mask_ceilings([], [form()]) == []
    assert look_ahead([], form(), 10) is None


def box_masks():
    return [box(16, 16, 16, 16)]


def test_a_sample_is_the_same_each_time_and_draws_no_random_number():
    images = [squares((8, 8, 4), (32, 32, 16)) for _ in range(100)]
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, second = (mask_ceilings(images, [form()], limit=80)[0] for _ in range(2))
    assert first == second and first.num_sampled == 80 and first.num_instances == 200
    assert first.ap == pytest.approx(80, abs=100 * 0.5 / np.sqrt(80) * 2)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.equal(torch.get_rng_state(), torch_state)


SIZES = [(60, 91), (128, 64), (45, 70), (200, 190)]
CATEGORIES = [{"id": 3, "name": "blob"}, {"id": 7, "name": "star"}]


def random_content(seed: int) -> dict:
    """Ellipses as RLE, and stars as polygons with points anywhere, also beyond the border."""
    generator = np.random.default_rng(seed)
    images, annotations = [], []
    for number, (height, width) in enumerate(SIZES):
        images.append({"id": number, "file_name": f"{number}", "height": height, "width": width})
        rows, columns = np.mgrid[:height, :width]
        for index in range(14):
            x, y = generator.uniform(0, width), generator.uniform(0, height)
            a, b = generator.uniform(1.5, 12, size=2)
            if index % 2:
                mask = ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 <= 1
                segmentation = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
                area = int(mask.sum())
            else:
                angles = np.sort(generator.uniform(0, 2 * np.pi, 9))
                radii = generator.uniform(0.4, 1, 9)
                points = np.stack([x + a * radii * np.cos(angles), y + b * radii * np.sin(angles)])
                segmentation = [points.T.reshape(-1).tolist()]
                area = int(mask_util.area(mask_util.frPyObjects(segmentation, height, width))[0])
            if area:
                record = annotation(len(annotations) + 1, number, 3 + 4 * (index % 3 == 0), None)
                record |= {"segmentation": segmentation, "area": area, "bbox": [0, 0, 1, 1]}
                annotations.append(record)
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def as_the_model_does(image: dict, annotations: list[dict], stride: int, cfg) -> list[dict]:
    """RLEs of whole masks: the mapper's transforms, the model's targets, its postprocessing."""
    size = image["height"], image["width"]
    mapper = InstanceDatasetMapper(cfg, is_train=False)
    pixels, transforms = mapper._augment(np.zeros((*size, 3), np.uint8), "image")
    seen = pixels.shape[:2]
    rles = []
    for record in annotations:
        instances = mapper._instances(
            {"file_name": "image", "annotations": [record]}, transforms, size, seen
        )
        masks = instances.gt_masks if len(instances) else BitMasks(torch.zeros(1, *seen).bool())
        padded = tuple(-(-side // 32) * 32 for side in seen)
        canvas = torch.zeros(1, *padded, dtype=torch.bool)
        canvas[:, : seen[0], : seen[1]] = masks.tensor
        pasted = paste_masks(shrink_masks(canvas, stride), padded, seen, size)[0]
        rles.append(mask_util.encode(np.asfortranarray(pasted.numpy(), dtype=np.uint8)))
    return rles


def coco_ap(content: dict, results: list[dict]) -> tuple[float, float, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = 100 * evaluation.eval["precision"][:, :, :, 0, -1]
    return precision.mean(), precision[0].mean(), precision[5].mean()


@pytest.mark.parametrize(("stride", "short"), [(4, 64), (2, 64), (8, 96), (1, 40), (4, 0)])
def test_agrees_with_cocos_own_evaluation(stride, short):
    cfg = get_cfg()
    add_isda_config(cfg)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.MASK_FORMAT = short, 150, "bitmask"
    content = random_content(stride)
    results, images = [], []
    for image in content["images"]:
        records = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        size = image["height"], image["width"]
        images.append(AnnotatedImage.of_dict(image | {"annotations": records}))
        for record, rle in zip(records, as_the_model_does(image, records, stride, cfg)):
            truth = record["segmentation"]
            truth = mask_util.frPyObjects(truth, *size)[0] if isinstance(truth, list) else truth
            iou = float(mask_util.iou([rle], [truth], [0])[0, 0])
            ids = {"image_id": image["id"], "category_id": record["category_id"]}
            results.append(ids | {"segmentation": rle, "score": iou})
    form = MaskForm(short, 150, stride, 100, 100)
    (found,) = mask_ceilings(images, [form])
    # 101 recalls and not the whole curve; a mask may lie better on another true one.
    for ours, cocos in zip((found.ap, found.ap50, found.ap75), coco_ap(content, results)):
        assert ours == pytest.approx(cocos, abs=1.5)
    # The masks themselves are those of the model.
    iou = np.array([r["score"] for r in results])
    classes = np.array([r["category_id"] for r in results])
    passed = iou[:, None] >= np.linspace(0.5, 0.95, 10)
    expected = np.mean([passed[classes == c].mean() for c in (3, 7)])
    assert found.ap == pytest.approx(100 * expected, abs=1e-9)


def test_remedies():
    image = squares((8, 8, 4), (24, 8, 4), (40, 8, 4))
    outlook = look_ahead([image], form(4, queries=2), 100)
    assert outlook.is_low and outlook.ceiling.ap == pytest.approx(40)
    assert {keys: round(c.ap) for keys, c in outlook.remedies.items()} == {
        "MODEL.ISDA.MASK_STRIDE 2 MODEL.ISDA.MASK_FEATURE_STRIDE 4": 67,  # 1 gains nothing more
        "INPUT.MIN_SIZE_TEST 128 INPUT.MAX_SIZE_TEST 256": 67,
        "MODEL.ISDA.NUM_QUERIES 10": 60,
    }
    sentence = outlook.sentence("this", "val")
    assert sentence.startswith("with this a perfect ISDA could reach mask AP 40 (AP50 67, AP75 67)")
    assert "looked at" not in sentence
    good = look_ahead([squares((32, 32, 16))] * 3, form(4), 2, enough=101)
    assert not good.is_low and good.remedies == {}
    assert good.sentence("this", "val").endswith("on val (2 of 3 instances looked at)")
    assert look_ahead([image], form(4), 100, enough=40).remedies == {}
