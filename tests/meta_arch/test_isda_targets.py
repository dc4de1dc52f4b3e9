import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from isda.training.masks import shrink_masks


@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("size", [(32, 64), (33, 61), (7, 200), (1, 1), (40, 9)])
def test_shrinking_is_bilinear_interpolation(size, stride):
    torch.manual_seed(0)
    masks = torch.rand(3, *size) > 0.5
    height, width = size
    padded = F.pad(masks, (0, -width % 32, 0, -height % 32)).float()
    expected = F.interpolate(
        padded[None], scale_factor=1 / stride, mode="bilinear", align_corners=False
    )[0]
    found = shrink_masks(masks, stride)
    rows, columns = -(-height // stride), -(-width // stride)
    assert found.shape == (3, rows, columns)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected[:, :rows, :columns])
    assert not expected[:, rows:].any()
    assert not expected[:, :, columns:].any()


def test_shrinking_no_masks():
    assert shrink_masks(torch.zeros(0, 33, 61, dtype=torch.bool), 4).shape == (0, 9, 16)


def losses_and_vanished(model, batched_inputs):
    with EventStorage() as storage:
        losses = model(batched_inputs)
        return losses, storage.latest()["vanished_targets"][0]


def test_vanished_ground_truths_are_left_out_and_counted(tiny_isda, random_input):
    model = tiny_isda()
    whole, some = random_input(64, 96, num_instances=3), random_input(64, 96, num_instances=5)
    # At stride 4 the samples lie between pixels 1 and 2 of every four.
    masks = torch.zeros(5, 64, 96, dtype=torch.bool)
    masks[[0, 2, 4]] = whole["instances"].gt_masks.tensor
    masks[1, 40, 44] = True
    some["image"] = whole["image"]
    some["instances"].gt_masks = BitMasks(masks)
    some["instances"].gt_classes[[0, 2, 4]] = whole["instances"].gt_classes
    expected, none = losses_and_vanished(model, [whole])
    found, two = losses_and_vanished(model, [some])
    assert (none, two) == (0, 2)
    assert found == expected
    torch.testing.assert_close(
        model.targets([some])[0].masks, shrink_masks(masks[[0, 2, 4]], 4), rtol=0, atol=0
    )


def test_targets_count_without_an_event_storage(tiny_isda, random_input):
    assert len(tiny_isda().targets([random_input(64, 64)])[0].classes) == 3


def test_polygons_are_rasterised(tiny_isda, random_input):
    model, x = tiny_isda(), random_input(50, 70)
    corners = [
        [[5.0, 7.0, 30.0, 7.0, 30.0, 33.0]],
        [[40, 10, 60, 10, 60, 40, 40, 40.0]],
        [[0, 0, 9, 0, 9, 12.0]],
    ]
    polygons = PolygonMasks(corners)
    x["instances"].gt_masks = polygons
    with_polygons = model([x])
    x["instances"].gt_masks = BitMasks.from_polygon_masks(polygons, 50, 70)
    assert x["instances"].gt_masks.tensor.flatten(1).sum(1).min() > 40
    assert model([x]) == with_polygons


def test_an_image_without_annotations_from_detectron2s_mapper(tiny_isda, random_input):
    x = random_input(50, 70, num_instances=0)
    expected = tiny_isda()([x])
    instances = Instances((50, 70))  # as annotations_to_instances makes it: without gt_masks
    instances.gt_boxes, instances.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0).long()
    x["instances"] = instances
    assert tiny_isda()([x]) == expected


def test_annotations_without_masks_are_refused(tiny_isda, random_input):
    x = random_input(50, 70)
    x["instances"].remove("gt_masks")
    with pytest.raises(ValueError, match=r"no masks \(gt_masks\).*set MODEL\.MASK_ON True"):
        tiny_isda()([x])


def test_a_class_beyond_the_head_is_refused(tiny_isda, random_input):
    x = random_input(50, 70)
    x["instances"].gt_classes[1] = 3
    message = r"class 3, but the model has only 3 classes: set MODEL\.ISDA\.NUM_CLASSES"
    with pytest.raises(ValueError, match=message):
        tiny_isda(num_classes=3)([x])
