import pytest
import torch
import torch.nn.functional as F

from isda.modeling import postprocessing, windows
from isda.modeling.ellipse import ellipse_channels, ellipse_kernels
from isda.modeling.postprocessing import select_instances
from isda.modeling.windows import (
    CellWindow,
    first_and_end,
    mask_logits,
    possible_windows,
    window_groups,
)
from isda.structures import SetPrediction

STRIDE = 2
THRESHOLDS = [0.001, 0.5, 0.9]


def scene(
    cells,
    image_size=None,
    count=30,
    radius=0.08,
    weight=0.3,
    channels=7,
    seed=0,
    dtype=torch.float32,
):
    """Kernels ``(count, channels + 5)`` and features: smooth, positive and a little noisy.

    Args:
        radius: mean of the ellipses, of the image.
        weight: of what features add to an ellipse.
    """
    generator = torch.Generator().manual_seed(seed)
    image_size = image_size or tuple(STRIDE * side for side in cells)
    coarse = torch.randn(1, channels, 5, 6, generator=generator)
    features = F.interpolate(coarse, size=cells, mode="bilinear")
    features = (features + 0.1 * torch.randn(1, channels, *cells, generator=generator)).to(dtype)
    features = torch.cat([features, ellipse_channels(features, STRIDE, [image_size])], dim=1)[0]
    centres = torch.rand(count, 2, generator=generator)
    radii = radius * (0.5 + torch.rand(count, 2, generator=generator))
    strengths = 4 * torch.rand(count, generator=generator)
    learned = weight * torch.randn(count, channels, generator=generator)
    return torch.cat([learned, ellipse_kernels(centres, radii, strengths)], dim=1), features


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(
    ("cells", "radius", "weight"),
    [
        ((40, 56), 0.08, 0.3),
        ((40, 56), 0.08, 3.0),
        ((37, 61), 0.02, 0.1),
        ((5, 90), 0.002, 0.0),
        ((1, 1), 0.3, 0.3),
    ],
)
def test_no_cell_above_the_threshold_lies_outside(cells, radius, weight, threshold):
    """Logits in float64, cell by cell; a window and its margin may be larger, never smaller."""
    kernels, features = scene(cells, radius=radius, weight=weight)
    logits = torch.einsum("nc,chw->nhw", kernels.double(), features.double())
    above = logits.sigmoid() > threshold
    for margin in (0, 3):
        found = possible_windows(kernels, features, threshold, margin)
        for mask, window in zip(above, found, strict=True):
            window.of(mask)[...] = False
            assert not mask.any()
            assert 0 <= window.top <= window.bottom <= cells[0]
            assert 0 <= window.left <= window.right <= cells[1]


def test_windows_are_tight_and_empty_where_nothing_can_be():
    kernels, features = scene((200, 160), count=3, weight=0.0)
    kernels[:, -5:] = ellipse_kernels(  # radii of 12 and 8 cells
        torch.tensor([[0.5, 0.5], [0.02, 0.98], [3.0, 0.5]]),
        torch.tensor([[12 / 160, 8 / 200]]).expand(3, 2),
        torch.full((3,), 2.0),
    )
    middle, corner, outside = possible_windows(kernels, features, 0.5)
    # Rows 92 to 108, columns 68 to 92, and whole blocks of eight.
    assert middle == (88, 64, 112, 96)
    # Rows 188 to 200, columns −8.8 to 15.2.
    assert corner == (184, 0, 200, 16)
    assert outside.area == 0
    assert possible_windows(kernels, features, 0.5, margin=2)[:2] == [
        (86, 62, 114, 98),
        (182, 0, 200, 18),
    ]
    # A strength of 2 gives the middle a probability of 0.88.
    assert all(window.area == 0 for window in possible_windows(kernels, features, 0.89))
    assert possible_windows(kernels[:0], features, 0.5) == []


def test_blocks_left_over_at_the_edges_count():
    kernels, features = scene((19, 21), count=1, weight=0.0)
    kernels[:, -5:] = ellipse_kernels(*torch.tensor([[[1.0, 1.0]], [[0.05, 0.05]]]), torch.ones(1))
    assert possible_windows(kernels, features, 0.5) == [(16, 16, 19, 21)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["kernel", "features"])
