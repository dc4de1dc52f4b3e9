import pytest

from isda.wording import listed, plural


@pytest.mark.parametrize(
    "count, text", [(0, ""), (2, "0, 1"), (3, "0, 1, 2"), (4, "0, 1, 2 and 1 more")]
)
def test_long_lists_are_cut_short(count, text):
    assert listed(range(count)) == listed(iter(range(count)), 3) == text


def test_nouns_follow_their_number():
    numbers = (plural(0, "image"), plural(1, "image"), plural(1234, "image"))
    assert numbers == ("0 images", "1 image", "1,234 images")
    assert (plural(1, "class"), plural(2, "class")) == ("1 class", "2 classes")
