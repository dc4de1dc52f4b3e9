"""What travels between the parts of a model: predictions of a set, and its targets."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["EmbeddedPrediction", "EmbeddedTarget", "SetPrediction", "SetTarget"]


@dataclass
class SetPrediction:
    """N instances per image, as one decoder layer predicts them.

    Masks are kept factored: the logits of instance n are ``kernels[:, n] · mask_features``, a
    1×1 convolution. Whoever needs masks multiplies the few kernels that count.
    """

    class_logits: Tensor  # (B, N, K)
    kernels: Tensor  # (B, N, C)
    mask_features: Tensor  # (B, C, h, w), at the mask stride; one tensor shared by all layers


@dataclass
class SetTarget:
    """G ground-truth instances of one image.

    The masks end with the image's valid extent in cells, so they also tell how much of a padded
    prediction counts.
    """

    classes: Tensor  # (G,) int64
    masks: Tensor  # (G, valid h, valid w) in [0, 1], at the mask stride


@dataclass
class EmbeddedPrediction:
    """N instances per image, as one refinement step predicts them: a mask is a short vector.

    The vector describes the mask inside the box; whoever needs masks decodes the few that count.
    """

    class_logits: Tensor  # (B, N, K)
    boxes: Tensor  # (B, N, 4) XYXY in pixels of the padded image, never empty; float32
    embeddings: Tensor  # (B, N, d)


@dataclass
class EmbeddedTarget:
    """G ground-truth instances of one image, each mask cropped to its box and encoded, once."""

    classes: Tensor  # (G,) int64
    boxes: Tensor  # (G, 4) XYXY in pixels
    masks: Tensor  # (G, S, S) bool, inside the box
    embeddings: Tensor  # (G, d)
    image_size: tuple[int, int]  # (height, width) without padding
