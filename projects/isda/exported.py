"""Run a model that isda export wrote, without the rest of this package.

    python -m isda.exported model.onnx photo.jpg --output masks
    python -m isda.exported model.pt2 photos/*.jpg --confidence-threshold 0.3

An exported model is a program: run those of people whom you trust.

It needs NumPy, Pillow, and ONNX Runtime or PyTorch: this file can be copied into any other project.
What it finds goes to the console, a line of JSON for each image, and with --output as pictures into
a folder.
"""

import argparse
import json
import os
import pickle
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


class ExportedModel:
    """A file of isda export, ready to be called.

    Attributes:
        info: what the file says about itself: ``names`` of the classes, ``min_size`` and
            ``max_size`` that images are resized to, ``mask_threshold``, and ``intensity``, how
            images with more than 8 bits are scaled.
    """

    def __init__(self, path: str | Path):
        """
        Args:
            path: ``.onnx`` or ``.pt2``.

        Raises:
            ValueError: the file is of another kind.
        """
        self._run, info = _open(Path(path))
        if not info:
            raise ValueError(f"{path} was not written by isda export")
        self.info = json.loads(info)

    def read(self, path: str | Path) -> Image.Image:
        """An image file as the model was trained on such: upright, RGB, 8 bits.

        Raises:
            ValueError: it has several pages, or numbers that Pillow does not read as they are.
        """
        return read_image(path, self.info.get("intensity", "percentile"))

    def __call__(self, image: Image.Image, threshold: float = 0.5) -> dict[str, np.ndarray]:
        """
        Args:
            image: RGB, of any size.
            threshold: lowest score of what is returned.

        Returns:
            n instances in pixels of the image, best first: ``scores`` ``(n,)``, ``classes``
            ``(n,)``, ``boxes`` ``(n, 4)`` XYXY, ``masks`` ``(n, H, W)`` bool.
        """
        resized = image.resize(self._size(image), Image.Resampling.BILINEAR)
        scores, classes, boxes, masks = self._run(np.asarray(resized))
        found = scores >= threshold
        scale = np.float32([image.width / resized.width, image.height / resized.height] * 2)
        full = self._enlarge(masks[found], image.size)
        visible = full.any(axis=(1, 2))  # specks can vanish when a mask is made smaller
        return {
            "scores": scores[found][visible],
            "classes": classes[found][visible],
            "boxes": (boxes[found] * scale)[visible],
            "masks": full[visible],
        }

    def _size(self, image: Image.Image) -> tuple[int, int]:
        """Detectron2's: one size for the shorter side, unless the longer gets too long."""
        scale = self.info["min_size"] / min(image.size) if self.info["min_size"] else 1.0
        scale = min(scale, self.info["max_size"] / max(image.size))
        return tuple(max(int(side * scale + 0.5), 1) for side in image.size)

    def _enlarge(self, masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        # Probabilities are resized and then compared, so that edges stay smooth: without the
        # averaging that Image.resize does where it shrinks, as the model does it as well.
        full = np.zeros((len(masks), size[1], size[0]), bool)
        for target, mask in zip(full, masks):
            x, y = mask.shape[1] / size[0], mask.shape[0] / size[1]
            resized = Image.fromarray(mask).transform(
                size, Image.Transform.AFFINE, (x, 0, 0, 0, y, 0), Image.Resampling.BILINEAR
            )
            target[:] = np.asarray(resized) > self.info["mask_threshold"]
        return full


def _open(path: Path):
    """A function from an image to the four outputs, and the file's description of itself."""
    if path.suffix == ".onnx":
        return _open_onnx(path)
    if path.suffix == ".pt2":
        return _open_program(path)
    raise ValueError(f"{path}: the name of an exported model ends in .onnx or .pt2")


def _open_onnx(path: Path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    info = session.get_modelmeta().custom_metadata_map.get("isda")
    return lambda image: session.run(None, {"image": image}), info


def _open_program(path: Path):
    import torch

    extra = {"isda.json": ""}
    try:
        with _tensors_only():
            program = torch.export.load(path, extra_files=extra)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds Python objects besides its graph and tensors, which could run code: "
            "it was not written by isda export"
        ) from None
    module = program.module()

    def run(image: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in module(torch.tensor(image))]

    return run, extra["isda.json"]


@contextmanager
def _tensors_only():
    """Else PyTorch unpickles, and so executes, what it cannot read as tensors alone."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update(before)


def read_image(path: str | Path, intensity: str) -> Image.Image:
    """As :meth:`ExportedModel.read`, with a rule of ``INPUT.INTENSITY``."""
    image = Image.open(path)
    tags = getattr(image, "tag_v2", {})
    signed = tags.get(339, (1,))[0] == 2 and tags.get(258, (8,))[0] == 8
    if signed or ";16" in str(image.tile) and image.mode in ("RGB", "RGBA", "LA"):
        raise ValueError(
            f"{path}: Pillow changes the numbers of such an image (signed, or 16 bits per colour): "
            "save it with 8 bits, or as grey with 16"
        )
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{path}: has {image.n_frames} pages: save the one that is meant alone")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = Image.fromarray(to_8_bits(np.asarray(image), intensity))
    return image.convert("RGB")


def to_8_bits(pixels: np.ndarray, intensity: str) -> np.ndarray:
    """``(H, W)`` numbers as uint8: black and white as the rule says, see ``INPUT.INTENSITY``."""
    kind, *numbers = intensity.replace(",", " ").split()
    if kind == "percentile":
        low, high = np.percentile(pixels, [float(n) for n in numbers or (1, 99.8)])
    elif kind != "range":
        low, high = float(kind), float(numbers[0])
    if kind == "range" or low == high:
        low, high = float(pixels.min()), float(pixels.max())
    scaled = (pixels.astype(np.float64) - low) * (255 / max(high - low, 1e-300))
    return (scaled.clip(0, 255) + 0.5).astype(np.uint8)


def overlay(image: Image.Image, masks: np.ndarray) -> Image.Image:
    """The image with each mask in a colour of its own."""
    colours = np.random.default_rng(0).integers(64, 256, size=(len(masks), 3))
    picture = np.asarray(image).astype(np.float32)
    for mask, colour in zip(masks, colours):
        picture[mask] = (picture[mask] + colour) / 2
    return Image.fromarray(picture.astype(np.uint8))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="the .onnx or .pt2 file")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, help="folder for pictures")
    parser.add_argument("--confidence-threshold", type=float, default=0.5)
    return parser.parse_args(arguments)


def write_png(path: Path, picture: Image.Image) -> None:
    """Writes a whole picture; a full disk leaves what was there."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        picture.save(partial, format="png")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        model = ExportedModel(args.model)
        for path in args.images:
            image = model.read(path)
            found = model(image, args.confidence_threshold)
            print(json.dumps(summary(path, found, model.info["names"])))
            if args.output:
                args.output.mkdir(parents=True, exist_ok=True)
                write_png(args.output / f"{path.stem}.png", overlay(image, found["masks"]))
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def summary(path: Path, found: dict[str, np.ndarray], names: list[str]) -> dict:
    instances = [
        {
            "class": names[klass] if names else int(klass),
            "score": round(float(score), 4),
            "box": [round(float(edge), 1) for edge in box],
            "area": int(mask.sum()),
        }
        for score, klass, box, mask in zip(
            *(found[k] for k in ("scores", "classes", "boxes", "masks"))
        )
    ]
    return {"image": str(path), "instances": instances}


if __name__ == "__main__":
    sys.exit(main())
