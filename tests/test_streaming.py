"""Samples that do not fit the memory: the same results, and no more memory than is said."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

import mpsearch
from mpsearch import spool
from tests.command import run
from tests.models import Norm

ROOT = Path(__file__).parent.parent
COST = {"seconds", "forward_equivalents", "op_executions"}


class Model(torch.nn.Module):
    """A norm that overflows on large inputs: (1, 64) -> (1, 8)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.out = Norm(), torch.nn.Linear(64, 8)

    def forward(self, x):
        return self.out(self.norm(300 * x))


def rows(count=24):
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mapped(monkeypatch, tmp_path):
    """Nothing stays in memory; the folder of the files."""
    folder = tmp_path / "mapped"
    folder.mkdir()
    monkeypatch.setattr(spool, "_IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def told(result):
    return {k: v for k, v in result.as_dict().items() if k not in COST}


def loader():
    return DataLoader(rows(), batch_size=5)  # taken apart later


def one_by_one():
    yield from (row[None] for row in rows())


@pytest.mark.thorough
@pytest.mark.parametrize("data", [loader, one_by_one])
def test_what_lies_in_a_file_gives_the_same_result(data, mapped, monkeypatch):
    there = mpsearch.optimize(Model().eval(), data(), 1e-3)
    monkeypatch.setattr(spool, "_IN_MEMORY", 1 << 40)
    assert told(mpsearch.optimize(Model().eval(), data(), 1e-3)) == told(there)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt"])
def test_files_of_samples_are_read_the_same(kind, mapped, tmp_path, monkeypatch):
    file = tmp_path / f"data.{kind}"
    if kind == "npz":
        np.savez(file, x=rows().numpy())
    elif kind == "safetensors":
        save_file({"x": rows()}, file)
    else:
        torch.save({"x": rows()}, file)
    command = ["optimize", "tests.test_streaming:Model", "--inputs", file, "--budget", "1e-3"]
    found = []
    for size in (0, 1 << 40):
        monkeypatch.setattr(spool, "_IN_MEMORY", size)
        run(*command, "-o", tmp_path / f"out {size}")
        result = json.loads((tmp_path / f"out {size}" / "result.json").read_text())
        found.append({k: v for k, v in result.items() if k not in COST})
    assert found[0] == found[1]


class Numbered(torch.utils.data.Dataset):
    """A thousand and two hundred rows."""

    def __len__(self):
        return 1200

    def __getitem__(self, place):
        return torch.full((4,), float(place))


def test_a_loader_with_workers_gives_more_samples_than_files_may_be_open():
    loader = DataLoader(Numbered(), batch_size=1, num_workers=1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        result = mpsearch.optimize(torch.nn.Tanh(), loader, 1e-2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert result.met and "1200 samples" in result.understood


_MANY = """
import sys, torch, mpsearch
from mpsearch import spool

spool._IN_MEMORY = 128 << 20

class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean(-1).tanh()

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

def samples():
    generator = torch.Generator().manual_seed(0)
    for _ in range({count}):
        yield torch.randn(1, 64, 1 << 14, generator=generator)  # 4 MiB
        peaks.append(anonymous())

peaks = []
mpsearch.optimize(Mean(), [torch.randn(1, 64, 1 << 14)] * 2, 1e-2)  # all is loaded
before = anonymous()
watch = lambda progress: peaks.append(anonymous())
result = mpsearch.optimize(
    Mean(), samples(), 1e-2, execution=mpsearch.Execution(cache_bytes=64 << 20), on_trial=watch
)
assert result.met and "{count} samples" in result.understood
print(max(peaks) - before)
"""


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_many_samples_take_no_more_memory_than_some(tmp_path):
    count = 100
    command = [sys.executable, "-W", "ignore", "-c", _MANY.format(count=count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    # What stays in memory, the remembered results, and what is being worked on.
    assert int(done.stdout) < (128 << 20) + (64 << 20) + (128 << 20) < count << 22
    assert list(tmp_path.iterdir()) == []


_FULL = """
import resource
from mpsearch import spool
from mpsearch.cli import main
spool._IN_MEMORY = 0
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
main(["optimize", "tests.test_streaming:Model", "--inputs", "tests.test_streaming:one_by_one",
      "--budget", "1e-3", "-o", "out"])
"""


@pytest.mark.thorough
def test_a_folder_without_room_is_one_line(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FULL],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "set TMPDIR to a folder with room" in done.stderr and str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
