"""Training warns of sizes and strides that no model could draw well with, and changes nothing."""

import logging

import numpy as np
import pytest
import torch
from toys import ISTR, toy_config, toy_data

from isda.data.analysis.ceiling import AnnotatedImage, MaskForm, mask_ceilings
from isda.engine.ceiling import warn_of_ceiling
from isda.engine.loader import training_dicts
from isda.engine.trainer import Trainer


def warnings_of(caplog, cfg) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="isda"):
        Trainer(cfg)
    return [r.getMessage() for r in caplog.records if "a perfect ISDA" in r.getMessage()]


def test_the_warning_comes_and_goes(tmp_path, caplog):
    """Rectangles of 9 by 20 pixels in images of 48 by 64."""
    toy_data(tmp_path)
    stride = "MODEL.ISDA.MASK_STRIDE"
    (text,) = warnings_of(caplog, toy_config(tmp_path / "out", stride, 8))
    images = [AnnotatedImage.of_dict(r) for r in training_dicts(toy_config(tmp_path))]
    (expected,) = mask_ceilings(images, [MaskForm(32, 64, 8, 6, 100)])
    assert expected.ap < 75
    assert text.startswith(
        "with MODEL.ISDA.MASK_STRIDE 8 and INPUT.MIN_SIZE_TEST 32 a perfect ISDA could reach mask "
        f"AP {expected.ap:.0f} (AP50 "
    )
    assert "on the training images; MODEL.ISDA.MASK_STRIDE 4: " in text
    larger = ("INPUT.MIN_SIZE_TEST", 192, "INPUT.MAX_SIZE_TEST", 256)
    assert warnings_of(caplog, toy_config(tmp_path / "out", stride, 4, *larger)) == []
    few = ("MODEL.ISDA.NUM_QUERIES", 2)
    (text,) = warnings_of(caplog, toy_config(tmp_path / "out", stride, 4, *larger, *few))
    assert "MODEL.ISDA.NUM_QUERIES 10: " in text and "MASK_STRIDE 2" not in text
    assert warnings_of(caplog, toy_config(tmp_path / "out", *ISTR)) == []


def test_random_states_and_records_stay_as_they_are(tmp_path):
    toy_data(tmp_path)
    cfg = toy_config(tmp_path)
    records = training_dicts(cfg)
    before = repr(records), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    warn_of_ceiling(cfg, records)
    assert before == (
        repr(records),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("records", [[], [{"file_name": "a.png", "annotations": []}]])
def test_nothing_to_compute_it_from(records, tmp_path, caplog):
    warn_of_ceiling(toy_config(tmp_path), records)
    assert caplog.records == []
