"""``Instances`` as COCO's results, without decoding masks that are encoded already."""

from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from isda.structures import RLEMasks

__all__ = ["coco_results"]


def coco_results(instances: Instances, image_id: int) -> list[dict]:
    """Detectron2's ``instances_to_coco_json``, of ``RLEMasks`` as well.

    Returns:
        Per instance ``image_id``, ``category_id`` (the number of its class), ``bbox`` (x, y,
        width, height), ``score`` and, of a model with masks, ``segmentation`` (RLE).
    """
    boxes = Instances(instances.image_size, **instances.get_fields()).to("cpu")
    masks = boxes.pred_masks if boxes.has("pred_masks") else None
    if masks is None:
        return instances_to_coco_json(boxes, image_id)
    boxes.remove("pred_masks")
    results = instances_to_coco_json(boxes, image_id)
    masks = masks if isinstance(masks, RLEMasks) else RLEMasks.encode(masks)
    for result, rle in zip(results, masks.rles, strict=True):
        result["segmentation"] = rle
    return results
