"""Draw a trained model's instances on images, on a video, or on what a camera sees.

isda predict --model NAME --input a.jpg 'photos/*.jpg' --output masks
isda predict --model output/my_training --input photos --output masks found.json
isda predict --model NAME --input photos --output results --save masks.tif geojson csv
isda predict --config-file FILE --input a.jpg --output masks --opts MODEL.WEIGHTS W.pth
isda predict --model NAME --video-input in.mp4 --output out.mp4
isda predict --model NAME --webcam
"""

import argparse
import contextlib
import logging
import sys
import time
from pathlib import Path

from isda import console
from isda._imports import uncollected
from isda.cli.arguments import config_file
from isda.console import printable
from isda.errors import UsageError
from isda.model_zoo.catalog import entry_of
from isda.prediction.errors import RequestError
from isda.prediction.files import (
    FORMS,
    Outputs,
    Target,
    find_images,
    format_of,
    make_folders,
    needs_pixels,
    sort_outputs,
    split_outputs,
    targets_of,
)

EXPECTED = (ValueError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--model",
        metavar="NAME",
        help="a trained model with its weights: a name that isda models lists, or the OUTPUT_DIR "
        "of a training",
    )
    model.add_argument(
        "--config-file", type=config_file, metavar="FILE", help="with MODEL.WEIGHTS in --opts"
    )
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
        "file for the instances in COCO's format, a .csv file for measurements, and of one image "
        ".tif, .masks.png, .zip, .geojson or .txt; without it a window shows the results",
    )
    parser.add_argument(
        "--save",
        nargs="+",
        default=[],
        choices=FORMS,
        metavar="FORMAT",
        help=f"what the folder of --output gets of each image, instead of a picture: "
        f"{', '.join(FORMS)}",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        help="lowest score of what is drawn (default: 0.5)",
    )
    parser.add_argument(
        "--page",
        type=page_number,
        metavar="N",
        help="of files with several pages the one that is meant, from 0, or all; without it every "
        "page of a stack, as an image of its own",
    )
    parser.add_argument(
        "--channel",
        type=int,
        metavar="N",
        help="of images with several channels the one that is meant, from 0, as a grey image",
    )
    parser.add_argument(
        "--tiles",
        nargs="?",
        const="auto",
        type=tiles_argument,
        metavar="auto|on|PIXELS",
        help="cut large images into overlapping windows at the scale of the training: auto, also "
        "meant without a value, those that would be shrunk more than twice; on all that are larger "
        "than a window; PIXELS as on, for a model that was trained on images of so many pixels "
        "along the shorter side (default: TEST.TILES of the config, off)",
    )
    parser.add_argument("--no-labels", action="store_true", help="masks without names and scores")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs; comes last"
    )


def page_number(text: str) -> int | str:
    """A number from 0, or "all"."""
    if text == "all":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 0 nor all")
    return int(text)


def tiles_argument(text: str) -> str | int:
    """The value of ``--tiles``, as ``Predictor`` takes it."""
    if text.isdigit() and int(text) > 0:
        return int(text)
    if text not in ("off", "auto", "on"):
        raise argparse.ArgumentTypeError(f"auto, on, off or a number of pixels, got '{text}'")
    return text


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.confidence_threshold <= 1:
        raise UsageError(f"--confidence-threshold is from 0 to 1, got {args.confidence_threshold}")
    check_names(args)
    with uncollected():
        from detectron2.utils.logger import setup_logger

        from isda.engine.setup import load_config
        from isda.prediction.predictor import Predictor, config_of

        if not only_json(args):
            import detectron2.utils.visualizer  # noqa: F401  (Matplotlib, which drawing will need)

    with console.unguarded():
        setup_logger(name="isda", abbrev_name="isda")
    logging.getLogger("isda").setLevel(logging.WARNING)
    if args.model:
        cfg = config_of(args.model, args.opts)
    else:
        cfg = load_config(args.config_file, args.opts)
    choose_pixels(cfg, args)
    args.tiles = args.tiles or cfg.TEST.TILES.MODE
    predictor = Predictor(cfg, threshold=args.confidence_threshold, tiles=args.tiles)
    if args.input:
        return 1 if run_on_images(predictor, args) else 0
    run_on_video(predictor, args)
    return 0


