"""Ground-truth masks as targets."""

import torch

from isda.training.masks import mass_centres


def test_mass_centre_is_the_mean_of_the_pixels():
    masks = torch.rand(5, 13, 9) < 0.3
    for mask, centre in zip(masks, mass_centres(masks), strict=True):
        rows, columns = mask.nonzero().double().unbind(dim=1)
        torch.testing.assert_close(centre, torch.stack([columns.mean(), rows.mean()]))


def test_mass_centre_of_one_pixel_and_of_none():
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 3, 5] = True
    (pixel, none) = mass_centres(masks)
    assert pixel.tolist() == [5, 3]
    assert none.isnan().all()
    assert mass_centres(masks[:0]).shape == (0, 2)
