"""Reads a written package back: is it what was promised?"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .._ct import quiet
from ..evaluation.metrics import Metric, Outputs
from ..executor.loop import Schedule
from ..executor.runtime import Runtime
from ..executor.together import Together
from ..numerics.profiles import Profile
from ..program import lowering as _program
from ..program.described import unclassified
from ..program.graph import Function, Node, walk
from ..program.packages import open_package
from ..source.data import Data

with quiet():
    from coremltools.converters.mil.mil import types

#: reduce_transposes numbers the transposes that it makes from 0 again, so that their names may be
#: those of others before the cast. A transpose moves values and rounds none.
_NUMBERED = re.compile(r"transpose_\d+")

#: What the cast passes append to the names of ops that they change.
_CAST = re.compile(r"(_cast_(fp16|u?int16))+(?=(_\d+)?$)")
_STRUCTURAL = frozenset(
    {"const", "cast", "cond", "while_loop", "read_state", "coreml_update_state"}
)


@dataclass(frozen=True, slots=True)
class ReadBack:
    """A package as read from disk.

    Attributes
    ----------
    fp32_ops, fp16_ops
        Its ops that compute in FP32 and in FP16: type, and name of the first output. Passes after
        the cast rebuild ops under new names, but keep the names of what they compute.
    casts
        Its casts between FP16 and FP32.
    predict
        What computes its outputs for a sample, under the names of the package; None: the executor.
    """

    function: Function
    fp32_ops: tuple[tuple[str, str], ...]
    fp16_ops: tuple[tuple[str, str], ...]
    casts: int
    predict: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None


def read_back(path: Path) -> ReadBack:
    """Read a package from disk."""
    model = open_package(path, limits=None)
    program = _program.load_program(model.get_spec(), model.weights_dir)
    unclassified(program)
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
            fp32.append((op.op_type, op.outputs[0].name))
        elif types.fp16 in floats:
            fp16.append((op.op_type, op.outputs[0].name))
    return ReadBack(_program.lower(program, name), tuple(fp32), tuple(fp16), casts)


def loss(
    package: ReadBack,
    data: Data,
    references: Sequence[Outputs],
    metric: Metric,
    profiles: Sequence[Profile],
) -> float:
    """The loss of a package as read back over all samples, the worst over the profiles."""
    if not data.samples:
        return -math.inf
    return max(
        metric.whole(references, _outputs(package, data.samples, references, p), data.targets)
        for p in profiles
    )


def losses(
    package: ReadBack,
    samples: Sequence[Mapping[str, Tensor]],
    references: Sequence[Outputs],
    metric: Metric,
    profiles: Sequence[Profile],
) -> Iterator[float]:
    """The loss of a package as read back on each sample in turn, the worst over the profiles."""
    runs = [_outputs(package, samples, references, profile) for profile in profiles]
    for reference, outputs in zip(references, zip(*runs, strict=True), strict=True):
        yield max(metric.whole([reference], [out], []) for out in outputs)


def _outputs(
    package: ReadBack,
    samples: Sequence[Mapping[str, Tensor]],
    references: Sequence[Outputs],
    profile: Profile,
) -> Iterator[dict[str, Tensor]]:
    if package.predict is not None:
        for sample, reference in zip(samples, references, strict=False):
            yield named(package.predict(sample), reference)
        return
    function = package.function
    found = Together(function, Schedule.of_function(function)).run(
        Runtime(profile), [_given(function, s) for s in samples]
    )
    for reference in references:
        with torch.inference_mode():
            outputs, _ = next(found)
        yield named(outputs, reference)


def named(outputs: dict[str, Tensor], reference: Collection[str]) -> dict[str, Tensor]:
    """Outputs under the reference's names; a package may have renamed them, not reordered."""
    if set(outputs) == set(reference):
        return outputs
    return dict(zip(reference, outputs.values(), strict=True))


def _given(function: Function, sample: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """What a sample gives inputs and states, by slot; a package may have renamed its inputs."""
    given = list(sample.values())
    env = {
        slot: sample[name] if name in sample else given[place]
        for place, (name, slot) in enumerate(function.inputs.items())
    }
    return env | {slot: sample[name] for name, slot in function.states.items()}


def _after_op(node: Node) -> tuple[str, ...]:
    name = _program.written_name(node.name)
    return (name, f"{name}_0") if len(node.outputs) > 1 else (name,)


#: What passes after the cast may make anew under names of their own: reduce_transposes,
#: fuse_transpose_matmul, expand_dynamic_linear, fuse_activation_silu, fuse_pow2_sqrt.
_REBUILT = frozenset({"transpose", "matmul", "linear", "add", "silu", "identity"})


def precision_mismatch(
    package: ReadBack, lowered: Function, fp32_ops: Collection[str]
) -> str | None:
    """What the package computes in another precision than was asked for; None where nothing.

    Parameters
    ----------
    lowered
        The pre-cast program.
    fp32_ops
        The names of the candidate ops that were to stay FP32.

    Passes after the cast may merge and drop ops; those have no counterpart and promise nothing.
    """
    nodes = list(walk(lowered.nodes))
    # A pass that makes an op anew names its results after the op.
    known = {name: n for n in nodes for name in _after_op(n)}
    known |= {_program.written_name(n.result): n for n in nodes}
    wanted = {name for name, n in known.items() if n.name in fp32_ops}
    for op_type, result in package.fp16_ops:
        base = _CAST.sub("", result)
        if base in wanted and "_cast_fp16" in result:
            return f"{op_type} {base!r} was to stay FP32 and is FP16 in the package"
    for op_type, result in package.fp32_ops:
        if op_type == "transpose" and _NUMBERED.fullmatch(result):
            continue
        base = result if result in known else _CAST.sub("", result)
        node = known.get(base)
        if node is None and op_type not in _REBUILT:
            return f"{op_type} {result!r} is FP32 in the package and was not in the program"
        if node is not None and node.candidate is not None and base not in wanted:
            return f"{op_type} {result!r} was to be FP16 and is FP32 in the package"
    return None
