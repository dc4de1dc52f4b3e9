import sys
from pathlib import Path

# For commands, typist and places; and for what other tests make data sets of.
TESTS = Path(__file__).parents[1]
for folder in ("documentation", "data/formats", "data/analysis"):
    sys.path.append(str(TESTS / folder))
