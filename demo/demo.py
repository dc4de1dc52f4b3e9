#!/usr/bin/env python
"""Draw a trained model's instances on images, on a video, or on what a camera sees.

demo.py --config-file CONFIG --input a.jpg 'photos/*.jpg' --output masks --opts MODEL.WEIGHTS W.pth
demo.py --config-file CONFIG --video-input in.mp4 --output out.mp4 --opts MODEL.WEIGHTS W.pth
demo.py --config-file CONFIG --webcam --opts MODEL.WEIGHTS W.pth
"""

import argparse
import glob
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from isda.data.images import read_image  # before Detectron2, whose import it makes silent

# isort: split
import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger
from detectron2.utils.video_visualizer import VideoVisualizer
from PIL import UnidentifiedImageError

from isda.data.errors import ImageError
from isda.engine.predictor import Predictor, confident
from isda.engine.setup import load_config
from isda.visualization import draw_predictions, write_image

WINDOW = "isda"
ESCAPE = 27
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


class DemoError(Exception):
    """Something that the user asked for is not possible; the message says why."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="IMAGE", help="images, folders, or quoted patterns"
    )
    source.add_argument("--video-input", metavar="FILE")
    source.add_argument("--webcam", action="store_true", help="the first camera")
    parser.add_argument(
        "--output",
        help="of one image or a video a file, of several images a folder; without it a window "
        "shows the results",
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


def find_images(inputs: list[str]) -> list[Path]:
    """Files that the arguments of ``--input`` mean: themselves, matches, contents of folders.

    Raises:
        DemoError: an argument means no file.
    """
    found: list[Path] = []
    for item in inputs:
        path = Path(item).expanduser()
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists():  # first, because names may contain brackets
            files = [path]
        else:
            files = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not files:
            raise DemoError(f"--input {item}: no image there")
        found += files
    return list(dict.fromkeys(found))


def output_paths(images: list[Path], output: str) -> list[Path]:
    """Where each image's result goes: into the folder ``output``, or to the file of that name.

    Files of one name from several folders are numbered.

    Raises:
        DemoError: a file is to hold several results.
    """
    target = Path(output)
    if target.suffix.lower() in IMAGE_SUFFIXES and not target.is_dir():
        if len(images) > 1:
            raise DemoError(f"--output {output} is one file, but there are {len(images)} images")
        return [target]
    taken: set[str] = set()
    paths = []
    for image in images:
        name, number = image.name, 1
        while name in taken:
            number += 1
            name = f"{image.stem}_{number}{image.suffix}"
        taken.add(name)
        paths.append(target / name)
    return paths


def run_on_images(predictor: Predictor, args: argparse.Namespace) -> int:
    """Draws on every image that can be read; returns how many could not."""
    images = find_images(args.input)
    outputs = output_paths(images, args.output) if args.output else [None] * len(images)
    failures = 0
    for path, output in zip(images, outputs):
        try:
            image = read_image(str(path), "RGB")
        except ImageError as error:
            failures += 1
            print(f"{path}: cannot be read, skipped ({reason(error)})", file=sys.stderr)
            continue
        start = time.perf_counter()
        instances = confident(predictor(image), args.confidence_threshold)
        seconds = time.perf_counter() - start
        drawn = draw_predictions(
            image, instances, predictor.class_names, with_labels=not args.no_labels
        )
        if output is None:
            print(f"{path}: {len(instances)} instances in {seconds:.2f} s")
            if not show(drawn, wait=True):
                break
        else:
            write_image(output, drawn)
            print(f"{path}: {len(instances)} instances in {seconds:.2f} s, drawn in {output}")
    return failures


def reason(error: ImageError) -> str:
    """Why an image cannot be read; the error's own advice is for data sets."""
    if isinstance(error.__cause__, UnidentifiedImageError):
        return "no image, or of an unknown format"
    return str(error.__cause__ or error)


def frames_of(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """RGB frames until the stream ends."""
    while True:
        success, frame = capture.read()
        if not success:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def run_on_video(predictor: Predictor, args: argparse.Namespace) -> None:
    """Draws on every frame; an instance keeps its color from frame to frame.

    Raises:
        DemoError: the video or the camera cannot be opened, or holds no frame.
    """
    name = "the camera" if args.webcam else args.video_input
    capture = cv2.VideoCapture(0 if args.webcam else args.video_input)
    if not capture.isOpened():
        raise DemoError(f"{name} cannot be opened: is it there, and a format that OpenCV reads?")
    metadata = MetadataCatalog.get("__demo__").set(thing_classes=predictor.class_names or [])
    visualizer = VideoVisualizer(metadata)
    output, count = None, 0
    try:
        for frame in frames_of(capture):
            instances = confident(predictor(frame), args.confidence_threshold)
            drawn = visualizer.draw_instance_predictions(frame, instances).get_image()
            count += 1
            if args.output is None:
                if not show(drawn, wait=False):
                    break
                continue
            if output is None:
                output = open_video(args.output, capture.get(cv2.CAP_PROP_FPS), drawn.shape[:2])
            output.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    finally:
        capture.release()
        if output is not None:
            output.release()
    if not count:
        raise DemoError(f"{name} has no frame that can be read")
    print(f"{name}: {count} frames" + (f", drawn in {args.output}" if args.output else ""))


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
    Path(path).parent.mkdir(parents=True, exist_ok=True)
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


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    setup_logger(name="isda", abbrev_name="isda")
    logging.getLogger("isda").setLevel(logging.WARNING)
    try:
        predictor = Predictor(load_config(args.config_file, args.opts))
        if args.input:
            return 1 if run_on_images(predictor, args) else 0
        run_on_video(predictor, args)
    except (DemoError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
