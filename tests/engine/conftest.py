import importlib.util
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parents[2] / "train_net.py"


@pytest.fixture(scope="session")
def train_net():
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("train_net", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_thread():
    """The order of additions, and with it the last bit, depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
