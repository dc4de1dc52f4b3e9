"""Channels and strides of the levels that a head works on."""

from collections.abc import Sequence

from detectron2.layers import ShapeSpec

from isda.errors import ConfigError

__all__ = ["pyramid_shapes"]


def pyramid_shapes(
    output_shape: dict[str, ShapeSpec], names: Sequence[str], key: str, multiple: int = 1
) -> list[ShapeSpec]:
    """Channels and strides of the levels ``names`` of a backbone.

    Args:
        key: the config key that names them, for messages.
        multiple: of what the number of channels must be one.

    Raises:
        ConfigError: a level is missing, the strides do not double, or the channels do not fit.
    """
    missing = [name for name in names if name not in output_shape]
    if missing or not names:
        raise ConfigError(
            f"{key} names {missing or 'no level'}, but the backbone gives {list(output_shape)}"
        )
    shapes = [output_shape[name] for name in names]
    strides = [shape.stride for shape in shapes]
    if strides != [strides[0] * 2**level for level in range(len(strides))]:
        raise ConfigError(
            f"{key} {list(names)} have the strides {strides}: each must be twice the one before"
        )
    channels = {shape.channels for shape in shapes}
    if len(channels) > 1 or min(channels) % multiple:
        wanted = f"one multiple of {multiple}" if multiple > 1 else "as many"
        raise ConfigError(
            f"{key} {list(names)} have {sorted(channels)} channels: all must have {wanted}; "
            "MODEL.FPN.OUT_CHANNELS sets those of an FPN"
        )
    return shapes
