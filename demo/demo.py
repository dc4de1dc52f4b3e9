#!/usr/bin/env python
"""Draw a trained model's instances on images, on a video, or on what a camera sees.

demo.py --model NAME --input a.jpg 'photos/*.jpg' --output masks
demo.py --model NAME --input photos --output masks found.json
demo.py --config-file CONFIG --input a.jpg --output masks --opts MODEL.WEIGHTS W.pth
demo.py --config-file CONFIG --video-input in.mp4 --output out.mp4 --opts MODEL.WEIGHTS W.pth
demo.py --config-file CONFIG --webcam --opts MODEL.WEIGHTS W.pth
"""

import argparse
import contextlib
import glob
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from isda.data.images import read_image  # before Detectron2, whose import it makes silent

# isort: split
import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.utils.logger import setup_logger
from PIL import UnidentifiedImageError
from pycocotools import mask as coco_mask
from tqdm import tqdm

from isda import console, model_zoo, strict_json
from isda.console import printable
from isda.data.errors import ImageError
from isda.engine.prediction import Prediction
from isda.engine.predictor import Predictor, confident
from isda.engine.setup import load_config
from isda.files import write_text
from isda.visualization import draw_predictions, write_image

WINDOW = "isda"
ESCAPE = 27
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


# What one image may raise, for its content, its size or the file that it is drawn into. The others
# are gone through all the same.
OF_ONE_IMAGE = (ImageError, OSError, RuntimeError, MemoryError, ValueError, cv2.error)


