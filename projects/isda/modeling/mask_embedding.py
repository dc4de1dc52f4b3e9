"""Masks as short vectors: the frozen linear code of ISTR, and the masks that it is about."""

import os

import numpy as np
import torch
from detectron2.structures import BitMasks, PolygonMasks
from torch import Tensor, nn

from isda.modeling.mask_dictionary import AMPLITUDE, DictionaryError, MaskDictionary

__all__ = ["MaskEmbedding", "crop_masks"]

# Of the authors' random targets (used only with noise).
_LARGEST_RHO = 0.05
_SMALLEST_RHO = 0.01

# Bitmaps that are widened to float32 at a time.
_CHUNK_PIXELS = 1 << 25
# Pixels from a box; pycocotools, which draws the polygons, does not check where they lie.
_FARTHEST = float(1 << 18)


def crop_masks(masks: BitMasks | PolygonMasks, boxes: Tensor, side: int) -> Tensor:
    """Target masks: each instance's mask inside its box (ISTR, arXiv 2105.00637, section 3.2).

    Fitting and training share this routine. Polygons are moved and scaled to the box and drawn at
    S×S; bitmaps are averaged by ROIAlign and cut at a half.

    Args:
        masks: of G instances.
        boxes: ``(G, 4)`` XYXY in the masks' pixels.
        side: S.

    Returns:
        ``(G, S, S)`` bool, on the device of ``boxes``.

    Raises:
        ValueError: not as many boxes as masks.
    """
    if len(masks) != len(boxes):
        raise ValueError(f"{len(masks)} masks and {len(boxes)} boxes: they must be pairs")
    if len(masks) == 0:
        return torch.zeros(0, side, side, dtype=torch.bool, device=boxes.device)
    if isinstance(masks, PolygonMasks):
        return _near(masks, boxes, side).crop_and_resize(boxes, side)
    pixels = masks.tensor.shape[-2] * masks.tensor.shape[-1]
    chunk = max(_CHUNK_PIXELS // max(pixels, 1), 1)
    boxes = boxes.to(torch.float32)
    crops = [
        masks[start : start + chunk].crop_and_resize(boxes[start : start + chunk], side)
        for start in range(0, len(masks), chunk)
    ]
    return torch.cat(crops).to(boxes.device)


def _near(masks: PolygonMasks, boxes: Tensor, side: int) -> PolygonMasks:
    """The same polygons; vertices absurdly far from a box, in its own measure, are moved closer."""
    corners = boxes.detach().cpu().numpy().astype(np.float64)
    reach = _FARTHEST / side * np.maximum(corners[:, 2:] - corners[:, :2], 0.1)
    if all(
        np.abs(part.reshape(-1, 2) - corner[:2]).max(initial=0) <= limit.min()
        for parts, corner, limit in zip(masks.polygons, corners, reach)
        for part in parts
    ):
        return masks
    near = [
        [np.clip(p.reshape(-1, 2), c[:2] - limit, c[:2] + limit).reshape(-1) for p in parts]
        for parts, c, limit in zip(masks.polygons, corners, reach)
    ]
    return PolygonMasks(near)


class MaskEmbedding(nn.Module):
    """A frozen linear code of S×S masks (ISTR, arXiv 2105.00637, section 3.2).

    Masks are taken as logits ±a. ``r = (x − μ) Vᵀ / √λ`` encodes, ``sigmoid((r √λ) V + μ)``
    decodes. All numbers are buffers, so a checkpoint carries its own dictionary, and optimisers
    never see it.

    Attributes:
        side: S.
        dim: d.
        amplitude: a.
        noise: whether targets are drawn as the authors' are.
        components: ``(d, S*S)`` orthonormal rows V.
        mean: ``(S*S,)`` μ.
        explained_variance: ``(d,)`` λ.
    """

    def __init__(
        self, side: int = 28, dim: int = 60, amplitude: float = AMPLITUDE, noise: bool = False
    ):
        """All buffers are zero: for a checkpoint to fill, see also :meth:`from_file`.

        Args:
            noise: draws a per pixel and call, as the authors do: logit(1 − ρ) with
                ρ = max(0.01, 0.05·U(0, 1)), whose mean is the default amplitude.
        """
        super().__init__()
        if not 0 < dim <= side * side:
            raise DictionaryError(
                f"a dictionary of {dim} components for {side}×{side} masks: the number must be "
                f"from 1 to {side * side}"
            )
        self.side, self.dim = side, dim
        self.amplitude, self.noise = amplitude, noise
        self.register_buffer("components", torch.zeros(dim, side * side))
        self.register_buffer("mean", torch.zeros(side * side))
        self.register_buffer("explained_variance", torch.zeros(dim))

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike,
        *,
        dim: int | None = None,
        side: int | None = None,
        noise: bool = False,
    ) -> "MaskEmbedding":
        """Build it from a file of ours or of the authors' layout.

        Args:
            path: a file, or ``"shipped"`` for the dictionary that comes with this package.
            dim: d; a larger dictionary is cut to its first d components. None takes all.
            side: S, to be checked. None takes the file's.
            noise: as in the constructor.

        Raises:
            DictionaryError: the file cannot be read, or has another S or fewer components.
        """
        dictionary = MaskDictionary.load(path)
        dim, side = dim or dictionary.dim, side or dictionary.side
        if side != dictionary.side or dim > dictionary.dim:
            raise DictionaryError(
                f"{path}: is a mask dictionary of {_described(dictionary.dim, dictionary.side)}, "
                f"asked for are {_described(dim, side)}: ask for what it has, or fit another "
                f"with isda mask-dictionary fit --side {side} --dim {dim}"
            )
        return cls.of(dictionary.first(dim), noise=noise)

    @classmethod
    def of(cls, dictionary: MaskDictionary, *, noise: bool = False) -> "MaskEmbedding":
        """The embedding of a dictionary in memory."""
        embedding = cls(dictionary.side, dictionary.dim, dictionary.amplitude, noise)
        for name, buffer in embedding.named_buffers():
            buffer.copy_(torch.from_numpy(getattr(dictionary, name)))
        return embedding

    @property
    def is_fitted(self) -> bool:
        """False while the buffers are zero: neither a file nor a checkpoint has filled them."""
        return bool(self.explained_variance.all())

    @torch.no_grad()
    def encode(self, masks: Tensor) -> Tensor:
        """
        Args:
            masks: ``(G, S, S)`` bool, or floats in {0, 1}.

        Returns:
            ``(G, d)``, about unit variance in every entry.
        """
        return self.project(self._logits(masks))

    @torch.no_grad()
    def project(self, logits: Tensor) -> Tensor:
        """``(G, S, S)`` logits to their embeddings ``(G, d)``; of decoded logits, the very same."""
        with torch.autocast(logits.device.type, enabled=False):
            mean, components, deviations = self._dictionary(logits.dtype)
            return (logits.flatten(1).to(mean.dtype) - mean) @ components.T / deviations

    def decode(self, embeddings: Tensor) -> Tensor:
        """
        Args:
            embeddings: ``(M, d)``.

        Returns:
            ``(M, S, S)`` probabilities, differentiable, float32 (float64 of float64).
        """
        return self.decode_logits(embeddings).sigmoid()

    def decode_logits(self, embeddings: Tensor) -> Tensor:
        """As :meth:`decode`, before the sigmoid."""
        with torch.autocast(embeddings.device.type, enabled=False):
            mean, components, deviations = self._dictionary(embeddings.dtype)
            logits = (embeddings.to(mean.dtype) * deviations) @ components + mean
            return logits.unflatten(-1, (self.side, self.side))

    def extra_repr(self) -> str:
        return f"side={self.side}, dim={self.dim}, amplitude={self.amplitude}, noise={self.noise}"

    def _logits(self, masks: Tensor) -> Tensor:
        masks = masks.to(torch.promote_types(self.mean.dtype, torch.float32))
        if not self.noise:
            return self.amplitude * (2 * masks - 1)
        rho = (_LARGEST_RHO * torch.rand_like(masks)).clamp(min=_SMALLEST_RHO)
        return (2 * masks - 1) * torch.logit(1 - rho)

    def _dictionary(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """μ, V and √λ in at least float32."""
        dtype = torch.promote_types(torch.promote_types(dtype, self.mean.dtype), torch.float32)
        return (
            self.mean.to(dtype),
            self.components.to(dtype),
            self.explained_variance.to(dtype).sqrt(),
        )

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # One sentence in the place of a size mismatch per buffer.
        *_, error_msgs = args
        there = state_dict.get(prefix + "components")
        if there is not None and there.shape != self.components.shape:
            dim, pixels = there.shape
            error_msgs.append(
                f"{prefix}components is a mask dictionary of {_described(dim, int(pixels**0.5))} "
                f"in the checkpoint, of {_described(self.dim, self.side)} here: build the model "
                f"for {dim} components and a side of {int(pixels**0.5)}"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *args)


def _described(dim: int, side: int) -> str:
    return f"{dim} components for {side}×{side} masks"
