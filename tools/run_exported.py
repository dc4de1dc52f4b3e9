#!/usr/bin/env python
"""Run a model that isda export wrote: ``isda/exported.py``, which needs nothing else of ISDA."""

import sys

from isda.exported import main

if __name__ == "__main__":
    sys.exit(main())
