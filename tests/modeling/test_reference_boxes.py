import math

import pytest
import torch

from isda.modeling.query_selection import QuerySelection, token_boxes
from isda.modeling.reference_boxes import BoxHead, ReferenceBoxes, box_position_encoding


def constant_head(head: BoxHead, shift: list[float]) -> None:
    """Every state asks for the same shift of the logits."""
    torch.nn.init.zeros_(head.layers[-1].weight)
    with torch.no_grad():
        head.layers[-1].bias.copy_(torch.tensor(shift))


def test_boxes_move_by_their_logits():
    head, states = BoxHead(8), torch.randn(1, 2, 8)
    boxes = torch.tensor([[[0.5, 0.2, 0.1, 0.9], [0.8, 0.5, 0.5, 0.25]]])
    torch.testing.assert_close(head(boxes, states), boxes)  # as initialised
    # By hand: the odds p / (1 - p) of 0.5, 0.2, 0.1, 0.9 are 1, 1/4, 1/9, 9; a shift of log 4
    # makes them 4, 1, 4/9, 36.
    constant_head(head, [math.log(4)] * 4)
    expected = torch.tensor([4 / 5, 1 / 2, 4 / 13, 36 / 37])
    torch.testing.assert_close(head(boxes, states)[0, 0], expected)


def test_boxes_move_by_shares_of_their_sides():
    head, states = BoxHead(8, relative=True), torch.randn(1, 2, 8)
    boxes = torch.tensor([[[0.5, 0.2, 0.1, 0.4], [0.98, 0.5, 0.5, 0.25]]])
    torch.testing.assert_close(head(boxes, states), boxes)  # as initialised
    # Half a side to the right, a quarter of one upwards; twice as wide, half as high.
    constant_head(head, [1.0, -0.5, math.log(2), -math.log(2)])
    moved = head(boxes, states)[0]
    torch.testing.assert_close(moved[0], torch.tensor([0.55, 0.1, 0.2, 0.2]))
    torch.testing.assert_close(moved[1], torch.tensor([1.0, 0.4375, 1.0, 0.125]))  # in the image


@pytest.mark.parametrize("relative", [False, True])
def test_boxes_on_the_border_stay_finite(relative):
    boxes = torch.tensor([[0.0, 1.0, 0.0, 1.0]], requires_grad=True)
    head = BoxHead(8, relative)
    for shift in (0.0, 1e4, -1e4):
        constant_head(head, [shift] * 4)
        moved = head(boxes, torch.randn(1, 8))
        assert ((moved >= 0) & (moved <= 1)).all()
        assert (moved[:, 2:] > 0).all() or shift == -1e4 and not relative
        (gradient,) = torch.autograd.grad(moved.sum(), boxes)
        assert gradient.isfinite().all()


def test_layers_hand_on_detached_boxes():
    torch.manual_seed(0)
    boxes, states = torch.rand(1, 3, 4), torch.randn(1, 3, 8, requires_grad=True)
    refining, fixed = ReferenceBoxes(8), ReferenceBoxes(8, refine=False)
    for module in (refining, fixed):
        constant_head(module.head, [0.5, -0.5, 0.1, 0.2])
        torch.nn.init.normal_(module.head.layers[-1].weight)
    predicted, handed_on = refining(boxes, states)
    assert torch.equal(predicted, handed_on)
    assert predicted.requires_grad
    assert not handed_on.requires_grad
    predicted, handed_on = fixed(boxes, states)
    assert handed_on is boxes
    assert not torch.equal(predicted, boxes)


def test_autocast_leaves_boxes_in_float32():
    head = BoxHead(8)
    boxes = torch.tensor([[0.501, 0.503, 0.1, 0.1]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved = head(boxes, torch.randn(1, 8).bfloat16())
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, boxes)


def test_position_encoding_of_boxes_by_hand():
    boxes = torch.tensor([[0.25, 0.5, 0.0, 1.0]])
    encoded = box_position_encoding(boxes, 4)
    assert encoded.shape == (1, 16)
    # Of each number: sines of 2 pi p and 2 pi p / 100, then the cosines.
    for part, p in zip(encoded[0].split(4), boxes[0].tolist(), strict=True):
        phases = [2 * math.pi * p, 2 * math.pi * p / 100]
        expected = [*map(math.sin, phases), *map(math.cos, phases)]
        torch.testing.assert_close(part, torch.tensor(expected), atol=1e-6, rtol=0)


def test_boxes_of_tokens():
    centres = torch.tensor([[[0.25, 0.5], [0.75, 0.5], [0.5, 0.5]]])
    boxes = token_boxes(centres, [(1, 2), (1, 1)])
    expected = [[0.25, 0.5, 0.05, 0.05], [0.75, 0.5, 0.05, 0.05], [0.5, 0.5, 0.1, 0.1]]
    torch.testing.assert_close(boxes, torch.tensor([expected]))


def selection(num_queries: int) -> QuerySelection:
    """The class logits of a token are the LayerNorm of its own numbers."""
    module = QuerySelection(2, 2, num_queries)
    with torch.no_grad():
        module.project.weight.copy_(torch.eye(2))
        module.project.bias.zero_()
        module.classes.weight.copy_(torch.eye(2))
        module.classes.bias.zero_()
    return module


def test_the_best_tokens_are_chosen():
    # LayerNorm makes (1, -1) of any falling pair, (-1, 1) of a rising one, 0 of an equal one.
    memory = torch.tensor([[[1.0, 1.0], [0.0, 4.0], [3.0, 3.0], [5.0, 1.0]]])
    boxes = torch.rand(1, 4, 4)
    padding = torch.tensor([[False, False, False, False]])
    chosen = selection(2)(memory, boxes, padding)
    assert chosen.class_logits.shape == (1, 2, 2)
    torch.testing.assert_close(chosen.class_logits.amax(dim=2), torch.ones(1, 2), atol=1e-4, rtol=0)
    found = {tuple(box.tolist()) for box in chosen.boxes[0]}
    torch.testing.assert_close(
        torch.tensor(sorted(found)), torch.tensor(sorted(map(tuple, boxes[0, [1, 3]].tolist())))
    )


def test_padding_is_chosen_last_and_its_content_does_not_count():
    memory = torch.tensor([[[1.0, 1.0], [0.0, 4.0], [3.0, 3.0]]])
    boxes = torch.rand(1, 3, 4)
    padding = torch.tensor([[False, True, False]])
    chosen = selection(2)(memory, boxes, padding)
    assert not torch.isclose(chosen.boxes[0], boxes[0, 1]).all(dim=1).any()
    other = memory.clone()
    other[0, 1] = 1e6
    for one, two in zip(
        vars(chosen).values(), vars(selection(2)(other, boxes, padding)).values(), strict=True
    ):
        assert torch.equal(one, two)


def test_fewer_tokens_than_queries():
    chosen = selection(9)(torch.randn(2, 4, 2), torch.rand(2, 4, 4), torch.zeros(2, 4).bool())
    assert chosen.boxes.shape == (2, 4, 4)
    assert chosen.class_logits.isfinite().all()
