import pytest


@pytest.fixture(autouse=True)
def nothing_is_executed():
    """Whatever a test does with a stranger's file."""
    import strangers

    strangers.SPRUNG.clear()
    yield
    assert strangers.SPRUNG == []
