"""Shared by the tests."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
# A shell starts what runs in its background deaf to Ctrl-C, which the tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # without xdist nobody asks
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests wait for processes a quarter of their time."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True)
def one_thread():
    """Small models run faster on one thread, and tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