class DemoError(Exception):
    """Something that the user asked for is not possible; the message says why."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--model", metavar="NAME", help="a trained model of docs/MODEL_ZOO.md, with its weights"
    )
    model.add_argument("--config-file", metavar="FILE", help="with MODEL.WEIGHTS in --opts")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="IMAGE", help="images, folders, or quoted patterns"
    )
    source.add_argument("--video-input", metavar="FILE")
    source.add_argument("--webcam", action="store_true", help="the first camera")
    parser.add_argument(
        "--output",
        nargs="+",
        default=[],
        metavar="PATH",
        help="of one image or a video a file, of several images a folder; and, or instead, a .json "
        "file for the instances in COCO's format; without it a window shows the results",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        help="lowest score of what is drawn (default: 0.5)",
    )
    parser.add_argument("--no-labels", action="store_true", help="masks without names and scores")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs; comes last"
    )
    args = parser.parse_args(arguments)
    if not 0 <= args.confidence_threshold <= 1:
        parser.error(f"--confidence-threshold is from 0 to 1, got {args.confidence_threshold}")
    return args


def split_outputs(paths: list[str]) -> tuple[str | None, str | None]:
    """Of the arguments of ``--output``: where pictures go, and the JSON file; None where none.

    Raises:
        DemoError: there are two of a kind.
    """
    results = [path for path in paths if Path(path).suffix.lower() == ".json"]
    pictures = [path for path in paths if path not in results]
    for kind in (results, pictures):
        if len(kind) > 1:
            raise DemoError(
                f"--output {' '.join(kind)}: give one folder or file for pictures, and one .json "
                "file for instances, at most"
            )
    if results and Path(results[0]).is_dir():
        raise DemoError(f"--output {results[0]} is a folder, and instances are written into a file")
    return (pictures or [None])[0], (results or [None])[0]


def find_images(inputs: list[str]) -> tuple[list[Path], dict[str, str]]:
    """Files that the arguments of ``--input`` mean: themselves, matches, contents of folders.

    Returns:
        The files, and ``{argument: reason}`` of the arguments that mean none.

    Raises:
        DemoError: there is no file at all.
    """
    found: list[Path] = []
    missing: dict[str, str] = {}
    for item in inputs:
        path = Path(item).expanduser()
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists():  # first, because names may contain brackets
            files = [path]
        else:
            files = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not files:
            missing[item] = "no image there"
        found += files
    if not found:
        raise DemoError(f"--input {' '.join(inputs)}: no image there")
    return list(dict.fromkeys(found)), missing


def output_paths(images: list[Path], output: str) -> list[Path]:
    """Where each image's result goes: into the folder ``output``, or to the file of that name.

    Files of one name from several folders are numbered.

    Raises:
        DemoError: a file is to hold several results, or a result would replace an image.
    """
    target = Path(output)
    if target.suffix.lower() in IMAGE_SUFFIXES and not target.is_dir():
        if len(images) > 1:
            raise DemoError(f"--output {output} is one file, but there are {len(images)} images")
        paths = [target]
    else:
        paths = _numbered(images, target)
    originals = {image.resolve() for image in images}
    if replaced := [path for path in paths if path.resolve() in originals]:
        raise DemoError(f"--output {output} would replace {replaced[0]}: give another folder")
    return paths


def _numbered(images: list[Path], folder: Path) -> list[Path]:
    taken: set[str] = set()
    paths = []
    for image in images:
        # Pillow reads formats that OpenCV cannot write.
        suffix = image.suffix if image.suffix.lower() in IMAGE_SUFFIXES else ".png"
        name, number = image.stem + suffix, 1
        while name in taken:
            number += 1
            name = f"{image.stem}_{number}{suffix}"
        taken.add(name)
        paths.append(folder / name)
    return paths


def make_folders(files: Iterable[str | Path]) -> None:
    """Where results will be written; seen to before there are any.

    Raises:
        DemoError: a folder cannot be made or written into.
    """
    for folder in {Path(file).parent for file in files}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DemoError(
                f"--output: the folder {folder} cannot be made ({error.strerror}): give another one"
            ) from error
        if not os.access(folder, os.W_OK):
            raise DemoError(f"--output: the folder {folder} cannot be written: give another one")


class CocoResults:
    """Instances of many images, written as one file in COCO's format when the block ends.

    The file has ``images`` (with their names), ``categories`` (with ids as in the data set that
    the model was trained on) and ``annotations``: run-length encoded masks, boxes, and ``score``.
    """

    def __init__(self, path: str | None, predictor: Predictor):
        """
        Args:
            path: of the file; None: nothing is kept.
            predictor: names the classes, which are numbered if it does not.
        """
        self.path = path
        self.classes = predictor.classes
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def __enter__(self) -> "CocoResults":
        return self

    def __exit__(self, *_) -> None:  # also when somebody interrupts: what was found is not lost
        if self.path:
            write_text(self.path, strict_json.dumps(self.content()))

    def add(self, file_name: str, prediction: Prediction, **fields) -> None:
        """Takes the instances of one image; ``fields`` stand beside its name."""
        if not self.path:
            return
        height, width = prediction.image_size
        image = {"id": len(self.images) + 1, "file_name": file_name}
        self.images.append(image | {"height": height, "width": width} | fields)
        for found in prediction.to_coco(image["id"]):
            width, height = found["bbox"][2:]
            area = (
                coco_mask.area(found["segmentation"]) if "segmentation" in found else width * height
            )
            number = len(self.annotations) + 1
            self.annotations.append(found | {"id": number, "area": float(area), "iscrowd": 0})

    def content(self) -> dict:
        """What the file holds."""
        names, ids = self.classes
        if names is None:  # numbered, as far as they were seen
            ids = sorted({annotation["category_id"] for annotation in self.annotations})
            names = [f"class {number - 1}" for number in ids]
        ids = ids or range(1, len(names) + 1)
        return {
            "info": {"description": "instances predicted by ISDA's demo.py"},
            "images": self.images,
            "categories": [{"id": number, "name": name} for number, name in zip(ids, names)],
            "annotations": self.annotations,
        }


class Speed:
    """Counts images, and the seconds of the model and of everything."""

    def __init__(self):
        self.start = time.perf_counter()
        self.images = 0
        self.model_seconds = 0.0

    def predict(self, predictor: Predictor, image: np.ndarray, threshold: float) -> Prediction:
        """Instances with a score of at least ``threshold``."""
        start = time.perf_counter()
        instances = predictor(image)
        self.model_seconds += time.perf_counter() - start
        self.images += 1
        return confident(instances, threshold)

    def summary(self, noun: str) -> str:
        seconds = time.perf_counter() - self.start
        noun += "s" * (self.images != 1)
        if not self.images:
            return f"0 {noun}"
        return (
            f"{self.images} {noun} in {seconds:.1f} s: {self.images / seconds:.2f} per second, "
            f"{self.images / self.model_seconds:.2f} without reading and drawing"
        )


def run_on_images(predictor: Predictor, args: argparse.Namespace) -> int:
    """Draws on every image that can be used; returns how many inputs failed."""
    images, failures = find_images(args.input)
    pictures, json_file = split_outputs(args.output)
    outputs = output_paths(images, pictures) if pictures else [None] * len(images)
    make_folders([*filter(None, outputs), *filter(None, [json_file])])
    speed = Speed()
    with CocoResults(json_file, predictor) as results:
        for number, (path, output) in enumerate(zip(images, outputs), 1):
            progress = f"[{number}/{len(images)}] {printable(path)}:"
            try:
                image = read_image(str(path), "RGB")
                instances = speed.predict(predictor, image, args.confidence_threshold)
                results.add(str(path), instances)
                drawn = None
                if output or not json_file:
                    drawn = draw_predictions(
                        image, instances, predictor.class_names, with_labels=not args.no_labels
                    )
                if output:
                    write_image(output, drawn)
            except OF_ONE_IMAGE as error:
                failures[str(path)] = f"{what_failed(error)}, skipped ({reason(error)})"
                print(progress, "skipped")
                continue
            place = f", drawn in {printable(output)}" if output else ""
            print(progress, f"{len(instances)} instances{place}")
            if drawn is not None and not output and not show(drawn, wait=True):
                break
    print(speed.summary("image") + (f"; instances in {json_file}" if json_file else ""))
    report(failures)
    return len(failures)


def report(failures: dict[str, str]) -> None:
    """Names every input that failed, at the end, where it is seen."""
    if len(failures) > 1:
        print(f"{len(failures)} inputs failed:", file=sys.stderr)
    for name, why in failures.items():
        print(f"{printable(name)}: {printable(why)}", file=sys.stderr)


def what_failed(error: Exception) -> str:
    return "cannot be read" if isinstance(error, ImageError) else "failed"


def reason(error: Exception) -> str:
    """Why an image cannot be used; an ImageError's own advice is for data sets."""
    if not isinstance(error, ImageError):
        return f"{error}" or type(error).__name__
    if isinstance(error.__cause__, UnidentifiedImageError):
        return "no image, or of an unknown format"
    return str(error.__cause__ or error)


