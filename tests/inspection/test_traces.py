from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from isda.inspection.traces import trace_isda, trace_istr
from isda.modeling.postprocessing import maskness
from isda.ops import ms_deform_attn

SIZES = [(64, 128), (70, 150)]  # of the image; the second is padded


# Attention has another implementation where no gradient is asked for.
assert_close = partial(torch.testing.assert_close, atol=1e-2, rtol=1e-3)


every_model = pytest.mark.parametrize("model", ["isda", "boxes", "istr"])


@pytest.fixture
def traced(request, noise):
    """``traced(model)``: a predictor, an image that it pads, and the trace."""

    def make(model):
        predictor, image = request.getfixturevalue(model)(), noise(70, 150)
        return predictor, image, (trace_istr if model == "istr" else trace_isda)(predictor, image)

    return make


class OpCalls(TorchDispatchMode):
    """What the operator receives."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.isda.ms_deform_attn.default:
            self.calls.append(args)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", SIZES)
def test_samples_are_those_that_the_operator_receives(isda, noise, size):
    predictor, image = isda(), noise(*size)
    with OpCalls() as op:
        predictor(image)
    trace = trace_isda(predictor, image)
    decoder_calls = op.calls[-len(trace.samples) :]
    assert (len(op.calls), len(decoder_calls)) == (3, 2)  # one encoder layer, two of the decoder
    for samples, (_, _, _, locations, weights) in zip(trace.samples, decoder_calls):
        assert torch.equal(samples.locations, locations[0])
        assert torch.equal(samples.weights, weights[0])
    assert not torch.equal(trace.samples[0].locations, trace.samples[1].locations)


@every_model
def test_tracing_changes_nothing_and_leaves_no_hook(traced, model):
    predictor, image, trace = traced(model)
    expected = predictor(image).get_fields()
    for fields in (trace.instances.get_fields(), predictor(image).get_fields()):
        assert torch.equal(fields["pred_masks"], expected["pred_masks"])
        assert torch.equal(fields["scores"], expected["scores"])
    assert all(not module._forward_hooks for module in predictor.model.modules())


def batched(predictor, image):
    """The inputs that the predictor gives its model."""
    resized = predictor.resize.get_transform(image).apply_image(image)
    return [{"image": torch.as_tensor(resized.transpose(2, 0, 1).copy()).float()}]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["isda", "boxes"])
def test_predictions_of_isda_are_those_of_its_training(request, noise, form, size):
    predictor, image = request.getfixturevalue(form)("INPUT.FORMAT", "RGB"), noise(*size)
    trace = trace_isda(predictor, image)
    model = predictor.model.train()
    expected = model.predict(model.preprocess(batched(predictor, image)))
    assert len(trace.predictions) == len(expected) == 2
    for prediction, wanted in zip(trace.predictions, expected):
        assert_close(prediction.class_logits, wanted.class_logits)
        assert_close(prediction.kernels, wanted.kernels)
        assert_close(prediction.mask_features, wanted.mask_features)
        assert (prediction.boxes is None) == (form == "isda")
        if form == "boxes":
            assert_close(prediction.boxes, wanted.boxes)


@pytest.mark.parametrize("size", SIZES)
def test_predictions_of_istr_are_those_of_its_training(istr, noise, size):
    predictor, image = istr("INPUT.FORMAT", "RGB", "MODEL.ISTR.NUM_STEPS", 3), noise(*size)
    trace = trace_istr(predictor, image)
    model = predictor.model.train()
    expected = model.predict(model.preprocess(batched(predictor, image)))
    assert len(trace.predictions) == len(expected) == 3
    for step, (prediction, wanted) in enumerate(zip(trace.predictions, expected), 1):
        assert_close(prediction.class_logits, wanted.class_logits)
        assert_close(prediction.embeddings, wanted.embeddings)
        assert_close(trace.boxes[step], wanted.boxes[0])
    factors = torch.tensor([image.shape[1], image.shape[0]]) / torch.tensor(trace.image_size[::-1])
    learned = model.queries.boxes.weight  # centre and size, in shares of the image
    centres = (trace.boxes[0][:, :2] + trace.boxes[0][:, 2:]) / 2
    assert_close(centres / torch.tensor(trace.image_size[::-1]), learned[:, :2])
    corner = trace.boxes_in_pixels(3)[:, :2]
    wanted = expected[-1].boxes[0, :, :2] * factors
    assert_close(corner, wanted)


@every_model
def test_the_best_instance_comes_from_the_best_query(traced, model):
    _, _, trace = traced(model)
    for rank in (0, len(trace.instances) - 1):
        query, best = trace.query_of(rank), trace.instances[rank]
        alone = trace.instance_after(query, 2)
        assert alone.queries.tolist() == [query]
        assert alone.image_size == (70, 150)
        torch.testing.assert_close(alone.pred_masks, best.pred_masks)
        if rank == 0:  # with one query alone, its best class
            torch.testing.assert_close(alone.scores, best.scores)
            assert torch.equal(alone.pred_classes, best.pred_classes)
    with pytest.raises(ValueError, match=r"found \d+ instances in this image, so none has rank 99"):
        trace.query_of(99)


def test_scores_are_class_probability_times_maskness(isda, noise):
    trace = trace_isda(isda(), noise(64, 96))
    for score, query, prob in zip(
        trace.instances.scores, trace.instances.queries.tolist(), trace.class_probs()
    ):
        height, width = (-(-side // 4) for side in trace.image_size)
        inside = trace.mask_probs(query)[:height, :width]
        torch.testing.assert_close(prob * maskness(inside[None])[0], score)


def look_at(model, x, y, cells=(0.0, 0.0)):
    """Every query's reference point at (x, y), every sample at that many cells from it."""
    transformer = model.transformer
    transformer.reference_points.weight.zero_()
    transformer.reference_points.bias.copy_(torch.logit(torch.tensor([x, y])))
    for layer in transformer.decoder:
        layer.cross_attn.sampling_offsets.weight.zero_()
        layer.cross_attn.sampling_offsets.bias.view(-1, 2).copy_(torch.tensor(cells))


