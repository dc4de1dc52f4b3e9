from isda._warnings import IGNORED


def pytest_configure(config):
    for message, category, module in IGNORED:
        config.addinivalue_line("filterwarnings", f"ignore:{message}:{category.__name__}:{module}")
