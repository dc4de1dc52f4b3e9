from isda._warnings import IGNORED


def pytest_configure(config):
    for message, category, module in IGNORED:
        pattern = message.replace(":", ".")  # colons part pytest's fields; this is a regex
        config.addinivalue_line("filterwarnings", f"ignore:{pattern}:{category.__name__}:{module}")
