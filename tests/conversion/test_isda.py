import foreign_networks
import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from foreign_names import SMALL, SMALL_OPTIONS, filled, isda

from isda.conversion import SOURCES, convert
from isda.engine.setup import load_config
from isda.model_zoo import get_config_file


@torch.no_grad()
def test_masks_and_scores_are_those_of_the_original():
    """From pixels to class and mask logits: every tensor of the published model takes part."""
    weights = filled(isda(SMALL))
    cfg = load_config(get_config_file(SOURCES["isda"].config), SMALL_OPTIONS)
    for key, value in SOURCES["isda"].settings(weights).items():
        cfg.merge_from_list([key, value])
    cfg.MODEL.DEVICE, cfg.MODEL.ISDA.NUM_CLASSES = "cpu", 80
    model = build_model(cfg).eval()
    result = convert(weights, "isda", model.state_dict())
    assert result.is_complete and not result.fresh
    model.load_state_dict(result.weights)
    image = torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(1))
    (prediction,) = model.predict(ImageList(image[None], [(96, 128)]))
    classes, masks = foreign_networks.isda(weights, image, SMALL.heads)
    found = torch.einsum("nc,chw->nhw", prediction.kernels[0], prediction.mask_features[0])
    torch.testing.assert_close(prediction.class_logits[0].double(), classes, rtol=1e-3, atol=1e-3)
    assert masks.std() > 0.3 and masks.shape == (7, 24, 32)
    torch.testing.assert_close(found.double(), masks, rtol=1e-3, atol=3e-3)
