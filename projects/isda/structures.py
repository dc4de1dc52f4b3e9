"""What travels between the parts of a model: predictions of a set, and its targets."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["SetPrediction", "SetTarget"]


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
