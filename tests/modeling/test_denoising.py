import pytest
import torch

from isda.modeling.denoising import DenoisingQueries, add_noise, group_attention_mask
from isda.structures import SetTarget


def target(count: int, num_classes: int = 3) -> SetTarget:
    return SetTarget(
        torch.randint(num_classes, (count,)),
        torch.zeros(count, 4, 4),
        0.2 + 0.5 * torch.rand(count, 4),
    )


def test_attention_mask_by_hand():
    # Two groups of two, the second of each pair is padding; two real queries.
    mask = group_attention_mask(torch.tensor([[True, False, True, False]]), 2, 2)
    sees = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]
    assert torch.equal(~mask[0], torch.tensor(sees).bool())


@pytest.mark.parametrize(
    ("counts", "budget", "slots"),
    [((3, 2), 10, 9), ((3,), 3, 3), ((12, 1), 10, 10), ((0, 0), 4, 4), ((0, 2), 5, 4)],
)
def test_groups_repeat_every_ground_truth(counts, budget, slots):
    torch.manual_seed(0)
    targets = [target(count) for count in counts]
    noised = DenoisingQueries(8, 3, budget)(targets, 5)
    assert noised.boxes.shape == (len(counts), slots, 4)
    assert noised.content.shape == (len(counts), slots, 8)
    assert noised.attention_mask.shape == (len(counts), slots + 5, slots + 5)
    groups = slots // min(max(*counts, 1), budget)
    for count, chosen in zip(counts, noised.targets, strict=True):
        times = chosen[chosen >= 0].bincount(minlength=count)
        assert times.max() <= groups if count else times.numel() == 0
        if count <= budget:
            assert (times == groups).all()


def test_noise_stays_near_the_ground_truth():
    torch.manual_seed(0)
    boxes = torch.tensor([0.5, 0.4, 0.1, 0.2]).expand(20_000, 4)
    classes = torch.zeros(20_000, dtype=torch.int64)
    labels, noised = add_noise(classes, boxes, 5)
    shift = ((noised - boxes) / boxes[:, [2, 3, 2, 3]]).abs()
    assert shift[:, :2].max() <= 0.2
    assert shift[:, :2].max() > 0.199
    assert shift[:, 2:].max() <= 0.4
    assert shift[:, 2:].max() > 0.399
    # A fifth is drawn anew, of which a fifth is right by chance.
    assert (labels != 0).float().mean().item() == pytest.approx(0.2 * 0.8, abs=0.01)


def test_noised_boxes_start_at_their_own_ground_truth():
    torch.manual_seed(0)
    targets = [target(4), target(2)]
    noised = DenoisingQueries(8, 3, 12)(targets, 5)
    for image, own in enumerate(targets):
        real = noised.targets[image] >= 0
        truth = own.boxes[noised.targets[image][real]]
        ratio = (noised.boxes[image][real][:, 2:] / truth[:, 2:]).log().abs()
        assert ratio.max() < 0.52  # log of 0.6


def test_a_number_of_queries_must_be_positive():
    with pytest.raises(ValueError, match="num_queries must be at least 1, got 0"):
        DenoisingQueries(8, 3, 0)
