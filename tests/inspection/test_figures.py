import matplotlib
import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from isda.inspection.figures import (
    attention_figure,
    ellipse_figure,
    features_figure,
    principal_colors,
    sampling_figure,
    steps_figure,
    write_figure,
)
from isda.inspection.traces import ISDATrace, LayerSamples, trace_isda, trace_istr
from isda.structures import SetPrediction
from isda.visualization import instance_colors


def rendered(figure, panel):
    """Pixels of one of the figure's panels as ``(height, width, 3)``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)  # y upwards, as extents are
    extent = figure.axes[panel].get_window_extent()
    rows, columns = (
        slice(round(extent.y0), round(extent.y1)),
        slice(round(extent.x0), round(extent.x1)),
    )
    return picture[rows, columns]


def synthetic_trace(pixel):
    """One query of an image of 60×80 that the model sees as 30×40, padded to 32×64.

    It samples at ``pixel`` (x, y) of the image, with all its attention.
    """
    location = torch.tensor(pixel) / 2 / torch.tensor([64.0, 32.0])
    prediction = SetPrediction(
        torch.full((1, 1, 1), -3.0), torch.zeros(1, 1, 2), torch.zeros(1, 2, 8, 16)
    )
    nothing = Instances((60, 80), scores=torch.zeros(0), queries=torch.zeros(0, dtype=torch.long))
    nothing.pred_masks = torch.zeros(0, 60, 80, dtype=torch.bool)
    return ISDATrace(
        instances=nothing,
        image_size=(30, 40),
        mask_threshold=0.5,
        padded_size=(32, 64),
        strides=[8],
        references=[torch.tensor([[0.9, 0.9]])],
        samples=[LayerSamples(location.view(1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1))],
        predictions=[prediction],
    )


@pytest.mark.parametrize("pixel", [(20.0, 10.0), (65.0, 31.0)])
def test_samples_are_drawn_over_the_pixels_that_they_mean(pixel):
    image = np.full((60, 80, 3), 40, np.uint8)
    x, y = int(pixel[0]), int(pixel[1])
    image[y - 2 : y + 2, x - 2 : x + 2] = 130  # centred on the corner that the pixel's numbers name
    heaviest = np.round(255 * np.array(matplotlib.colormaps["turbo"](1.0)[:3])).astype(int)

    def centre(sample, color):
        picture = rendered(sampling_figure(image, synthetic_trace(sample), 0), 1)
        found = np.argwhere(np.abs(picture - color).max(axis=2) <= 2)
        assert len(found) > 10
        return np.median(found, axis=0)

    square = centre((40.0, 50.0), (130 + 255) // 2)  # the sample lies elsewhere
    np.testing.assert_allclose(centre(pixel, heaviest), square, atol=1.5)


def test_heavier_samples_lie_on_top_and_have_their_color(isda, noise):
    trace = trace_isda(isda(), noise(64, 96))
    panel = sampling_figure(noise(64, 96), trace, 3).axes[2]  # the second layer
    weights, locations = trace.samples[1].weights[3], trace.locations_in_pixels(1)[3]
    levels = [c for c in panel.collections if c.get_array() is not None and len(c.get_array()) > 1]
    assert len(levels) == 4
    for level, drawn in enumerate(levels):
        values, order = weights[:, level].flatten().sort()
        np.testing.assert_array_equal(drawn.get_array(), values)
        points = locations[:, level].flatten(0, 1)[order]
        np.testing.assert_allclose(drawn.get_offsets(), points, rtol=1e-5)
    assert panel.images[0].get_extent() == [0, 96, 64, 0]
    x, y = locations.flatten(0, -2).unbind(-1)
    outside = (x < 0) | (x > 96) | (y < 0) | (y > 64)
    share = weights.flatten()[outside].sum() / 4  # of four heads, each of which sums to one
    assert f"{share:.0%} of the attention goes outside" in panel.get_title()
    assert 0 < share < 1


def test_bars_are_the_shares_of_the_levels(isda, noise):
    trace = trace_isda(isda(), noise(64, 96))
    figure = attention_figure(trace, 2)
    assert len(figure.axes) == 2
    for layer, axes in enumerate(figure.axes):
        heights = np.array([[bar.get_height() for bar in level] for level in axes.containers])
        weights = trace.samples[layer].weights[2].numpy()  # (heads, levels, points)
        expected = weights.sum(axis=2).T
        np.testing.assert_allclose(heights[:, :-1], expected, rtol=1e-5)
        np.testing.assert_allclose(heights[:, -1], expected.mean(axis=1), rtol=1e-5)
        tops = [bar.get_y() + bar.get_height() for bar in axes.containers[-1]]
        np.testing.assert_allclose(tops, 1, rtol=1e-5)


def test_principal_colors_find_what_varies():
    y, x = np.mgrid[:20, :30]
    signals = np.stack([10.0 * x, 4.0 * y, np.sin(x * y)]).reshape(3, -1)
    mixing, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
    features = torch.tensor(mixing[:, :3] @ signals + 5).view(8, 20, 30)
    colors = principal_colors(features)
    assert colors.shape == (20, 30, 3)
    assert (colors.min(), colors.max()) == (0, 1)
    inner = (slice(2, -2), slice(2, -2))  # the ends are clipped
    for channel, signal in enumerate((x, y)):
        correlation = np.corrcoef(colors[inner][..., channel].ravel(), signal[inner].ravel())[0, 1]
        assert abs(correlation) > 0.995
    np.testing.assert_array_equal(colors, principal_colors(features))
    assert np.isfinite(principal_colors(torch.ones(4, 3, 3))).all()
    assert principal_colors(torch.rand(2, 3, 3)).shape == (3, 3, 3)


def test_features_show_where_scores_come_from(isda, noise, tmp_path):
    image = noise(64, 128)
    trace = trace_isda(isda(), image)
    figure = features_figure(image, trace, trace.query_of(), names=["even", "odd"], threshold=0)
    classes, maskness, scores = (
        np.array([bar.get_width() for bar in bars]) for bars in figure.axes[3].containers
    )
    assert len(scores) == min(len(trace.instances), 10) > 1
    np.testing.assert_allclose(scores, trace.instances.scores[:10], rtol=1e-5)
    np.testing.assert_allclose(classes * maskness, scores, rtol=1e-5)
    assert (maskness > 0.5).all() and (maskness <= 1.001).all()
    shown = figure.axes[2].images[0]
    np.testing.assert_array_equal(shown.get_array(), trace.mask_probs(trace.query_of()).numpy())
    assert shown.get_extent() == [0, 128, 64, 0]
    assert "query" in figure.axes[2].get_title()
    write_figure(tmp_path / "new" / "features.png", figure)
    assert (tmp_path / "new" / "features.png").stat().st_size > 1000


def test_steps_show_every_box(istr, noise):
    image = noise(70, 150)
    trace = trace_istr(istr(), image)
    figure = steps_figure(image, trace, [4, 1])
    assert len(figure.axes) == 3
    for step, axes in enumerate(figure.axes):
        rectangles = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        corners = np.array([r.get_xy() for r in rectangles])
        boxes = trace.boxes_in_pixels(step)[[0, 2, 3, 5, 1, 4]]  # the chosen ones on top
        np.testing.assert_allclose(corners, boxes[:, :2], rtol=1e-4)
        widths = np.array([r.get_width() for r in rectangles])
        np.testing.assert_allclose(widths, boxes[:, 2] - boxes[:, 0], rtol=1e-3)
        colors = [rectangle.get_edgecolor()[:3] for rectangle in rectangles]
        assert colors[-1] == instance_colors(2)[0]
        assert colors[-2] == instance_colors(2)[1]
        assert len(set(colors[:-2])) == 1


def rectangles(axes):
    """XYXY of the boxes that are drawn."""
    patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return np.array(
        [[*r.get_xy(), r.get_x() + r.get_width(), r.get_y() + r.get_height()] for r in patches]
    )


def test_steps_of_isda_begin_with_what_the_encoder_proposed(boxes, noise):
    image = noise(70, 150)
    trace = trace_isda(boxes(), image)
    figure = steps_figure(image, trace, [4, 1])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "boxes: from the encoder"
    assert titles[2].startswith("decoder layer 2")
    for step, axes in enumerate(figure.axes):
        expected = trace.boxes_in_pixels(step)[[0, 2, 3, 5, 1, 4]]
        np.testing.assert_allclose(rectangles(axes), expected, rtol=1e-4, atol=1e-3)


def test_samples_stand_with_the_box_that_their_layer_looks_around(boxes, noise):
    trace = trace_isda(boxes(), noise(64, 96))
    figure = sampling_figure(noise(64, 96), trace, 3)
    for layer in range(2):
        (drawn,) = rectangles(figure.axes[1 + layer])
        expected = trace.reference_boxes_in_pixels(layer)[3]
        np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-3)


def look_around(model, box):
    """Every query's box, at every layer."""
    transformer = model.transformer
    transformer.reference_points.weight.zero_()
    transformer.reference_points.bias.copy_(torch.logit(torch.tensor(box)))
    transformer.reference_boxes.head.layers[-1].weight.zero_()


