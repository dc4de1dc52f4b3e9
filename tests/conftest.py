import logging
import sys

import pytest
import torch

from isda._warnings import IGNORED


def pytest_configure(config):
    # Models in tests are tiny: a second thread costs more than it gives, most of all on a busy
    # machine, where threads wait for each other.
    torch.set_num_threads(1)
    for message, category, module in IGNORED:
        pattern = message.replace(":", ".")  # colons part pytest's fields; this is a regex
        config.addinivalue_line("filterwarnings", f"ignore:{pattern}:{category.__name__}:{module}")


@pytest.fixture
def careful_pycocotools(monkeypatch):
    """A pycocotools that raises where our checks let through what they should stop."""
    import careful_pycocotools

    careful_pycocotools.install(monkeypatch)


@pytest.fixture(autouse=True)
def loggers_as_before():
    """What a program under test does to loggers, such as writing to a console that is gone later,
    ends with the test."""
    named = [x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger)]
    states = [(x, x.handlers[:], x.level, x.propagate, x.disabled) for x in (logging.root, *named)]
    yield
    for logger, handlers, level, propagate, disabled in states:
        logger.handlers, logger.propagate, logger.disabled = handlers, propagate, disabled
        logger.setLevel(level)
    known = {logger for logger, *_ in states}
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger not in known:
            logger.handlers, logger.propagate = [], True
            logger.setLevel(logging.NOTSET)
    if "detectron2.utils.logger" in sys.modules:  # it remembers what it has set up
        sys.modules["detectron2.utils.logger"].setup_logger.cache_clear()
