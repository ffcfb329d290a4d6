"""Reads a written package back: is it what was promised?"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import program as _program
from ._ct import quiet
from .data import Data
from .executor.graph import Function
from .executor.runtime import Runtime
from .metrics import Metric, Outputs
from .numerics import Profile
from .predict import open_package

with quiet():
    from coremltools.converters.mil.mil import types
    from coremltools.converters.mil.mil.passes.defs.preprocess import NameSanitizer

_SUFFIX = "_cast_fp16"
_STRUCTURAL = frozenset(
    {"const", "cast", "cond", "while_loop", "read_state", "coreml_update_state"}
)


@dataclass(frozen=True, slots=True)
class ReadBack:
    """A package as read from disk.

    Attributes
    ----------
    fp32_ops
        The names (as in the package) of its ops that compute in FP32.
    casts
        Its casts between FP16 and FP32.
    fp16_ops
        The names of its ops that compute in FP16.
    """

    function: Function
    fp32_ops: tuple[str, ...]
    fp16_ops: tuple[str, ...]
    casts: int


def read_back(path: Path) -> ReadBack:
    """Read a package from disk."""
    model = open_package(path)
    program = _program.load_program(model.get_spec(), model.weights_dir)
    (name,) = program.functions
    fp32, fp16, casts = [], [], 0
    for op in _program.all_ops(program.functions[name]):
        if op.op_type == "cast":
            casts += {op.x.dtype, op.outputs[0].dtype} == {types.fp16, types.fp32}
        if op.op_type in _STRUCTURAL or op.op_type.startswith(("constexpr_", "list_", "make_list")):
            continue
        kinds = {v.dtype for v in op.outputs if not types.is_list(v.sym_type)}
        floats = kinds & {types.fp16, types.fp32}
        if not floats:
            floats = {
                v.dtype
                for value in op.inputs.values()
                for v in (value if isinstance(value, (list, tuple)) else [value])
                if v.op is None or v.op.op_type != "const"
            } & {types.fp16, types.fp32}
        if types.fp32 in floats:
            fp32.append(op.name)
        elif types.fp16 in floats:
            fp16.append(op.name)
    return ReadBack(_program.lower(program, name), tuple(fp32), tuple(fp16), casts)


def losses(
    package: ReadBack,
    data: Data,
    references: Sequence[Outputs],
    metric: Metric,
    profiles: Sequence[Profile],
    device: str = "cpu",
) -> float:
    """The loss of a package as read back, the worst over the profiles."""
    if not data.samples:
        return -math.inf
    worst = -math.inf
    for profile in profiles:
        runtime = Runtime(profile, device)
        outputs = [_run(runtime, package.function, s) for s in data.samples]
        outputs = [_named(o, r) for o, r in zip(outputs, references, strict=True)]
        worst = max(worst, metric.whole(list(references), list(outputs), data.targets))
    return worst


def _named(outputs: dict[str, Tensor], reference: Outputs) -> dict[str, Tensor]:
    """Outputs under the reference's names; a package may have renamed them, not reordered."""
    if set(outputs) == set(reference):
        return outputs
    return dict(zip(reference, outputs.values(), strict=True))


def _run(runtime: Runtime, function: Function, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
    env: dict[int, Any] = {}
    given = list(sample.values())
    for place, (name, slot) in enumerate(function.inputs.items()):
        env[slot] = (sample[name] if name in sample else given[place]).to(runtime.device)
    for name, slot in function.states.items():
        env[slot] = sample[name].to(runtime.device)
    with torch.inference_mode():
        for node in function.nodes:
            env.update(zip(node.outputs, runtime.run(node, env), strict=True))
        return {n: runtime.source(s, env).cpu() for n, s in function.outputs.items()}


def precision_mismatch(
    package: ReadBack,
    fp32_ops: Collection[str],
    candidates: Collection[str],
) -> str | None:
    """What the package computes in another precision than was asked for; None where nothing.

    Passes after the cast may merge ops and drop ops; those have no counterpart and promise
    nothing. An op that is there under its own name must have its own precision.
    """
    clean = {name: _clean(name) for name in candidates}
    wanted = {clean[name] for name in fp32_ops}
    known = set(clean.values())
    for name in package.fp16_ops:
        base = name.removesuffix(_SUFFIX)
        if name.endswith(_SUFFIX) and base in wanted:
            return f"op {base!r} was to stay FP32 and is FP16 in the package"
    for name in package.fp32_ops:
        if name in known and name not in wanted:
            return f"op {name!r} was to be FP16 and is FP32 in the package"
    return None


def _clean(name: str) -> str:
    """A name as coremltools writes it to a package."""
    return str(NameSanitizer._replace_invalid_char_with_underscore(name))