def choose_pixels(cfg, args: argparse.Namespace) -> None:
    """Let ``--page`` and ``--channel`` take the place of their keys.

    Raises:
        UsageError: a key that has to do with reading images is wrong.
    """
    from isda.data.images import INTENSITY_RULES, check_intensity

    cfg.defrost()
    if args.page is not None:
        cfg.INPUT.PAGE = -1 if args.page == "all" else args.page
    if args.channel is not None:
        cfg.INPUT.CHANNEL = args.channel
    if cfg.INPUT.CHANNEL < -1 or cfg.INPUT.PAGE < -1:
        raise UsageError("pages and channels are counted from 0")
    if not check_intensity(cfg.INPUT.INTENSITY):
        raise UsageError(f"INPUT.INTENSITY must be {INTENSITY_RULES}")


def check_names(args: argparse.Namespace) -> None:
    """Find mistakes at once that would else be told after seconds, when PyTorch is there.

    Raises:
        ModelZooError: there is no such model.
        RequestError: there is no such image, or results cannot be written as asked.
    """
    path = Path(args.model or "").expanduser()
    if args.model and not path.exists() and path.suffix != ".pth":  # no training's: a name
        entry_of(args.model)
    if args.input:
        images, _ = find_images(args.input)
        targets_of(images, sort_outputs(args.output), args.save)
    else:
        split_outputs(args.output)
        if args.save:
            raise RequestError("--save is for images; of a video, --output takes a .json file")


def only_json(args: argparse.Namespace) -> bool:
    """Whether nothing is drawn."""
    outputs = sort_outputs(args.output)
    if args.save:
        return not {"png", "jpg"} & {*args.save}
    return bool(outputs.json or outputs.table or outputs.files) and not outputs.pictures


class Speed:
    """Counts images, and the seconds of the model and of everything."""

    def __init__(self):
        self.start = time.perf_counter()
        self.images = 0
        self.model_seconds = 0.0

    @contextlib.contextmanager
    def measured(self):
        """For the block in which the model finds the instances of an image."""
        start = time.perf_counter()
        yield
        self.model_seconds += time.perf_counter() - start
        self.images += 1

    def summary(self, noun: str) -> str:
        seconds = time.perf_counter() - self.start
        noun += "s" * (self.images != 1)
        if not self.images:
            return f"0 {noun}"
        return (
            f"{self.images} {noun} in {seconds:.1f} s: {self.images / seconds:.2f} per second, "
            f"{self.images / self.model_seconds:.2f} without reading and drawing"
        )


