import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE))  # for strangers
sys.path.append(str(HERE.parent / "engine"))  # for toys


@pytest.fixture(autouse=True)
def nothing_is_executed():
    """Whatever a test does with a stranger's file."""
    import strangers

    strangers.SPRUNG.clear()
    yield
    assert strangers.SPRUNG == []