@pytest.mark.parametrize("size", [(64, 128), (128, 256), (192, 384)])
def test_known_locations_become_the_right_pixels_at_every_size(isda, noise, size):
    """The model sees 64×128 each time, which needs no padding."""
    overrides = ("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 128)
    predictor = isda(*overrides, prepare=lambda model: look_at(model, 0.25, 0.5, (0.5, -1.0)))
    trace = trace_isda(predictor, noise(*size))
    scale = size[0] / 64
    point = torch.tensor([32.0, 32.0]) * scale
    torch.testing.assert_close(trace.reference_points_in_pixels(), point.expand(6, 2))
    assert trace.strides == [8, 16, 32, 64]
    for layer in range(2):
        locations = trace.locations_in_pixels(layer)  # (N, heads, levels, points, 2)
        for level, stride in enumerate(trace.strides):
            expected = point + torch.tensor([0.5, -1.0]) * stride * scale
            found = locations[:, :, level]
            torch.testing.assert_close(found, expected.expand_as(found))


def test_the_operator_reads_where_locations_are_drawn(isda, noise):
    """Levels whose cells hold their own pixels: the operator then returns the mean position."""
    overrides = ("INPUT.MIN_SIZE_TEST", 100, "INPUT.MAX_SIZE_TEST", 200)
    near_the_middle = {"x": 0.5, "y": 0.4, "cells": (0.1, -0.2)}
    predictor = isda(*overrides, prepare=lambda model: look_at(model, **near_the_middle))
    trace = trace_isda(predictor, noise(200, 380))  # seen as 100×190, padded to 128×192
    assert (trace.image_size, trace.padded_size) == ((100, 190), (128, 192))
    samples = trace.samples[0]
    sizes = [(128 // stride, 192 // stride) for stride in trace.strides[:3]]
    cells = []
    for (height, width), stride in zip(sizes, trace.strides):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        cells.append(2 * stride * (torch.stack([x, y], dim=-1).view(-1, 2) + 0.5))
    value = torch.cat(cells)[None, :, None].expand(1, -1, samples.weights.shape[1], -1)
    weights = samples.weights[:, :, :3] / samples.weights[:, :, :3].sum((2, 3), keepdim=True)
    read = ms_deform_attn(
        value.contiguous(), sizes, None, samples.locations[None, :, :, :3], weights[None]
    )
    drawn = trace.locations_in_pixels(0)[:, :, :3]
    expected = (drawn * weights[..., None]).sum(dim=(2, 3))  # (N, heads, 2)
    torch.testing.assert_close(read.view_as(expected), expected)


@pytest.mark.parametrize("refined", [True, False])
@pytest.mark.parametrize("chosen", [True, False])
def test_references_are_the_boxes_that_attention_receives(boxes, noise, refined, chosen):
    keys = ("MODEL.ISDA.BOX_REFINEMENT", refined, "MODEL.ISDA.QUERY_SELECTION", chosen)
    keys += ("MODEL.ISDA.TOKEN_CONTENT", chosen)
    predictor = boxes(*keys)
    received = []
    for layer in predictor.model.transformer.decoder:
        layer.cross_attn.register_forward_hook(lambda _, args, output: received.append(args[1]))
    trace = trace_isda(predictor, noise(64, 128))  # not padded: fractions of image and of levels
    assert trace.has_boxes and trace.chosen == chosen
    assert len(received) == len(trace.references) == 2
    for found, expected in zip(trace.references, received):
        assert torch.equal(found, expected[0, :, 0])
    assert torch.equal(trace.references[0], trace.references[1]) != refined


def test_boxes_are_told_in_pixels_of_the_image(traced):
    _, _, trace = traced("boxes")
    assert trace.num_steps == 2
    for step in range(3):
        relative = trace.predictions[step - 1].boxes[0] if step else trace.references[0]
        x, y, w, h = (relative * torch.tensor([150, 70, 150, 70])).unbind(1)
        expected = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1)
        torch.testing.assert_close(trace.boxes_in_pixels(step), expected)
    torch.testing.assert_close(trace.boxes_in_pixels(1), trace.reference_boxes_in_pixels(1))
    centres = trace.boxes_in_pixels(0).view(-1, 2, 2).mean(dim=1)
    torch.testing.assert_close(trace.reference_points_in_pixels(), centres)


def test_mask_logits_are_the_features_part_and_the_ellipse(traced):
    """Ellipses that nothing has learned: of 0.6 times the box, 2 in the middle."""
    _, _, trace = traced("boxes")  # seen as 30×64, padded to 32×64
    features, ellipse = trace.mask_logits(3)
    cx, cy, w, h = trace.predictions[-1].boxes[0, 3].double()
    rows, columns = ((torch.arange(cells).double() + 0.5) * 4 for cells in (8, 16))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    distance = ((x / 64 - cx) / (0.6 * w)) ** 2 + ((y / 30 - cy) / (0.6 * h)) ** 2
    torch.testing.assert_close(ellipse.double(), 2 * (1 - distance), atol=1e-3, rtol=1e-4)
    kernel, learned = trace.predictions[-1].kernels[0, 3], trace.learned_features()
    assert len(learned) == len(kernel) - 5
    torch.testing.assert_close(features, (kernel[:-5, None, None] * learned).sum(dim=0))
    torch.testing.assert_close(trace.mask_probs(3), (features + ellipse).sigmoid())


def test_paper_s_form_has_no_boxes_and_no_ellipses(traced):
    _, _, trace = traced("isda")
    assert not (trace.has_boxes or trace.ellipse or trace.chosen)
    (features,) = trace.mask_logits(0)
    torch.testing.assert_close(trace.mask_probs(0), features.sigmoid())
    assert torch.equal(trace.learned_features(), trace.predictions[-1].mask_features[0])


def test_attention_of_every_head_is_shared_out(isda, noise):
    shares = trace_isda(isda(), noise(64, 96)).attention_per_level(1)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(6, 4))
    assert shares.std() > 0.01


def test_masks_cover_the_image_and_features_the_padding(isda, noise):
    trace = trace_isda(isda(), noise(70, 150))
    assert (trace.image_size, trace.padded_size) == ((30, 64), (32, 64))
    assert trace.mask_probs(0).shape == (8, 16)
    assert trace.padded_extent() == pytest.approx((32 * 70 / 30, 150))


def test_what_a_model_does_not_have_is_told(isda, istr, noise):
    image = noise(40, 40)
    with pytest.raises(ValueError, match="ISTR has no deformable attention: only ISDA does"):
        trace_isda(istr(), image)
    predictor = isda()
    with pytest.raises(ValueError, match="ISDA refines no boxes in steps: only ISTR does"):
        trace_istr(predictor, image)
    trace = trace_isda(predictor, image)
    trace.check_query(5)
    for query in (-1, 6):
        with pytest.raises(ValueError, match=f"query {query} does not exist: .* from 0 to 5"):
            trace.check_query(query)