def test_what_is_not_finite_is_not_left_out(value, place):
    kernels, features = scene((40, 56), count=3)
    if place == "kernel":
        kernels[1, 0] = value
        assert possible_windows(kernels, features, 0.5)[1] == (0, 0, 40, 56)
    else:
        features[2, 30, 20] = value
        for top, left, bottom, right in possible_windows(kernels, features, 0.5):
            assert top <= 30 < bottom
            assert left <= 20 < right


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_thresholds_at_the_ends(threshold):
    kernels, features = scene((40, 56), count=4)
    kernels[0, -1] += 100.0  # certain everywhere near its centre, also in float32
    above = torch.einsum("nc,chw->nhw", kernels, features).sigmoid() > threshold
    for mask, window in zip(above, possible_windows(kernels, features, threshold), strict=True):
        window.of(mask)[...] = False
        assert not mask.any()


def test_rounding_cannot_lose_a_cell():
    """Tiny radii far from the middle: the expanded form is off by whole units."""
    for seed in range(5):
        kernels, features = scene((64, 64), count=50, radius=0.001, weight=0.0, seed=seed)
        above = torch.einsum("nc,chw->nhw", kernels, features) > 0
        for mask, window in zip(above, possible_windows(kernels, features, 0.5), strict=True):
            window.of(mask)[...] = False
            assert not mask.any()


def test_logits_do_not_depend_on_their_company():
    """To rounding wherever, and to the last bit where BLAS adds rows in one order (MKL does)."""
    kernels, features = scene((40, 56), count=10)
    whole = CellWindow(0, 0, 40, 56)
    together = mask_logits(kernels, features, [whole] * 10)
    expected = torch.einsum("nc,chw->nhw", kernels, features)
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-3)
    for rows, parts in [([9], [(8, 3, 29, 50)]), ([2, 0], [(0, 0, 20, 16), (20, 40, 40, 56)])]:
        parts = [CellWindow(*part) for part in parts]
        logits = mask_logits(kernels[rows], features, parts)
        for found, row, part in zip(logits, rows, parts, strict=True):
            torch.testing.assert_close(found, part.of(together[row]), rtol=1e-5, atol=1e-3)


def test_groups_cover_every_window_and_little_more():
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 150, (300, 2), generator=generator)
    ends = corners + torch.randint(0, 50, (300, 2), generator=generator)
    found = [CellWindow(*edges) for edges in torch.cat([corners, ends], dim=1).tolist()]
    found += [CellWindow(0, 0, 200, 199), CellWindow(1, 0, 200, 200)]
    features, seen = torch.zeros(20, 200, 200), []
    groups = list(window_groups(found, features))
    for rows, group in groups:
        assert len({window.size for window in group}) == 1
        for row, window in zip(rows, group, strict=True):
            inner = found[row]
            assert 0 <= window.top <= inner.top <= inner.bottom <= window.bottom <= 200
            assert 0 <= window.left <= inner.left <= inner.right <= window.right <= 200
        seen += rows
    assert groups[0] == ([300, 301], [CellWindow(0, 0, 200, 200)] * 2)
    assert sorted(seen) == [row for row, window in enumerate(found) if window.area]
    for rows, group in groups[1:]:
        needed = sum(window.area for window in group)
        assert needed <= 2 * sum(found[row].area for row in rows)
        assert 20 * needed <= 2**21
    assert len(groups) < 40


def test_first_and_end():
    occupied = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    first, end = first_and_end(occupied)
    assert first.tolist() == [1, 0, 0]
    assert end.tolist() == [4, 0, 5]


# ---- instances read out of windows ----


def predictions(cells=(40, 56), image_sizes=((80, 112),), **kinds):
    """Of few bits each, so that float32 adds up their products exactly in whatever order."""
    scenes = [
        scene(cells, size, seed=seed, **kinds) for seed, size in enumerate(image_sizes, start=1)
    ]
    kernels, features = (torch.stack(parts) for parts in zip(*scenes, strict=True))
    kernels, features = (kernels * 8).round() / 8, (features * 256).round() / 256
    torch.manual_seed(0)
    return SetPrediction(torch.randn(len(scenes), kernels.shape[1], 2), kernels, features)


