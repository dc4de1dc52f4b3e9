import json

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from isda.structures import RLEMasks, encode_window

SIZE = (13, 9)


def some_masks():
    """Noise, blocks, everything, nothing, a frame with a hole, single corners."""
    torch.manual_seed(0)
    masks = torch.zeros(8, *SIZE, dtype=torch.bool)
    masks[0] = torch.rand(SIZE) > 0.5
    masks[1, 2:5, 3:8] = True
    masks[2] = True
    masks[4, 1:-1, 1:-1] = True
    masks[4, 5:7, 4] = False
    masks[5, 0, 0] = masks[6, -1, -1] = True
    masks[7, :, 2:5] = True  # whole columns: one run
    return masks


def test_code_is_the_one_of_pycocotools():
    masks = some_masks()
    for mask, rle in zip(masks, RLEMasks.encode(masks).rles, strict=True):
        expected = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        assert rle == {"size": list(SIZE), "counts": expected["counts"].decode()}


@pytest.mark.parametrize("corner", [(0, 0), (3, 2), (0, 4), (8, 0), (8, 4)])
@pytest.mark.parametrize("kind", ["noise", "full", "empty"])
def test_a_window_is_coded_as_the_whole_mask(corner, kind):
    torch.manual_seed(1)
    window = {"noise": torch.rand(5, 5) > 0.4, "full": torch.ones(5, 5), "empty": torch.zeros(5, 5)}
    window = window[kind].bool()
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[corner[0] : corner[0] + 5, corner[1] : corner[1] + 5] = window
    expected = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    assert encode_window(window, corner, SIZE)["counts"] == expected["counts"].decode()


def test_encoded_masks_are_indexed_as_the_tensor():
    masks = some_masks()
    encoded = RLEMasks.encode(masks)
    assert encoded.shape == tuple(masks.shape)
    assert torch.equal(encoded.dense(), masks)
    assert torch.equal(encoded[1], masks[1])
    assert torch.equal(encoded[-1], masks[-1])
    assert all(torch.equal(mine, mask) for mine, mask in zip(encoded, masks, strict=True))
    chosen = torch.tensor([True, False, True, True, False, False, True, False])
    for item in (slice(1, 5), [3, 0], torch.tensor([6, 6, 1]), chosen, chosen.numpy()):
        assert torch.equal(encoded[item].dense(), masks[item])
    assert len(encoded[chosen & False]) == 0
    assert encoded[[]].dense().shape == (0, *SIZE)
    with pytest.raises(IndexError):
        encoded[8]


def test_areas_and_boxes():
    masks = some_masks()
    encoded = RLEMasks.encode(masks)
    assert encoded.areas().tolist() == masks.flatten(1).sum(dim=1).tolist()
    for mask, box in zip(masks, encoded.boxes().tolist(), strict=True):
        ys, xs = mask.nonzero(as_tuple=True)
        if len(ys):
            edges = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert box == [float(edge) for edge in edges]
    assert encoded[[]].boxes().shape == (0, 4)
    assert encoded[[]].areas().shape == (0,)


def test_encoded_masks_are_a_field_of_instances():
    masks = some_masks()
    boxes = Boxes(torch.rand(8, 4))
    instances = Instances(SIZE, pred_boxes=boxes, pred_masks=RLEMasks.encode(masks))
    few = instances[torch.tensor([5, 0])].to("cpu")
    assert torch.equal(few.pred_masks.dense(), masks[[5, 0]])
    both = Instances.cat([few, instances[3]])
    assert torch.equal(both.pred_masks.dense(), masks[[5, 0, 3]])
    json.dumps(both.pred_masks.rles)
