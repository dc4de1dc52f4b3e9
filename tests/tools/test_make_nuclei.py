"""The whole nuclei set, out of folders as its source has them."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest

TOOL = Path(__file__).parents[2] / "tools" / "make_nuclei.py"


def write_field(source: Path, name: str, shape: tuple, color: bool, num_masks: int = 1):
    """A photograph with an alpha channel, and masks that are boxes side by side."""
    pixels = np.full((*shape, 4), 255, np.uint8)
    pixels[..., :3] = np.arange(shape[1], dtype=np.uint8)[None, :, None]
    if color:
        pixels[..., 1] += 7
    for part in ("images", "masks"):
        (source / name / part).mkdir(parents=True)
    cv2.imwrite(str(source / name / "images" / f"{name}.png"), pixels)
    for i in range(num_masks):
        mask = np.zeros(shape, np.uint8)
        mask[2:5, 4 * i : 4 * i + 3] = 255
        cv2.imwrite(str(source / name / "masks" / f"{i}.png"), mask)


def run(source: Path, output: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, TOOL, "--source", source, "--output", output, *options]
    return subprocess.run(map(str, command), capture_output=True, text=True, check=False)


@pytest.fixture
def source(tmp_path):
    for i in range(9):
        write_field(tmp_path / "source", f"{i:x}" * 20, (16, 24), color=False, num_masks=i % 3 + 1)
    for i in range(9, 12):
        write_field(tmp_path / "source", f"{i:x}" * 20, (16, 24), color=True)
    write_field(tmp_path / "source", "f" * 20, (1024, 1024), color=False)
    return tmp_path / "source"


def test_split_pixels_and_masks(source, tmp_path):
    finished = run(source, tmp_path / "out", "--val-images", "5")
    assert finished.returncode == 0, finished.stderr
    splits = {
        split: json.loads((tmp_path / "out" / f"instances_{split}.json").read_text())
        for split in ("train", "val")
    }
    names = {split: {i["source_id"] for i in c["images"]} for split, c in splits.items()}
    # Of 12 images 9 are grey: 3.75 and 1.25 places, so the fifth is grey.
    order = sorted(
        (f"{i:x}" * 20 for i in range(12)), key=lambda n: hashlib.sha1(n.encode()).digest()
    )
    grey = [name for name in order if int(name[0], 16) < 9]
    colour = [name for name in order if int(name[0], 16) >= 9]
    assert names["val"] == {*grey[:4], colour[0]}
    assert names["train"] == {*grey[4:], *colour[1:]}
    for content in splits.values():
        for image in content["images"]:
            number = int(image["source_id"][0], 16)
            pixels = cv2.imread(
                str(tmp_path / "out" / "images" / image["file_name"]), cv2.IMREAD_UNCHANGED
            )
            assert pixels.shape == ((16, 24) if number < 9 else (16, 24, 3))
            assert pixels[3, 20].tolist() == (20 if number < 9 else [20, 27, 20])
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            assert len(own) == (number % 3 + 1 if number < 9 else 1)
            for i, annotation in enumerate(own):
                assert annotation["bbox"] == [4 * i, 2, 3, 3] and annotation["area"] == 9
                mask = mask_util.decode(annotation["segmentation"])
                assert mask[2:5, 4 * i : 4 * i + 3].all() and mask.sum() == 9


@pytest.mark.parametrize("spoil", ["nothing", "size", "empty", "image"])
def test_what_is_wrong_is_named(source, tmp_path, spoil):
    folder = source / ("0" * 20)
    if spoil == "nothing":
        finished, named = run(tmp_path / "elsewhere", tmp_path / "out"), "--source is stage1_train"
    else:
        mask = folder / "masks" / "0.png"
        if spoil == "image":
            mask = folder / "images" / f"{folder.name}.png"
            mask.write_bytes(b"no image")
        else:
            cv2.imwrite(str(mask), np.zeros((16, 24) if spoil == "empty" else (3, 3), np.uint8))
        finished, named = run(source, tmp_path / "out"), mask.name
    assert finished.returncode == 1
    assert named in finished.stderr and "Traceback" not in finished.stderr
