"""Predictions with awkward masks, and an independent way back from outlines to masks."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from isda.prediction.prediction import Prediction


def awkward_masks():
    """``{name: (H, W) bool}``: holes, islands in them, corners that touch, borders, dust."""
    masks = {name: np.zeros((12, 17), bool) for name in ("pixel", "ring", "two", "corners", "full")}
    masks["pixel"][3, 5] = True
    masks["ring"][1:11, 2:15] = True
    masks["ring"][3:9, 4:13] = False
    masks["ring"][5:7, 6:10] = True  # an island in the hole
    masks["two"][0:3, 0:4] = masks["two"][9:12, 12:17] = True  # at the border
    masks["corners"][2:4, 2:4] = masks["corners"][4:6, 4:6] = True
    masks["corners"][8:11, 8:11] = True
    masks["corners"][9, 9] = False
    masks["full"][:] = True
    closed = np.zeros((12, 17), bool)  # a walk around it comes to one corner twice
    closed[2:7, 2:7] = True
    closed[3:6, 3:6] = False
    closed[2, 2] = False
    masks["closed by a corner"] = closed
    holes = np.ones((12, 17), bool)
    holes[4, 4] = holes[5, 5] = holes[6, 4] = False  # holes that touch at corners
    masks["touching holes"] = holes
    random = np.random.default_rng(0)
    for index in range(8):
        masks[f"random {index}"] = random.random((12, 17)) < (index + 1) / 9
    return masks


def filled(rings, shape):
    """``(H, W)`` bool: pixels whose centres are in an odd number of rings (even-odd rule).

    A ray goes from each centre to the right and counts the sides that it crosses.
    """
    height, width = shape
    y, x = np.mgrid[:height, :width] + 0.5
    crossings = np.zeros(shape, int)
    for ring in rings:
        ring = np.asarray(ring, float)
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0)):
            if y0 == y1:
                continue
            spans = (np.minimum(y0, y1) <= y) & (y < np.maximum(y0, y1))
            crossings += spans & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return crossings % 2 == 1


def prediction_of(masks, scores=None, classes=None, names=("nucleus", "cell/2"), image=None):
    """A prediction with these masks, ``(n, H, W)`` bool."""
    masks = np.asarray(masks)
    instances = Instances(masks.shape[1:])
    instances.pred_masks = torch.from_numpy(masks)
    instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    default = np.linspace(0.9, 0.5, len(masks))
    instances.scores = torch.tensor(np.array(default if scores is None else scores))
    instances.pred_classes = torch.tensor(classes or [0] * len(masks), dtype=torch.int64)
    image = np.zeros((*masks.shape[1:], 3), np.uint8) if image is None else image
    return Prediction(instances, image, list(names))
