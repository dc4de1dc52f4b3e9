"""A configuration that notes which of its keys are read."""

from detectron2.config import CfgNode


class RecordingNode(CfgNode):
    """A node that adds the full name of each value that is asked for to ``read``."""

    def __init__(self, node: CfgNode, read: set[str], prefix: str = ""):
        super().__init__()
        object.__setattr__(self, "_recorded", (read, prefix))
        for key, value in node.items():
            if isinstance(value, CfgNode):
                value = RecordingNode(value, read, f"{prefix}{key}.")
            dict.__setitem__(self, key, value)

    def __getitem__(self, key):
        value = dict.__getitem__(self, key)
        if not isinstance(value, CfgNode):
            read, prefix = object.__getattribute__(self, "_recorded")
            read.add(f"{prefix}{key}")
        return value

    def __getattr__(self, key):
        if key not in self:
            raise AttributeError(key)
        return self[key]


def keys_read(cfg: CfgNode, action) -> set[str]:
    """Full names of the keys that ``action(cfg)`` reads."""
    read: set[str] = set()
    action(RecordingNode(cfg, read))
    return read
