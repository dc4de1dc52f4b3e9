import logging
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def one_thread():
    """The order of additions, and with it the last bit, depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def loggers_as_before():
    """Starting a training takes the loggers away from pytest."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "isda")]
    states = [(logger.propagate, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (propagate, level, handlers) in zip(loggers, states, strict=True):
        logger.propagate, logger.handlers = propagate, handlers
        logger.setLevel(level)
