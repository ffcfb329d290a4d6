"""A prepared model with its tensors scaled, and its ops spelled otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from torch import Tensor

from .._ct import quiet
from ..errors import InputError
from ..program.graph import Ref
from ..program.lowering import copy_program, lower, lower_candidates
from ..search.risk import Range
from ..source.precast import Precast
from ..source.prepare import Prepared
from .attention import Attention
from .exponents import Magnitudes, Plan, Scale, fitting, plan
from .mil import rescale
from .patterns import Kind, Rewrite, rewrites, unfit
from .stable import rewrite

with quiet():
    from coremltools.converters.mil.mil import Program

#: What :mod:`mpsearch.scaling.attention` finds.
_ATTENTION: frozenset[Kind] = frozenset(["key_bias", "row_mask"])
_SDPA = "scaled_dot_product_attention"

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
    attention = _attention(prepared, samples) if "softmax" in kinds or _SDPA in kinds else ()
    return rewrites(prepared.precast.program, truths, exponents, attention)


def _attention(prepared: Prepared, samples: Sequence[Mapping[str, Any]]) -> list[Rewrite]:
    """What attention does without: biases of keys, and what rows of masks have in common."""
    found = Attention(prepared.precast.program, prepared.lowered)
    types = {node.name: node.op_type for node in prepared.lowered.nodes}
    biases = [
        Rewrite(name, types[name], "key_bias", channels=spans)
        for name, spans in found.biases.items()
    ]
    return biases + [
        Rewrite(name, types[name], "row_mask", input=port)
        for name, port in found.masked_rows(samples).items()
    ]


def _unfit(program: Program, spellings: Sequence[Rewrite]) -> Rewrite | None:
    """The first that a program has no op for."""
    if unknown := unfit(program, [s for s in spellings if s.kind not in _ATTENTION]):
        return unknown
    wanted = [s for s in spellings if s.kind in _ATTENTION]
    if not wanted:
        return None
    (name,) = program.functions
    function = lower(program, name)
    types = {node.name: node.op_type for node in function.nodes}
    found = Attention(program, function)
    return next(
        (
            s
            for s in wanted
            if types.get(s.op) != s.type or not found.allows(s.op, s.input, s.channels)
        ),
        None,
    )


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
    if unknown := _unfit(precast.program, spellings):
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
