"""What a written package holds."""

from __future__ import annotations

import numpy as np

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
