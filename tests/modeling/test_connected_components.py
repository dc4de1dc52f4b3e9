import pytest
import torch
from torch import Tensor

from isda.modeling.connected_components import largest_components, largest_components_in_graph


def drawing(*rows: str) -> Tensor:
    """Probabilities of 0.1 at "." to 0.9 at "9"."""
    return torch.tensor([[0.1 if c == "." else int(c) / 10 for c in row] for row in rows])


def in_graph(probs: Tensor, threshold: float, valid_size: tuple[int, int]) -> Tensor:
    valid = torch.zeros(probs.shape[1:])
    valid[: valid_size[0], : valid_size[1]] = 1
    return largest_components_in_graph(probs, threshold, valid)


FORMS = pytest.mark.parametrize("form", [largest_components, in_graph])


@FORMS
def test_only_the_largest_component_stays(form):
    masks = torch.stack(
        [
            drawing("99..7", "..9.7", "...4.", "6..4."),  # by corners; 4 is not above
            drawing("9....", ".....", "88...", "....9"),
        ]
    )
    first, second = form(masks.clone(), 0.5, (4, 5))
    assert torch.equal(first, drawing("99..0", "..9.0", "...4.", "0..4."))
    assert torch.equal(second, drawing("0....", ".....", "88...", "....0"))


@FORMS
def test_what_lies_beyond_the_image_neither_counts_nor_changes(form):
    mask = drawing("99.9999", "....999", "99.....", "9.99999")[None]
    (kept,) = form(mask.clone(), 0.5, (3, 4))
    assert torch.equal(kept, drawing("99.0999", "....999", "00.....", "9.99999"))


@FORMS
def test_of_equal_parts_one_stays_and_empty_masks_stay_empty(form):
    masks = torch.stack([drawing("9..9", "9..9"), drawing("....", "....")])
    kept = form(masks.clone(), 0.5, (2, 4))
    assert (kept > 0.5).flatten(1).sum(1).tolist() == [2, 0]
    assert torch.equal(kept[1], masks[1])


def flooded(mask: Tensor, start: tuple[int, int]) -> set[tuple[int, int]]:
    """The cells that a walk over the mask reaches, cell by cell."""
    reached, front = {start}, [start]
    while front:
        y, x = front.pop()
        for cell in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
            inside = 0 <= cell[0] < mask.shape[0] and 0 <= cell[1] < mask.shape[1]
            if inside and cell not in reached and mask[cell]:
                reached.add(cell)
                front.append(cell)
    return reached


def spiral(side: int) -> Tensor:
    mask, y, x, dy, dx = torch.zeros(side, side), 0, 0, 0, 1
    for length in [side - 1] + [n for n in range(side - 1, 1, -2) for _ in (0, 1)]:
        for _ in range(length):
            mask[y, x] = 0.9
            y, x = y + dy, x + dx
        dy, dx = dx, -dy
    mask[y, x] = 0.9
    return mask


def walks(mask: Tensor) -> list[set[tuple[int, int]]]:
    found: list[set[tuple[int, int]]] = []
    for cell in map(tuple, mask.nonzero().tolist()):
        if not any(cell in walk for walk in found):
            found.append(flooded(mask, cell))
    return found


@FORMS
def test_random_masks_against_a_walk(form):
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(40, 26, 26, generator=generator)
    masks = torch.nn.functional.avg_pool2d(noise, 3, stride=1)
    labyrinths = [spiral(24), spiral(24).flip(0), spiral(24).T, spiral(24).flip(1)]
    masks = torch.cat([masks, torch.stack(labyrinths)])
    kept = form(masks.clone(), 0.53, (24, 24))
    parts = 0
    for before, after in zip(masks, kept):
        above = before > 0.53
        expected = walks(above)
        left = {tuple(cell) for cell in (after > 0.53).nonzero().tolist()}
        assert left in expected and len(left) == max(map(len, expected))
        assert torch.equal(after[~above], before[~above])
        parts += len(expected)
    assert parts > 100
