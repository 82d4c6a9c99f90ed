import os

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same few examples on every run; HYPOTHESIS_PROFILE=many looks for new ones.
settings.register_profile("few", max_examples=12, derandomize=True, deadline=None)
settings.register_profile("many", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))


def pytest_addoption(parser):
    parser.addoption(
        "--slow",
        action="store_true",
        help="also re-run the quick profile of every experiment",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))
