"""A prepared model with its tensors scaled, and its ops spelled otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from torch import Tensor

from ..errors import InputError
from ..program.graph import Ref
from ..program.lowering import copy_program, lower_candidates
from ..search.risk import Range
from ..source.precast import Precast
from ..source.prepare import Prepared
from .exponents import Magnitudes, Plan, Scale, fitting, plan
from .mil import rescale
from .patterns import Rewrite, rewrites, unfit
from .stable import rewrite

Sizes = Callable[[], Mapping[int, Magnitudes]]


def planned(prepared: Prepared, range_: Range, sizes: Sizes, insert: bool, seconds: float) -> Plan:
    """The exponents for what calibration samples reach; see :mod:`mpsearch.scaling.exponents`.

    ``sizes`` gives the magnitudes of tensors by slot, and is asked where they are needed.
    """
    (function,) = prepared.precast.program.functions.values()
    shapes = {op.name: _shape(op.outputs[0]) for op in function.operations if op.outputs}
    shapes |= {var.name: _shape(var) for var in function.outputs}
    constants = [op.outputs[0].name for op in function.operations if op.op_type == "const"]
    inner = {
        node.name: share for node in prepared.lowered.nodes if (share := range_.inner(node)) >= 1
    }
    return plan(prepared.lowered, sizes(), inner, shapes, constants, insert, seconds)


def spelled(prepared: Prepared, sizes: Sizes) -> list[Rewrite]:
    """What can be spelled otherwise; see :mod:`mpsearch.scaling.stable`, and :func:`planned`.

    An input that is nothing but 0 and 1 in every sample is taken for a mask.
    """
    samples = [*prepared.calibration.samples, *prepared.heldout.samples]
    truths = {name for name in samples[0] if all(_is_truth(s[name]) for s in samples)}
    kinds = {node.op_type for node in prepared.lowered.nodes}
    exponents: dict[str, int] = {}
    if not kinds.isdisjoint(("exp", "log")):
        found = sizes()
        for node in prepared.lowered.nodes:
            source = node.fp32.inputs.get("x")
            if node.op_type == "exp" and node.outputs[0] in found:
                exponents[node.name] = max(fitting(found[node.outputs[0]], False)[0], 0)
            elif node.op_type == "log" and isinstance(source, Ref) and source.slot in found:
                low, high = fitting(found[source.slot], True)
                exponents[node.name] = max(low, min(high, 0))
    return rewrites(prepared.precast.program, truths, exponents)


def _is_truth(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(((value == 0) | (value == 1)).all())


def changed(precast: Precast, spellings: Sequence[Rewrite], scales: Sequence[Scale]) -> Precast:
    """A program with ops spelled otherwise, then with inputs of ops multiplied by powers of two.

    The given one stays as it is.

    Raises
    ------
    InputError
        If it lacks an op that is to be changed.
    """
    if unknown := unfit(precast.program, spellings):
        raise InputError(
            f"the config does not fit the model: it spells {unknown.type} {unknown.op!r} as "
            f"{unknown.kind}, which the model does not have; run optimize"
        )
    program = copy_program(precast.program)
    try:
        rewrite(program, msgspec.to_builtins(spellings))
        rescale(program, msgspec.to_builtins(scales))
    except ValueError as error:
        raise InputError(f"the config does not fit the model: {error}; run optimize") from error
    return replace(precast, program=program)


def with_changes(
    prepared: Prepared, spellings: Sequence[Rewrite], scales: Sequence[Scale]
) -> Prepared:
    """What is known before a search, of the changed program (:func:`changed`)."""
    plain = prepared.plain or prepared.precast
    precast = changed(plain, spellings, scales)
    (name,) = precast.program.functions
    lowered, ops = lower_candidates(precast.program, name, precast.layer_of, precast.line_of)
    return replace(prepared, precast=precast, lowered=lowered, ops=ops, plain=plain)


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(int(s) if not hasattr(s, "free_symbols") else -1 for s in var.shape or ())
