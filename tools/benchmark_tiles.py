#!/usr/bin/env python3
"""AP and time on mosaics: their parts one by one, shrunk wholes, windows, and sahi's slices.

    python tools/make_mosaics.py --annotations datasets/nuclei_mini/instances_val.json \
        --images datasets/nuclei_mini/images --output output/mosaics
    python tools/benchmark_tiles.py --mosaics output/mosaics --sides 1024 \
        --model nuclei/isda_boxes_mobilenet_v2

Writes a row of a Markdown table for each size and way: mask AP and AP50 of all detections with a
score of at least --score, however many an image has; the share of the instances that are found
(score at least 0.5, IoU at least 0.5), of all and of those that touch another one; and processor
time as a multiple of that of the parts one by one. sahi is left out where it is not installed.
"""

import argparse
import contextlib
import importlib.util
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from isda import Predictor
from isda.data.images import read_image
from isda.structures import RLEMasks, encode_window

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

WAYS = ("one by one", "whole", "windows", "sahi")
SURE = 0.5

Way = Callable[[dict, np.ndarray], list[dict]]  # an image of the JSON, its pixels → results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mosaics", type=Path, required=True, help="of tools/make_mosaics.py")
    parser.add_argument("--model", required=True)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--tile", type=int, default=256, help="side of the parts")
    parser.add_argument("--score", type=float, default=0.05)
    args = parser.parse_args()
    torch.set_num_threads(1)
    predictor = Predictor(args.model, threshold=args.score)
    windows = Predictor(args.model, threshold=args.score, tiles=args.tile)
    predictor(np.zeros((args.tile, args.tile, 3), np.uint8))  # the first image is slower
    parts = OneByOne(predictor, args.tile)
    ways: dict[str, Way] = {
        "one by one": parts,
        "whole": lambda image, pixels: results(image["id"], predictor(pixels)),
        "windows": lambda image, pixels: results(image["id"], windows(pixels)),
    }
    if importlib.util.find_spec("sahi"):
        ways["sahi"] = Sahi(predictor, args.tile)
    print("|Model|Image|Way|mask AP|AP50|found|of touching|detections|s per image|time|")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    for side in args.sides:
        path = args.mosaics / f"mosaics_{side}.json"
        baseline = None
        for name in [way for way in args.ways if way in ways]:
            row, seconds = measured(path, ways[name])
            baseline = baseline or seconds
            cells = [args.model, f"{side}²", name, *row]
            cells += [f"{seconds:.1f}", f"{seconds / baseline:.2f}"]
            print(f"|{'|'.join(cells)}|", flush=True)


def measured(path: Path, way: Way) -> tuple[list[str], float]:
    """AP, AP50, found, found of touching ones, detections; seconds of the processor per image."""
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO(str(path))
    found: list[dict] = []
    seconds = 0.0
    for image in annotated.dataset["images"]:
        pixels = read_image(str(path.parent / "images" / image["file_name"]), "RGB")
        start = time.process_time()
        found += way(image, pixels)
        seconds += time.process_time() - start
    if isinstance(way, OneByOne):
        seconds = way.seconds(annotated.dataset["images"])
    return evaluated(annotated, found), seconds / len(annotated.dataset["images"])


def results(image_id: int, instances) -> list[dict]:
    """COCO's results of ``Instances``, without boxes, of which AP would take the areas."""
    masks = instances.pred_masks
    masks = masks if isinstance(masks, RLEMasks) else RLEMasks.encode(masks)
    return [
        {"image_id": image_id, "category_id": label + 1, "score": score, "segmentation": rle}
        for label, score, rle in zip(
            instances.pred_classes.tolist(), instances.scores.tolist(), masks.rles
        )
    ]


class OneByOne:
    """Every part of a mosaic as an image of its own; each photograph is predicted once."""

    def __init__(self, predictor: Predictor, tile: int):
        self.predictor, self.tile = predictor, tile
        self.found: dict[str, tuple] = {}  # by the name of the photograph: instances, seconds

    def __call__(self, image: dict, pixels: np.ndarray) -> list[dict]:
        size, placed = pixels.shape[:2], []
        for part in image["tiles"]:
            y, x, name = part["y"], part["x"], part["file_name"]
            if name not in self.found:
                start = time.process_time()
                instances = self.predictor(pixels[y : y + self.tile, x : x + self.tile])
                self.found[name] = (instances, time.process_time() - start)
            instances = self.found[name][0]
            for result, mask in zip(results(image["id"], instances), instances.pred_masks):
                placed.append(result | {"segmentation": encode_window(mask, (y, x), size)})
        return placed

    def seconds(self, images: list[dict]) -> float:
        """Of all parts, had each been predicted where it lies."""
        mean = np.mean([seconds for _, seconds in self.found.values()])
        return float(mean) * sum(len(image["tiles"]) for image in images)


