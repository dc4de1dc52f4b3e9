"""Models with ellipses compute masks in windows; what they find is what whole maps give."""

from pathlib import Path

import pytest
import torch

from isda import Predictor
from isda.data.images import read_image
from isda.modeling import postprocessing
from isda.modeling.postprocessing import possible_windows, select_instances

PHOTOS = Path(__file__).parents[2] / "datasets/nuclei_mini/images"


@pytest.mark.parametrize("keep_largest_component", [False, True])
@pytest.mark.parametrize("mask_stride", [1, 2, 4])
def test_a_model_with_ellipses(
    tiny_isda_boxes, confident, random_input, mask_stride, keep_largest_component, monkeypatch
):
    model = confident(tiny_isda_boxes(mask_stride=mask_stride)).eval()
    model.keep_largest_component = keep_largest_component
    inputs = [random_input(97, 131), random_input(65, 199, seed=1)]
    inputs[1] |= {"height": 130, "width": 77}
    images, found = model.preprocess(inputs), []

    def seen(*args):
        found.append(possible_windows(*args))
        return found[-1]

    monkeypatch.setattr(postprocessing, "possible_windows", seen)
    with torch.no_grad():
        outputs, (prediction,) = model(inputs), model.predict(images)
    assert len(found) == 2
    for index, (x, output) in enumerate(zip(inputs, outputs, strict=True)):
        instances = output["instances"]
        expected = select_instances(
            prediction,
            index,
            image_size=tuple(images.image_sizes[index]),
            padded_size=tuple(images.tensor.shape[-2:]),
            output_size=(x["height"], x["width"]),
            keep_largest_component=keep_largest_component,
        )
        assert len(expected) > 3
        torch.testing.assert_close(instances.scores, expected.scores, rtol=1e-6, atol=0)
        assert torch.equal(instances.queries, expected.queries)
        assert torch.equal(instances.pred_masks, expected.pred_masks)
        assert torch.equal(instances.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_models_without_ellipses(tiny_isda, tiny_isda_boxes, random_input, monkeypatch):
    monkeypatch.setattr(postprocessing, "possible_windows", None)
    for model in (tiny_isda(), tiny_isda_boxes(ellipse=False)):
        with torch.no_grad():
            model.eval()([random_input(65, 99)])


def test_trained_weights(monkeypatch):
    """The shipped model on a photograph of touching nuclei."""
    predictor = Predictor("nuclei/isda_boxes_mobilenet_v2", threshold=0.0)
    image = read_image(PHOTOS / "06c779330d6d3447.png", "RGB")
    found = predictor(image)
    monkeypatch.setattr(postprocessing, "_divide", lambda *sizes: False)  # whole maps
    expected = predictor(image)
    assert len(expected) > 100
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-6, atol=0)
    assert torch.equal(found.queries, expected.queries)
    assert torch.equal(found.pred_masks, expected.pred_masks)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
