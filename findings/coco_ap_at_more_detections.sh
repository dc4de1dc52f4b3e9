#!/usr/bin/env bash
# AP of crowded images needs params.maxDets beyond 100. With the same list, three COCO evaluators give
# three answers for stats[0], "AP":
#
#   maxDets              pycocotools 2.0.11   faster-coco-eval 1.8.0   hotcoco 1.3.0
#   [1, 10, 100]         0.4059               0.4059                   0.4059
#   [1, 10, 400]         -1                   1                        1
#   [1, 10, 100, 400]    0.4059               1                        1
#   length of stats      12, 12, 12           12, 12, 13               12, 12, 12
#
# pycocotools' summarize() looks for the limit 100, whatever the list says: without it AP is -1, and
# with it 400 has no say in AP; but AP50, AP75 and the rest take the third number of the list. So in
# its second row AP is -1 beside an AP50 of 1. The other two take the last number. faster-coco-eval
# also reports recall at each limit, so that everything behind stats[8] moves by one place.
#
# Seen with Python 3.11 on Linux x86_64, 29 November 2026. One image with 250 objects of 10x10 pixels,
# each found exactly. Exits with 1 when any of these numbers changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    pycocotools==2.0.11 faster-coco-eval==1.8.0 hotcoco==1.3.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import contextlib
import io
import json
import sys
import warnings

import faster_coco_eval
import hotcoco
import pycocotools.coco
import pycocotools.cocoeval

boxes = [[12.0 * (i % 50), 12.0 * (i // 50), 10.0, 10.0] for i in range(250)]
truth = {
    "info": {},
    "images": [{"id": 1, "width": 640, "height": 480}],
    "categories": [{"id": 1, "name": "object"}],
    "annotations": [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 100.0, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ],
}
found = [
    {"image_id": 1, "category_id": 1, "bbox": box, "score": 1 - i / 1000}
    for i, box in enumerate(boxes)
]
for name, content in (("truth.json", truth), ("found.json", found)):
    with open(name, "w") as file:
        json.dump(content, file)


def evaluated(data, evaluator, limits):
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = data("truth.json")
        evaluation = evaluator(truth, truth.loadRes("found.json"), "bbox")
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [round(float(value), 4) for value in evaluation.stats]


evaluators = {
    "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
    "faster-coco-eval": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    "hotcoco": (hotcoco.COCO, hotcoco.COCOeval),
}
# AP, AP50, and how many numbers there are.
expected = {
    "pycocotools": [(0.4059, 0.4059, 12), (-1.0, 1.0, 12), (0.4059, 0.4059, 12)],
    "faster-coco-eval": [(0.4059, 0.4059, 12), (1.0, 1.0, 12), (1.0, 1.0, 13)],
    "hotcoco": [(0.4059, 0.4059, 12), (1.0, 1.0, 12), (1.0, 1.0, 12)],
}
same = True
for name, classes in evaluators.items():
    for limits, known in zip([[1, 10, 100], [1, 10, 400], [1, 10, 100, 400]], expected[name]):
        stats = evaluated(*classes, limits)
        seen = (stats[0], stats[1], len(stats))
        same &= seen == known
        print(f"{name:17}{str(limits):19} AP {seen[0]:7} AP50 {seen[1]:7} of {seen[2]} numbers")
sys.exit(not same)
PYTHON
