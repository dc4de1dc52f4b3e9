"""Which images are cut, and at which scale they are seen."""

import pytest

from isda import model_zoo
from isda.engine.setup import ConfigError, check_config, load_config
from isda.tiles.errors import TilesError
from isda.tiles.plan import TilePlan

NUCLEI = "nuclei/isda_boxes_mobilenet_v2"


def plan(*opts, tiles=None):
    return TilePlan.from_config(load_config("", [*opts]), tiles)


SMALL = ("INPUT.MIN_SIZE_TEST", 320, "INPUT.MAX_SIZE_TEST", 512)


def test_windows_have_the_scale_of_the_training():
    nuclei = TilePlan.from_config(model_zoo.get_config(NUCLEI), "on")
    assert (nuclei.mode, nuclei.image_size, nuclei.scale) == ("on", 256, 1.25)
    grid = nuclei.grid((1024, 2048))
    assert grid.window_size == (230, 256)  # seen as 288 and 320, multiples of 32
    assert nuclei.seen_size(grid.window_size) == (288, 320)
    assert (len(grid.rows), len(grid.columns)) == (5, 9)
    assert nuclei.seen_size((256, 100)) == (320, 125)
    assert nuclei.margin == 4  # a cell of stride 4 is 3.2 pixels of the image


def test_without_a_known_size_pixels_are_seen_as_they_are():
    unknown = plan(*SMALL, tiles="on")
    assert unknown.scale == 1
    assert unknown.grid((320, 320)) is None
    assert unknown.grid((320, 321)).window_size == (320, 256)
    assert plan(*SMALL, "TEST.TILES.IMAGE_SIZE", 640, tiles="on").scale == 0.5


@pytest.mark.parametrize(
    ("size", "shrinkage"),
    [((256, 256), 0.8), ((512, 512), 1.6), ((640, 640), 2), ((1024, 1024), 3.2), ((300, 2048), 4)],
)
def test_auto_cuts_what_would_be_shrunk_more_than_twice(size, shrinkage):
    auto = plan(*SMALL, "TEST.TILES.MODE", "auto", "TEST.TILES.IMAGE_SIZE", 256)
    assert auto.shrinkage(size) == pytest.approx(shrinkage)
    assert (auto.grid(size) is not None) == (shrinkage > 2)
    assert plan(*SMALL, tiles="off").grid(size) is None
    assert (plan(*SMALL, tiles=256).grid(size) is None) == (max(size) <= 256)


def test_shrinking_that_the_training_did_as_well_does_not_count():
    """Trained on 2048 pixels seen as 512: such images are not large."""
    keys = ("INPUT.MIN_SIZE_TEST", 512, "INPUT.MAX_SIZE_TEST", 1024)
    assert plan(*keys, "TEST.TILES.IMAGE_SIZE", 2048).shrinkage((2048, 2048)) == 1
    assert plan(*keys, "TEST.TILES.IMAGE_SIZE", 2048).shrinkage((8192, 8192)) == 4
    assert plan(*keys).shrinkage((2048, 2048)) == 4


def test_without_scaling_nothing_is_shrunk():
    unscaled = plan("INPUT.MIN_SIZE_TEST", 0, "INPUT.MAX_SIZE_TEST", 640, tiles="auto")
    assert unscaled.shrinkage((5000, 5000)) == 1
    assert unscaled.grid((5000, 5000)) is None
    assert plan("INPUT.MIN_SIZE_TEST", 0, "INPUT.MAX_SIZE_TEST", 640, tiles=True).scale == 1


@pytest.mark.parametrize("tiles", ["always", 0, -256, 2.5, "256"])
def test_what_is_no_mode_is_refused(tiles):
    with pytest.raises(TilesError, match="tiles must be one of off, auto, on, or the shorter side"):
        plan(tiles=tiles)


@pytest.mark.parametrize(
    ("key", "value"),
    [("MODE", "maybe"), ("IMAGE_SIZE", -1), ("OVERLAP", 0.3), ("OVERLAP", -0.1)],
)
def test_wrong_values_are_found_before_any_work(key, value):
    cfg = load_config("", [f"TEST.TILES.{key}", value])
    with pytest.raises(ConfigError, match=f"TEST.TILES.{key} must be"):
        check_config(cfg)


def test_a_model_of_boxes_cannot_be_evaluated_in_windows():
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", "RetinaNet", "TEST.TILES.MODE", "on"])
    with pytest.raises(ConfigError, match="merged by masks, and the model has none"):
        check_config(cfg)
