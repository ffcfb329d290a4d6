"""Seconds until a wrong command is answered, and those of ``optimize`` beside plain conversion.

python -m benchmarks.first [--times 5]

Wrong commands are answered before torch is loaded. The model is small, so that what is left is what
every run pays: interpreters, imports, conversion, writing, the report. Both run as a command of
their own; the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

WRONG = {
    "a file that is not there": ["optimize", "nofile.pt", "--budget", "1e-3"],
    "a budget that is no number": ["optimize", "model.pt", "--budget", "x"],
    "no budget": ["optimize", "model.pt"],
    "a misspelt option": ["optimize", "model.pt", "--budgte", "1e-3"],
    "a name of another tool": ["optimize", "model.pt", "--tolerance", "1e-3"],
    "--help": ["optimize", "--help"],
}
PLAIN = """
import torch, coremltools as ct
model = torch.jit.load("model.pt")
ct.convert(
    model, inputs=[ct.TensorType(name="x", shape=(1, 3, 32, 32))], skip_model_load=True,
    minimum_deployment_target=ct.target.iOS17,
).save("plain.mlpackage")
"""
MODEL = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.GELU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10), nn.LogSoftmax(-1),
)
torch.jit.trace(model.eval(), torch.randn(1, 3, 32, 32)).save("model.pt")
"""


def seconds(command: Sequence[str], folder: str, times: int) -> tuple[float, str]:
    """The median of so many runs, and the last line that was said."""
    taken, said = [], ""
    for _ in range(times):
        started = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        taken.append(time.perf_counter() - started)
        said = (done.stderr.strip() or done.stdout.strip() or "-").splitlines()[-1]
    return statistics.median(taken), said


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    mpsearch = [str(Path(sys.executable).parent / "mpsearch")]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-W", "ignore", "-c", MODEL], cwd=folder, check=True)
        for name, arguments in WRONG.items():
            taken, said = seconds([*mpsearch, *arguments], folder, times)
            print(f"{taken:6.2f} s  {name:28} {said}")
        plain, _ = seconds([sys.executable, "-W", "ignore", "-c", PLAIN], folder, times)
        ours, _ = seconds([*mpsearch, "optimize", "model.pt", "--budget", "1e-2"], folder, times)
    print(f"{plain:6.2f} s  plain conversion\n{ours:6.2f} s  mpsearch optimize")


if __name__ == "__main__":
    main()