def test_an_ellipse_is_drawn_where_it_is(boxes, noise):
    """Of an image that is padded: its zero contour is the ellipse of 0.6 times the box."""
    image = noise(70, 150)
    learned = ("MODEL.ISDA.QUERY_SELECTION", False, "MODEL.ISDA.TOKEN_CONTENT", False)
    predictor = boxes(*learned, prepare=lambda model: look_around(model, [0.6, 0.45, 0.5, 0.7]))
    trace = trace_isda(predictor, image)
    figure = ellipse_figure(image, trace, 2)
    photograph, *panels = figure.axes[:4]
    steps = [trace.boxes_in_pixels(step)[2] for step in range(3)]
    np.testing.assert_allclose(rectangles(photograph), np.stack(steps), rtol=1e-4, atol=1e-3)
    parts = [part.numpy() for part in trace.mask_logits(2)]
    for panel, values in zip(panels, [*parts, sum(parts)]):
        np.testing.assert_allclose(panel.images[1].get_array(), values, rtol=1e-4, atol=1e-3)
        assert panel.images[1].get_clim() == panels[0].images[1].get_clim()
    left, top, right, bottom = steps[-1].tolist()
    assert (left, bottom) == pytest.approx((0.35 * 150, 0.8 * 70), rel=1e-4)
    zero = panels[1].collections[-1].get_paths()[0].vertices
    x = (zero[:, 0] - (left + right) / 2) / (0.6 * (right - left))
    y = (zero[:, 1] - (top + bottom) / 2) / (0.6 * (bottom - top))
    assert len(zero) > 10
    np.testing.assert_allclose(np.hypot(x, y), 1, atol=0.05)


def test_what_the_paper_s_form_does_not_have_is_told(isda, noise):
    trace = trace_isda(isda(), noise(64, 96))
    with pytest.raises(ValueError, match="draw no ellipses: MODEL.ISDA.ELLIPSE is off"):
        ellipse_figure(noise(64, 96), trace, 0)
    with pytest.raises(ValueError, match=r"no boxes: only ISTR, and ISDA with MODEL.ISDA.BOXES"):
        steps_figure(noise(64, 96), trace, [0])


def test_a_query_without_a_mask_and_one_that_is_not_there(isda, noise):
    trace = synthetic_trace((20.0, 10.0))
    image = noise(60, 80)
    titles = [axes.get_title() for axes in sampling_figure(image, trace, 0).axes]
    assert "no mask" in titles[1]
    for draw in (sampling_figure, features_figure):
        with pytest.raises(ValueError, match="query 1 does not exist"):
            draw(image, trace, 1)
    with pytest.raises(ValueError, match="query 1 does not exist"):
        attention_figure(trace, 1)
