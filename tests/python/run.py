#!/usr/bin/env python3
"""pytest over this folder, with a report for tests/run.py. Exit 3: pytest or numpy is missing, said aloud."""

import pathlib
import sys

try:
    import numpy  # noqa: F401
    import pytest
except ImportError as missing:
    print(f"{missing.name} is missing for the tests of the Python package: run `make deps`")
    sys.exit(3)

here = pathlib.Path(__file__).parent
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--junitxml", sys.argv[1], str(here)]))
