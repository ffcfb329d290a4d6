"""What a written package holds, and what the files beside it make without mpsearch."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import torch

from mpsearch.program.lowering import all_ops, load_program
from mpsearch.program.packages import open_package


def contents(path):
    """Every op in order: its type, dtype, shape, and what a constant holds."""
    model = open_package(path)
    program = load_program(model.get_spec(), model.weights_dir)
    found = []
    for op in all_ops(program.functions["main"]):
        value = op.outputs[0].val if op.op_type == "const" else None
        data = None if value is None else np.asarray(getattr(value, "ls", value)).tobytes()
        found.append((op.op_type, op.outputs[0].dtype, tuple(op.outputs[0].shape or ()), data))
    return found


CONVERTED = """
import sys
import torch
import coremltools as ct
sys.path.insert(0, {out!r})
from op_selector import convert, trace
assert not any(name.partition(".")[0] == "mpsearch" for name in sys.modules)
model, inputs = torch.load({model!r}, weights_only=False)
model = torch.jit.load(model) if isinstance(model, str) else model
convert(trace(model, inputs)).save({package!r})
"""


def alone(out, model, sample, folder):
    """The package that the written files make in a process without mpsearch.

    ``model`` may be the path of a TorchScript file.
    """
    model = str(model) if isinstance(model, Path) else model
    inputs = tuple(sample.values()) if isinstance(sample, dict) else sample
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    torch.save((model, inputs), folder / "model.pt")
    package = folder / "alone.mlpackage"
    script = CONVERTED.format(out=str(out), model=str(folder / "model.pt"), package=str(package))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return package
