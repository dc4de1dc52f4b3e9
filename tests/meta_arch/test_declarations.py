"""What methods say of themselves to the tools."""

import pytest
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from isda.engine.setup import load_config
from isda.meta_arch import ISDA, METHODS, methods_with
from isda.meta_arch.base import InstanceSegmentor
from isda.meta_arch.declarations import DECLARED, DeclarationError, Unavailable, declared
from isda.prediction import export
from isda.prediction.compilation import compile_inference


class Mute(ISDA):
    exporter = compilation = tracer = Unavailable("Mute says nothing: take ISDA")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("what", ["exporter", "compilation", "tracer"])
def test_what_a_method_declares_exists_or_is_refused_by_a_sentence(method, what):
    if isinstance(getattr(method, what), Unavailable):
        with pytest.raises(DeclarationError, match=f"^{method.__name__} .+: .+"):
            declared(method, what)
    else:
        assert callable(declared(method, what))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_requirements_are_of_keys_that_there_are_and_hold_for_the_defaults(method):
    node = load_config().MODEL[method.config_node]
    assert set(method.requirements) <= set(node)
    for key, (holds, words) in method.requirements.items():
        assert holds(node[key]), (key, words)
    assert method.conflict(node) == ""


def test_every_method_of_ours_is_one_of_the_methods():
    ours = {cls for _, cls in META_ARCH_REGISTRY if cls.__module__.startswith("isda.meta_arch.")}
    assert ours == set(METHODS)


@pytest.mark.parametrize("left_out", sorted(set(DECLARED) - {"conflict"}))
def test_a_method_that_leaves_out_a_declaration_cannot_be_defined(left_out):
    given = dict.fromkeys(set(DECLARED) - {left_out}, Unavailable("none"))
    with pytest.raises(TypeError, match=f"Partial does not declare {left_out}$"):
        type("Partial", (InstanceSegmentor,), given)
    type("Partial", (InstanceSegmentor,), given | {left_out: ""})


def test_a_sentence_reaches_whoever_asks():
    model = Mute.__new__(Mute)
    nn.Module.__init__(model)
    for refused, action in [
        (export.ExportError, lambda: export.exportable(model, "RGB")),
        (ValueError, lambda: compile_inference(model)),
        (DeclarationError, lambda: declared(Mute, "tracer")),
    ]:
        with pytest.raises(refused, match="^Mute says nothing: take ISDA$"):
            action()
    with pytest.raises(DeclarationError, match="Linear does not declare its tracer"):
        declared(nn.Linear, "tracer")


def test_names_of_the_methods_that_have_something():
    assert methods_with("exporter").startswith("ISDA")
    assert " and " in methods_with("exporter")