def both(prediction, index, image_size, output_size, **kinds):
    """Instances out of windows, and out of the full product."""
    height, width = prediction.mask_features.shape[2:]
    sizes = {
        "image_size": image_size,
        "padded_size": (STRIDE * height, STRIDE * width),
        "output_size": output_size,
    }
    return tuple(
        select_instances(prediction, index, **sizes, **kinds, ellipse=ellipse)
        for ellipse in (True, False)
    )


def assert_same(found, expected):
    assert len(found) == len(expected)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-6, atol=0)
    for name in ("queries", "pred_classes"):
        assert torch.equal(found.get(name), expected.get(name))
    masks = [getattr(x.pred_masks, "dense", lambda x=x: x.pred_masks)() for x in (found, expected)]
    assert torch.equal(*masks)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert found.pred_masks.shape == expected.pred_masks.shape
    assert type(found.pred_masks) is type(expected.pred_masks)


@pytest.mark.parametrize(
    ("large", "gathered"),  # the whole map always, sometimes, never; some together, one by one
    [(0.0, 2**16), (0.2, 2**16), (2.0, 1)],
)
@pytest.mark.parametrize("keep_largest_component", [False, True])
@pytest.mark.parametrize(
    ("threshold", "weight"),  # of small masks, and of masks all over the image
    [(0.4, 3.0), (0.5, 0.1), (0.7, 0.4)],
)
def test_windows_give_what_the_full_product_gives(
    large, gathered, keep_largest_component, threshold, weight, monkeypatch
):
    monkeypatch.setattr(windows, "_LARGE", large)
    monkeypatch.setattr(windows, "_WHOLE_CELLS", 7 * 40 * 56)
    monkeypatch.setattr(windows, "_GATHERED", gathered)
    image_sizes = [(80, 112), (53, 99)]
    prediction = predictions(image_sizes=image_sizes, weight=weight)
    kinds = {
        "max_instances": 45,
        "threshold": threshold,
        "keep_largest_component": keep_largest_component,
    }
    for index, image_size in enumerate(image_sizes):
        for output_size in (image_size, (150, 121), (31, 40)):
            found, expected = both(prediction, index, image_size, output_size, **kinds)
            assert len(expected) > 5
            assert_same(found, expected)


def test_encoded_masks_out_of_windows(monkeypatch):
    monkeypatch.setattr(postprocessing, "_DENSE_PIXELS", 1000)
    assert_same(*both(predictions(), 0, (80, 112), (90, 100)))


def test_padding_beyond_what_the_image_reaches_is_not_computed(monkeypatch):
    """An image in the corner of a batch; masks in its padding are dropped, and cost nothing."""
    prediction = predictions(cells=(80, 96), image_sizes=[(31, 45)], radius=0.4, weight=1.0)
    computed = []

    def counted(kernels, features, windows):
        computed.extend(windows)
        return mask_logits(kernels, features, windows)

    monkeypatch.setattr(postprocessing, "mask_logits", counted)
    assert_same(*both(prediction, 0, (31, 45), (31, 45)))
    # 16×23 cells, and two more for the pixels between the last cell and the next.
    assert max(window.bottom for window in computed) <= 18
    assert max(window.right for window in computed) <= 25


def test_small_masks_are_computed_in_small_windows(monkeypatch):
    prediction = predictions(cells=(160, 160), image_sizes=[(320, 320)], radius=0.02, weight=0.1)
    computed = []

    def counted(*args):
        computed.append(mask_logits(*args))
        return computed[-1]

    monkeypatch.setattr(postprocessing, "mask_logits", counted)
    assert_same(*both(prediction, 0, (320, 320), (320, 320)))
    assert len(computed) < 10
    assert sum(logits.numel() for logits in computed) < 0.05 * 30 * 160 * 160


def test_no_instance_at_all():
    prediction = predictions(weight=0.0)
    prediction.kernels[..., -1] -= 100.0
    found, expected = both(prediction, 0, (80, 112), (90, 100), keep_largest_component=True)
    assert_same(found, expected)
    assert found.pred_masks.shape == (0, 90, 100)
    assert found.pred_boxes.tensor.shape == (0, 4)


def test_a_map_that_does_not_divide_the_image_is_computed_whole():
    prediction = predictions()
    sizes = {"image_size": (80, 111), "padded_size": (81, 115), "output_size": (80, 111)}
    found, expected = (
        select_instances(prediction, 0, **sizes, ellipse=ellipse) for ellipse in (True, False)
    )
    assert_same(found, expected)
