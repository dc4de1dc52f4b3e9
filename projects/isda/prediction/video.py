"""Videos and windows: frames in, and drawn frames out."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.data.catalog import Metadata

from isda.prediction.errors import RequestError
from isda.prediction.prediction import Prediction
from isda.visualization import draw_predictions

__all__ = [
    "ESCAPE",
    "Source",
    "VideoPainter",
    "VideoSink",
    "frames_of",
    "open_source",
    "open_video",
    "show",
]

WINDOW = "isda"
ESCAPE = 27


class Source(NamedTuple):
    """An opened video or camera."""

    capture: cv2.VideoCapture
    frames: int | None  # None: not known
    fps: float  # 0: not known


def open_source(place: str | int, name: str) -> Source:
    """
    Args:
        place: a file, or the number of a camera.
        name: as it is told.

    Raises:
        RequestError: it cannot be opened.
    """
    capture = cv2.VideoCapture(place)
    if not capture.isOpened():
        raise RequestError(f"{name} cannot be opened: is it there, and a format that OpenCV reads?")
    frames = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None
    return Source(capture, frames, capture.get(cv2.CAP_PROP_FPS))


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
            RequestError: the file cannot be written, or there is no window.
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
        RequestError: the file cannot be written.
    """
    if Path(path).suffix.lower() not in (".mp4", ".avi", ".mkv"):
        raise RequestError(f"--output {path}: of a video it is a file, .mp4, .avi or .mkv")
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(path, codec, fps or 25.0, size[::-1])
    if not writer.isOpened():
        raise RequestError(f"--output {path} cannot be written as MPEG-4 video")
    return writer


def show(image: np.ndarray, wait: bool) -> bool:
    """Shows an RGB image in a window, until a key is pressed if ``wait``; False for Escape.

    Raises:
        RequestError: this OpenCV has no windows.
    """
    try:
        cv2.imshow(WINDOW, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(0 if wait else 1) != ESCAPE
    except cv2.error as error:
        raise RequestError("OpenCV can show no window here: add --output to write files") from error
