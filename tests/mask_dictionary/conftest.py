import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # for annotation_files: what the tests share
