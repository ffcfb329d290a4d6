"""Shared by the tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
# The tests send signals to their own process, where a command would end. What a shell starts in its
# background ignores Ctrl-C.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(_number, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # without xdist nobody asks
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests wait for processes a quarter of their time."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Trials first: they fork, which takes the longer the more a process has in memory.

    With ``MPSEARCH_PART=K/N`` every Nth of the tests that take long is run, from the Kth on: N
    parts together are all of them.
    """
    part, count = map(int, os.environ.get("MPSEARCH_PART", "0/1").split("/"))
    long = [item for item in items if item.get_closest_marker("thorough")]
    left_out = [item for place, item in enumerate(long) if place % count != part % count]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
    items.sort(key=lambda item: "trials" not in item.path.parts)
    # Modules are there for good: looking for garbage in them takes an eighth of the tests' time.
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


@pytest.fixture(autouse=True)
def same_handlers():
    """Signals are handled as before after a test that ran the whole command in this process."""
    yield
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread():
    """Small models run faster on one thread, and tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
