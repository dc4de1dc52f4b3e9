"""A trained model applied to images."""

import contextlib
import dataclasses
import logging
import numbers
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from isda import model_zoo
from isda.data.augmentation import ResizeShortestEdge
from isda.data.images import ImageOptions, pixels_and_rgb
from isda.data.window_reading import ArrayReader, FlippedReader, WindowReader, large_tiff
from isda.engine.architectures import most_instances
from isda.engine.devices import check_device
from isda.engine.inference import load_trained
from isda.engine.scaled_inference import ScaledInference
from isda.engine.setup import load_config
from isda.engine.tiled_inference import TiledInference, check_has_masks
from isda.modeling.folding import fold_norms
from isda.prediction.compilation import compile_inference
from isda.prediction.prediction import Prediction
from isda.tiles.plan import SHRUNK, TilePlan

__all__ = ["Predictor", "confident", "config_of", "trained_config"]

logger = logging.getLogger(__name__)

_THRESHOLD = 0.5
_SURE = 0.5  # score of instances that count where a model's limit may have been reached
_CONFIG = "config.yaml"
_WEIGHTS = ("model_best.pth", "model_final.pth")  # the first that there is


class Predictor:
    """Masks in three lines::

        from isda import Predictor

        predictor = Predictor("output/my_training")
        predictor("photo.jpg").save("photo_with_masks.png")

    Like Detectron2's ``DefaultPredictor``, but it takes names of models, every kind of image and
    lists of them, refuses weights that leave a part of the model untrained, and knows the names
    of the classes. Images are scaled as ``INPUT.MIN_SIZE_TEST`` and ``INPUT.MAX_SIZE_TEST`` say;
    masks have the size of the image as given.

    Attributes:
        model: in evaluation mode.
        class_names: of the classes, in the order of their numbers; None where nothing says them.
        classes: these names, and the ids of the categories in the data of the training.
        image_options: how image files are read.
        tiles: which images are cut into windows.
    """

    def __init__(
        self,
        source: str | os.PathLike | CfgNode,
        *,
        device: str | torch.device | None = None,
        threshold: float | None = None,
        batch_size: int = 1,
        compile: bool = False,
        tiles: str | bool | int | None = None,
    ):
        """
        Args:
            source: a name of ``isda.model_zoo.list()``; the ``OUTPUT_DIR`` of a training, of
                which the best weights are taken, else the final ones; a checkpoint in one; or a
                config whose ``MODEL.WEIGHTS`` names the weights.
            device: such as "cpu" or "cuda:1"; None takes the config's, and the CPU where there is
                no GPU.
            threshold: lowest score of an instance, from 0 to 1. None is 0.5 and, for a config, 0:
                then all come back, as from ``DefaultPredictor``.
            batch_size: images of a list that the model may get at a time, which can be faster on
                GPUs. They must be of one size after scaling, so that none is padded as another
                needs it; what is left is rounding (1e-6 of a score on CPUs).
            compile: by ``torch.compile``, at the first image, which then takes minutes; see
                :func:`isda.prediction.compilation.compile_inference`.
            tiles: "auto" cuts images that would be shrunk more than twice into windows, at the
                scale of the training, "on" all that are larger than a window; a number, such as
                256, does so for a model that was trained on images of so many pixels along the
                shorter side. "off" cuts none. None takes ``TEST.TILES`` of the config.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: there is no such model, training or device, an argument is out of range,
                the weights do not hold the whole model, or it is to be compiled and of a kind
                that cannot be; or its windows could not be merged.
        """
        _check_numbers(threshold, batch_size)
        is_config = isinstance(source, CfgNode)
        cfg = source.clone() if is_config else config_of(source)
        cfg.defrost()
        if device is not None:
            cfg.MODEL.DEVICE = str(check_device(device))
        if threshold is None:
            threshold = 0.0 if is_config else _THRESHOLD
        self.threshold, self.batch_size = threshold, batch_size
        self.tiles = TilePlan.from_config(cfg, tiles)
        if self.tiles.mode != "off":
            check_has_masks(cfg)
        self.model, self.classes = load_trained(cfg)
        fold_norms(self.model)
        if compile:
            compile_inference(self.model)
        self.class_names = self.classes.names
        self.format = cfg.INPUT.FORMAT
        self.image_options = ImageOptions.from_config(cfg)
        self._inference = ScaledInference(cfg, self.model, batch_size)
        self._tiled = TiledInference(self._inference, self.tiles, threshold=threshold)
        self._most_instances = most_instances(cfg)
        self._warned: set[str] = set()

    @property
    def resize(self) -> ResizeShortestEdge:
        """What an image that is not cut goes through before the model."""
        return self._inference.resize

    def __call__(
        self,
        images: Any,
        *,
        channels: str = "RGB",
        page: int | None = None,
        channel: int | None = None,
    ) -> Prediction | list[Prediction]:
        """
        Args:
            images: a path, a picture of Pillow, an array ``(H, W, 3)`` or ``(H, W)``, a tensor
                ``(3, H, W)``, as :func:`isda.data.images.rgb_image` takes them; or a list of such
                images, also of different kinds and sizes.
            channels: ``"RGB"`` or ``"BGR"`` (OpenCV's), the order in arrays and tensors, whatever
                ``INPUT.FORMAT`` is.
            page, channel: of files that have several, the one that is meant, from 0; None: as
                ``INPUT.PAGE`` and ``INPUT.CHANNEL`` say.

        Returns:
            The instances of the image, on the CPU, with masks of its size; of a list, a list. An
            image's do not depend on the others in the list.

        Raises:
            ImageError: an image cannot be read, or is none.
        """
        given = {name: n for name, n in (("page", page), ("channel", channel)) if n is not None}
        options = dataclasses.replace(self.image_options, **given)
        if isinstance(images, str | os.PathLike):
            with self.windows_of(images, options) as reader:
                if reader is not None:
                    return self.of_windows(reader)
        if not isinstance(images, list | tuple):
            return self._predict([pixels_and_rgb(images, channels, options)])[0]
        predictions = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            read = [pixels_and_rgb(image, channels, options) for image in batch]
            predictions += self._predict(read)
        return predictions

    @contextlib.contextmanager
    def windows_of(
        self, path: str | os.PathLike, options: ImageOptions | None = None
    ) -> Iterator[WindowReader | None]:
        """A reader, for :meth:`of_windows`, of a TIFF that is too large to be read at once.

        It is None of any other file, and where windows are off.

        Args:
            options: how the file is read; None: as images of the training were.

        Raises:
            ImageError: as of :func:`isda.data.images.read_image`.
        """
        path = os.fspath(path)
        if self.tiles.mode == "off" or not os.path.isfile(path):
            yield None
            return
        with large_tiff(path, options or self.image_options) as reader:
            yield reader if reader and self.tiles.grid(reader.shape) else None

    def of_windows(self, reader: WindowReader) -> Prediction:
        """The instances of an image that is never in the memory as a whole.

        Args:
            reader: of RGB; larger than a window.

        Returns:
            A prediction without ``image``, which can be saved as JSON.
        """
        pixels = reader if self.format == "RGB" else FlippedReader(reader)
        return Prediction(self._tiled(pixels, self.tiles.grid(reader.shape)), None, *self.classes)

    def _predict(self, images: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Prediction]:
        """Of images in their own numbers, and as RGB."""
        grids = [self.tiles.grid(rgb.shape[:2]) for _, rgb in images]
        seen = [rgb if self.format == "RGB" else rgb[:, :, ::-1] for _, rgb in images]
        wholes = iter(self._inference.whole([x for x, grid in zip(seen, grids) if not grid]))
        predictions = []
        for (pixels, image), x, grid in zip(images, seen, grids):
            instances = self._tiled(ArrayReader(x), grid) if grid else next(wholes)
            if self.threshold > 0:
                instances = confident(instances, self.threshold)
            if not grid:
                self._warn(image.shape[:2], instances)
            predictions.append(Prediction(instances, image, *self.classes, pixels))
        return predictions

    def _warn(self, size: tuple[int, int], instances: Instances) -> None:
        """Once of each, for all images, of what windows would mend."""
        shrinkage = self.tiles.shrinkage(size)
        sure = int((instances.scores >= max(self.threshold, _SURE)).sum())
        if shrinkage > SHRUNK:
            self._warn_once(
                "shrunk",
                f"an image of {size[0]} x {size[1]} pixels (height x width) is shrunk "
                f"{shrinkage:.1f} times before the model sees it, so small things are lost; "
                "tiles='auto' (--tiles) cuts such images into windows",
            )
        elif sure >= self._most_instances:
            self._warn_once(
                "instances",
                f"an image has {sure} instances, as many as the model can find: there may be more; "
                "tiles='on' (--tiles on) finds more in windows",
            )

    def _warn_once(self, kind: str, line: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s", line)


def _check_numbers(threshold: float | None, batch_size: int) -> None:
    if not isinstance(batch_size, numbers.Integral) or isinstance(batch_size, bool):
        raise ValueError(f"batch_size must be a whole number, got {batch_size!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if threshold is None:
        return
    if not isinstance(threshold, numbers.Real) or not 0 <= threshold <= 1:  # NaN included
        raise ValueError(f"threshold is a score, from 0 to 1, got {threshold!r}")


def config_of(source: str | os.PathLike, overrides: Sequence[str] = ()) -> CfgNode:
    """The config of a trained model: of a training as of :func:`trained_config`, or of a name.

    Args:
        overrides: ``KEY, VALUE, ...``, but for ``MODEL.WEIGHTS``, which the source decides.

    Raises:
        ValueError: there is no such training or model, or an override is wrong.
    """
    path = Path(source).expanduser()
    is_training = path.suffix == ".pth" or (path / _CONFIG).is_file()
    if is_training or (path.exists() and not model_zoo.is_known(source)):
        return trained_config(path, overrides)
    return model_zoo.get_config(os.fspath(source), trained=True, overrides=overrides)


def trained_config(training: str | os.PathLike, overrides: Sequence[str] = ()) -> CfgNode:
    """The config of a training, ``MODEL.WEIGHTS`` being what it trained.

    Args:
        training: its ``OUTPUT_DIR``, or a checkpoint in it.
        overrides: as of :func:`config_of`.

    Raises:
        ValueError: there is no config, or no weights.
    """
    path = Path(training).expanduser()
    folder = path if path.is_dir() else path.parent
    if not (folder / _CONFIG).is_file():
        raise ValueError(
            f"{folder} has no {_CONFIG}: give the OUTPUT_DIR of a training, or a name of "
            "isda.model_zoo.list()"
        )
    weights = [folder / name for name in _WEIGHTS] if path.suffix != ".pth" else [path]
    weights = [file for file in weights if file.is_file()]
    if not weights:
        lacking = path.name if path.suffix == ".pth" else " nor ".join(_WEIGHTS)
        raise ValueError(
            f"{folder} has no {lacking}: let the training finish, or name one of its checkpoints, "
            "such as model_0000999.pth"
        )
    cfg = load_config(str(folder / _CONFIG), [*overrides])
    cfg.MODEL.WEIGHTS = str(weights[0])
    return cfg


def confident(instances: Instances, threshold: float) -> Instances:
    """The instances with a score of at least ``threshold``."""
    return instances[instances.scores >= threshold]