def run_on_images(predictor, args: argparse.Namespace) -> int:
    """Draws on every image that can be used; returns how many inputs failed."""
    from isda.data.images import to_rgb
    from isda.prediction.coco_json import CocoResults
    from isda.prediction.failures import OF_ONE_IMAGE, reason, what_failed
    from isda.prediction.pages import Page, pages_of
    from isda.prediction.predictor import confident
    from isda.prediction.results import write_result
    from isda.prediction.results.table import TableOfImages
    from isda.prediction.video import show

    images, failures = find_images(args.input)
    outputs = sort_outputs(args.output)
    targets = targets_of(images, outputs, args.save)
    first = [path for image_targets in targets for t in image_targets for path in t.paths()]
    make_folders([*first, *filter(None, (outputs.json, outputs.table))])
    shows = not args.output
    speed = Speed()

    def windows(page: Page):
        """A reader of the windows of what is too large to be read at once, if it is to be cut."""
        if args.tiles in (None, "off"):
            return contextlib.nullcontext()
        return predictor.windows_of(page.path, page.options)

    def predict(page: Page, image_targets: list[Target]) -> bool:
        """Whether to go on: nobody has pressed Escape."""
        written = [path for target in image_targets for path in target.paths(page.number)]
        with windows(page) as reader:
            if reader is None:
                pixels = page.read()
                image = to_rgb(pixels, str(page.path), page.options)
                with speed.measured():
                    instances = predictor(image)
            else:
                if shows or outputs.table or any(map(needs_pixels, written)):
                    raise ValueError(
                        "too large to be drawn or measured: give --output FILE.json or FILE.geojson"
                    )
                pixels = None
                with speed.measured():
                    instances = predictor.of_windows(reader)
        instances = confident(instances, args.confidence_threshold)
        results.add(str(page.path), instances, **page.fields)
        table.add(str(page.path), instances, pixels, **page.fields)
        for path in written:
            write_result(instances, path, pixels, with_labels=not args.no_labels)
        print(progress, f"{page.label}{len(instances)} instances{places_of(written)}")
        return not shows or show(instances.draw(with_labels=not args.no_labels), wait=True)

    with CocoResults(outputs.json, predictor) as results, TableOfImages(outputs.table) as table:
        for number, (path, image_targets) in enumerate(zip(images, targets), 1):
            progress = f"[{number}/{len(images)}] {printable(path)}:"
            try:
                pages = pages_of(path, predictor.image_options)
                if not all(predict(page, image_targets) for page in pages):
                    break
            except OF_ONE_IMAGE as error:
                failures[str(path)] = f"{what_failed(error)}, skipped ({reason(error)})"
                print(progress, "skipped")
    print(speed.summary("image") + told_files(outputs))
    report(failures)
    return len(failures)


def places_of(written: list[Path]) -> str:
    """Where an image's results are, as the end of a sentence."""
    drawn = [path for path in written if format_of(path) == "picture"]
    others = [path for path in written if path not in drawn]
    parts = [f"drawn in {printable(path)}" for path in drawn]
    parts += [f"results in {', '.join(printable(path) for path in others)}"] if others else []
    return "".join(f", {part}" for part in parts)


def told_files(outputs: Outputs) -> str:
    """Which files are for all images together, as the end of a sentence."""
    told = (("instances", outputs.json), ("measurements", outputs.table))
    return "".join(f"; {what} in {file}" for what, file in told if file)


def report(failures: dict[str, str]) -> None:
    """Names every input that failed, at the end, where it is seen."""
    if len(failures) > 1:
        print(f"{len(failures)} inputs failed:", file=sys.stderr)
    for name, why in failures.items():
        print(f"{printable(name)}: {printable(why)}", file=sys.stderr)


def run_on_video(predictor, args: argparse.Namespace) -> None:
    """Draws on every frame; an instance keeps its color from frame to frame.

    Raises:
        RequestError: the video or the camera cannot be opened, or holds no frame.
    """
    from tqdm import tqdm

    from isda.prediction.coco_json import CocoResults
    from isda.prediction.predictor import confident
    from isda.prediction.video import VideoPainter, VideoSink, frames_of, open_source

    video, json_file = split_outputs(args.output)
    make_folders(filter(None, [video, json_file]))
    name = "the camera" if args.webcam else args.video_input
    source = open_source(0 if args.webcam else args.video_input, name)
    painter = VideoPainter(predictor.class_names, not args.no_labels)
    speed = Speed()
    sink = VideoSink(video, source.fps)
    with contextlib.closing(sink), CocoResults(json_file, predictor) as results:
        # disable=None: no bar where it would fill a file
        frames = tqdm(frames_of(source.capture), name, source.frames, unit="frame", disable=None)
        for frame in frames:
            with speed.measured():
                instances = predictor(frame)
            instances = confident(instances, args.confidence_threshold)
            results.add(name, instances, frame_id=speed.images - 1)
            if json_file and not video:
                continue
            if not sink.take(painter.draw(frame, instances)):
                break
    if not speed.images:
        raise RequestError(f"{name} has no frame that can be read")
    print(f"{name}: " + speed.summary("frame"))
    for what, file in (("drawn", video), ("instances", json_file)):
        if file:
            print(f"{what} in {file}")