class Sahi:
    """sahi's sliced prediction with its defaults: overlap 0.2, GREEDYNMM by IOS above 0.5."""

    def __init__(self, predictor: Predictor, tile: int):
        from sahi.models.base import DetectionModel
        from sahi.prediction import ObjectPrediction

        class Model(DetectionModel):
            required_packages = ()

            def load_model(self):
                self.model = predictor

            def perform_inference(self, image: np.ndarray):
                self._original_predictions = predictor(image)

            def _create_object_prediction_list_from_original_predictions(
                self, shift_amount_list=None, full_shape_list=None
            ):
                found = self._original_predictions
                self._object_prediction_list_per_image = [
                    [
                        ObjectPrediction(
                            bbox=box,
                            segmentation=polygons,
                            category_id=label,
                            category_name=str(label),
                            score=score,
                            shift_amount=shift_amount_list[0],
                            full_shape=full_shape_list[0],
                        )
                        for mask, box, label, score in zip(
                            found.pred_masks,
                            found.pred_boxes.tensor.int().tolist(),
                            found.pred_classes.tolist(),
                            found.scores.tolist(),
                        )
                        if (polygons := outlines(mask))
                    ]
                ]

        self.model = Model(category_mapping={"0": "nucleus"}, confidence_threshold=0.0)
        self.tile = tile

    def __call__(self, image: dict, pixels: np.ndarray) -> list[dict]:
        from sahi.predict import get_sliced_prediction

        found = get_sliced_prediction(
            np.ascontiguousarray(pixels),
            self.model,
            slice_height=self.tile,
            slice_width=self.tile,
            perform_standard_pred=False,
            verbose=0,
        )
        size = pixels.shape[:2]
        results = []
        for item in found.object_prediction_list:
            polygons = [p for p in item.mask.segmentation if len(p) >= 6]
            if polygons:
                rle = mask_util.merge(mask_util.frPyObjects(polygons, *size))
                results.append(
                    {
                        "image_id": image["id"],
                        "category_id": item.category.id + 1,
                        "score": float(item.score.value),
                        "segmentation": rle,
                    }
                )
        return results


def outlines(mask: torch.Tensor) -> list[list[int]]:
    """A mask as the polygons that sahi takes."""
    contours, _ = cv2.findContours(
        mask.numpy().astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    return [contour.ravel().tolist() for contour in contours if len(contour) >= 3]


class ManyDetections(COCOeval):
    """COCO's matching over all areas, which looks only at pairs that overlap by half.

    The original compares every detection with every annotation of an image, in Python.
    """

    def evaluateImg(self, image_id, category_id, area_range, max_detections):  # noqa: N802
        truths, found = self._gts[image_id, category_id], self._dts[image_id, category_id]
        if not truths and not found:
            return None
        order = np.argsort([-x["score"] for x in found], kind="mergesort")[:max_detections]
        found = [found[index] for index in order]
        ious = self.ious[image_id, category_id]
        shape = len(self.params.iouThrs), len(found)
        matched, taken = np.zeros(shape), np.zeros((shape[0], len(truths)))
        near = [np.flatnonzero(row >= self.params.iouThrs[0]) for row in ious]
        for level, threshold in enumerate(self.params.iouThrs):
            for index, candidates in enumerate(near):
                best, chosen = min(threshold, 1 - 1e-10), None
                for truth in candidates:
                    if not taken[level, truth] and ious[index, truth] >= best:
                        best, chosen = ious[index, truth], truth
                if chosen is not None:
                    taken[level, chosen] = found[index]["id"]
                    matched[level, index] = truths[chosen]["id"]
        return {
            "image_id": image_id,
            "category_id": category_id,
            "aRng": area_range,
            "maxDet": max_detections,
            "dtIds": [x["id"] for x in found],
            "gtIds": [x["id"] for x in truths],
            "dtMatches": matched,
            "gtMatches": taken,
            "dtScores": [x["score"] for x in found],
            "gtIgnore": np.zeros(len(truths)),
            "dtIgnore": np.zeros(shape, bool),
        }


def evaluated(annotated: COCO, found: list[dict]) -> list[str]:
    if not found:
        return ["0.0", "0.0", "0.0 %", "0.0 %", "0"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = ManyDetections(annotated, annotated.loadRes(found), "segm")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [len(found)]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    sure = set()
    for image in filter(None, evaluation.evalImgs):
        hits = (image["dtMatches"][0] > 0) & (np.array(image["dtScores"]) >= SURE)
        sure.update(image["dtMatches"][0][hits].astype(int).tolist())
    touching = set(touching_ids(annotated))
    shares = [len(sure) / len(annotated.anns), len(sure & touching) / max(len(touching), 1)]
    aps = [100 * precision.mean(), 100 * precision[0].mean()]
    return [f"{ap:.1f}" for ap in aps] + [f"{share:.1%}" for share in shares] + [str(len(found))]


def touching_ids(annotated: COCO) -> Iterator[int]:
    """Annotations with a pixel of another one among their eight neighbours."""
    for image in annotated.dataset["images"]:
        numbers = np.zeros((image["height"] + 2, image["width"] + 2), np.int64)
        places = {}
        for annotation in annotated.imgToAnns[image["id"]]:
            mask = mask_util.decode(annotation["segmentation"]) > 0
            rows, columns = np.nonzero(mask)
            numbers[rows + 1, columns + 1] = annotation["id"]
            places[annotation["id"]] = rows, columns
        for number, (rows, columns) in places.items():
            around = [numbers[rows + y, columns + x] for y in range(3) for x in range(3)]
            if any(((n > 0) & (n != number)).any() for n in around):
                yield number


if __name__ == "__main__":
    main()