def frames_of(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """RGB frames until the stream ends; then the stream is closed."""
    try:
        while True:
            success, frame = capture.read()
            if not success:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


def run_on_video(predictor: Predictor, args: argparse.Namespace) -> None:
    """Draws on every frame; an instance keeps its color from frame to frame.

    Raises:
        DemoError: the video or the camera cannot be opened, or holds no frame.
    """
    video, json_file = split_outputs(args.output)
    make_folders(filter(None, [video, json_file]))
    name = "the camera" if args.webcam else args.video_input
    capture = cv2.VideoCapture(0 if args.webcam else args.video_input)
    if not capture.isOpened():
        raise DemoError(f"{name} cannot be opened: is it there, and a format that OpenCV reads?")
    painter = VideoPainter(predictor.class_names, not args.no_labels)
    frames = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None
    speed = Speed()
    sink = VideoSink(video, capture.get(cv2.CAP_PROP_FPS))
    with contextlib.closing(sink), CocoResults(json_file, predictor) as results:
        # disable=None: no bar where it would fill a file
        for frame in tqdm(frames_of(capture), name, frames, unit="frame", disable=None):
            instances = speed.predict(predictor, frame, args.confidence_threshold)
            results.add(name, instances, frame_id=speed.images - 1)
            if json_file and not video:
                continue
            if not sink.take(painter.draw(frame, instances)):
                break
    if not speed.images:
        raise DemoError(f"{name} has no frame that can be read")
    print(f"{name}: " + speed.summary("frame"))
    for what, file in (("drawn", video), ("instances", json_file)):
        if file:
            print(f"{what} in {file}")


class VideoPainter:
    """Draws frames one after the other, with Detectron2's way to keep colors."""

    def __init__(self, class_names: list[str] | None, with_labels: bool):
        self.class_names = class_names
        self.with_labels = with_labels
        # Matplotlib with it: a second, for videos alone.
        from detectron2.utils import video_visualizer

        self.instance = video_visualizer._DetectedInstance
        self.tracker = video_visualizer.VideoVisualizer(Metadata())

    def draw(self, frame: np.ndarray, instances: Prediction) -> np.ndarray:
        """An RGB frame under its instances."""
        tracked = [
            self.instance(label, box, mask_rle=None, color=None, ttl=8)
            for label, box in zip(
                instances.pred_classes.tolist(), instances.pred_boxes.tensor.numpy()
            )
        ]
        # Not draw_instance_predictions, which cannot leave labels out.
        colors = self.tracker._assign_colors(tracked) if tracked else []
        return draw_predictions(
            frame, instances, self.class_names, with_labels=self.with_labels, colors=colors
        )


class VideoSink:
    """Where drawn frames go: into a file, or to a window."""

    def __init__(self, path: str | None, fps: float):
        self.path = path
        self.fps = fps
        self.writer: cv2.VideoWriter | None = None

    def take(self, frame: np.ndarray) -> bool:
        """Writes or shows an RGB frame; False where the user pressed Escape.

        Raises:
            DemoError: the file cannot be written, or there is no window.
        """
        if not self.path:
            return show(frame, wait=False)
        if self.writer is None:
            self.writer = open_video(self.path, self.fps, frame.shape[:2])
        self.writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        return True

    def close(self) -> None:
        if self.writer is not None:
            self.writer.release()


def open_video(path: str, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """A writer of MPEG-4 frames.

    Args:
        fps: frames per second; cameras that do not tell it say 0.
        size: (height, width).

    Raises:
        DemoError: the file cannot be written.
    """
    if Path(path).suffix.lower() not in (".mp4", ".avi", ".mkv"):
        raise DemoError(f"--output {path}: of a video it is a file, .mp4, .avi or .mkv")
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(path, codec, fps or 25.0, size[::-1])
    if not writer.isOpened():
        raise DemoError(f"--output {path} cannot be written as MPEG-4 video")
    return writer


def show(image: np.ndarray, wait: bool) -> bool:
    """Shows an RGB image in a window, until a key is pressed if ``wait``; False for Escape.

    Raises:
        DemoError: this OpenCV has no windows.
    """
    try:
        cv2.imshow(WINDOW, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(0 if wait else 1) != ESCAPE
    except cv2.error as error:
        raise DemoError("OpenCV can show no window here: add --output to write files") from error


def read_config(args: argparse.Namespace) -> CfgNode:
    """The configuration that the arguments name, with its weights.

    Raises:
        ValueError: there is no such model or key, or a value is wrong.
    """
    if args.model:
        return model_zoo.get_config(args.model, trained=True, overrides=args.opts)
    return load_config(args.config_file, args.opts)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    with console.unguarded():
        setup_logger(name="isda", abbrev_name="isda")
    logging.getLogger("isda").setLevel(logging.WARNING)
    try:
        predictor = Predictor(read_config(args))
        if args.input:
            return 1 if run_on_images(predictor, args) else 0
        run_on_video(predictor, args)
    except (DemoError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    console.start()
    sys.exit(main())
