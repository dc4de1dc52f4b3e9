"""The keys of a method, as they are checked before a model is built."""

import pytest

from isda.engine.setup import load_config
from isda.errors import ConfigError
from isda.meta_arch import METHODS
from isda.meta_arch.keys import arguments_as_keys, method_keys
from isda.requirements import ArgumentError


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_range_is_checked_and_named(method):
    wrong = {str: "none of them", int: -1, float: -0.5, list: [], bool: None}
    for key in method.requirements:
        cfg = load_config("", ["DATASETS.TRAIN", "('shapes_train',)"])
        node = cfg.MODEL[method.config_node]
        value = wrong[type(node[key])]
        node[key] = value
        message = rf"MODEL\.{method.config_node}\.{key} must be .*, got {value!r}"
        with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
            method_keys(cfg, method)


def test_conflicts_are_found():
    cfg = load_config("", ["MODEL.ISDA.ELLIPSE", "True", "MODEL.ISDA.NUM_CLASSES", "3"])
    with pytest.raises(ConfigError, match="needs boxes: set MODEL.ISDA.BOXES True"):
        method_keys(cfg, METHODS[0])


def test_an_argument_is_named_by_its_key():
    with pytest.raises(ConfigError, match=r"^MODEL\.ISTR\.IN_FEATURES has none$"):
        with arguments_as_keys("ISTR"):
            raise ArgumentError("in_features", "has none")
