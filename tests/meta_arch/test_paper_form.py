"""ISDA as in the paper gives the numbers that it gave before there were boxes."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from isda.engine.setup import load_config

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "tests/assets/isda_paper_form.json"
CONFIGS = {
    "COCO-InstanceSegmentation/isda_R_50_42ep": ["MODEL.ISDA.NUM_CLASSES", "80"],
    "shapes/isda_tiny": ["MODEL.ISDA.NUM_CLASSES", "3"],
}


def outputs(name: str, random_input, attentive) -> dict[str, list[float]]:
    """Numbers that depend on all parameters, on how they are initialised, and on the losses."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *CONFIGS[name]]
    cfg = load_config(str(ROOT / "configs" / f"{name}.yaml"), opts)
    torch.manual_seed(0)
    model = attentive(build_model(cfg))
    inputs = [random_input(97, 131, 3), random_input(128, 96, 2, seed=1)]
    torch.manual_seed(0)  # of dropout
    losses = model.train()(inputs)
    sum(losses.values()).backward()
    norms = {
        f"gradient of {part}": module_norm(getattr(model, part))
        for part in ("backbone", "neck", "transformer", "instance_head", "mask_feature_head")
    }
    model.eval()
    with torch.no_grad():
        (prediction,) = model.predict(model.preprocess(inputs))
    parts = vars(prediction).items()
    return {
        **{loss: [value.item()] for loss, value in losses.items()},
        **{part: [norm] for part, norm in norms.items()},
        **{part: sample(x) for part, x in parts if isinstance(x, torch.Tensor)},
    }


def module_norm(module) -> float:
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return torch.cat(gradients).norm().item()


def sample(x: torch.Tensor) -> list[float]:
    return x.flatten()[:: max(x.numel() // 16, 1)].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_numbers_are_those_of_the_paper_form(name, random_input, attentive):
    stored = json.loads(STORED.read_text())[name]
    found = outputs(name, random_input, attentive)
    assert set(found) == set(stored)
    # On the machine that stored them, without AVX-512, the numbers were equal to the last bit.
    # Other kernels add in another order: with AVX-512, 2e-3 in the gradients of a ResNet-50 whose
    # frozen norms let rounding grow, and 1e-4 in the rest.
    for part, values in stored.items():
        rtol = 1e-2 if part.startswith("gradient") else 1e-3
        torch.testing.assert_close(
            torch.tensor(found[part]), torch.tensor(values), rtol=rtol, atol=1e-5, msg=part
        )
