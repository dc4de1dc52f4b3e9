"""State dicts of classifiers, also those that hold batch norm folded into convolutions."""

import logging

from torch import Tensor, nn

from isda.errors import ConfigError
from isda.weights_files import WeightsError, read_state_dict

__all__ = ["fold_batch_norms", "load_weights"]

logger = logging.getLogger(__name__)


def load_weights(net: nn.Module, source: str) -> None:
    """Load a state dict into ``net`` and log what it lacks.

    A file with folded batch norm (convolutions with a bias, no norms) is recognised: ``net``
    gets the biases and loses those norms. Keys of layers that ``net`` does not have, such as
    the classifier, are passed over.

    Args:
        net: changed in place.
        source: a path or URL of a file of weights, in any of the kinds that
            :mod:`isda.weights_files` reads.

    Raises:
        WeightsError: the file is missing or no state dict, none of its keys fits, or a shape
            does not.
    """
    state = _read(source)
    fold_batch_norms(net, state)
    own = net.state_dict()
    wrong = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        raise WeightsError(
            f"MODEL.TORCH_BACKBONE.WEIGHTS {source} is of another network: {'; '.join(wrong[:3])}"
        )
    matched = [key for key in own if key in state]
    if not matched:
        raise WeightsError(
            f"MODEL.TORCH_BACKBONE.WEIGHTS {source} has no key of this backbone: it has "
            f"{', '.join(list(state)[:3])}, ..., the backbone {', '.join(list(own)[:3])}, ..."
        )
    net.load_state_dict({key: state[key] for key in matched}, strict=False)
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    logger.info("Loaded %d of %d backbone tensors from %s", len(matched), len(own), source)
    if missing:
        logger.warning("%s lacks %d tensors, which start fresh: %s", source, len(missing), missing)


def fold_batch_norms(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Give ``net`` the layers of ``state``, a state dict with batch norm folded.

    Each convolution without a bias that has one in ``state`` gets one, and the batch norm after
    it gives way to an identity. A state dict without folded norms changes nothing.
    """
    folded = False
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d):
            folded = module.bias is None and f"{name}.bias" in state
            if folded:
                module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels))
        elif isinstance(module, nn.BatchNorm2d) and folded and f"{name}.weight" not in state:
            if type(module) is not nn.BatchNorm2d:
                raise ConfigError(
                    f"MODEL.TORCH_BACKBONE.WEIGHTS has batch norm folded, but {name} is a "
                    f"{type(module).__name__}, which does more: use a network of torchvision"
                )
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, nn.Identity())
            folded = False


def _read(source: str) -> dict[str, Tensor]:
    try:
        return read_state_dict(source)
    except WeightsError as error:
        raise WeightsError(f"MODEL.TORCH_BACKBONE.WEIGHTS: {error}") from error
