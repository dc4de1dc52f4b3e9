import torch

from isda._warnings import IGNORED


def pytest_configure(config):
    # Models in tests are tiny: a second thread costs more than it gives, most of all on a busy
    # machine, where threads wait for each other.
    torch.set_num_threads(1)
    for message, category, module in IGNORED:
        pattern = message.replace(":", ".")  # colons part pytest's fields; this is a regex
        config.addinivalue_line("filterwarnings", f"ignore:{pattern}:{category.__name__}:{module}")
