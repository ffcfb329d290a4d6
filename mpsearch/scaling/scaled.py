"""A prepared model with its tensors scaled, and its ops rewritten."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from torch import Tensor

from .._ct import quiet
from ..errors import InputError
from ..program.graph import Function, Node, Ref, slots_read
from ..program.lowering import copy_program, lower, lower_candidates
from ..search.risk import Range
from ..source.precast import Precast
from ..source.prepare import Prepared
from .attention import Attention, bias_of
from .exponents import Magnitudes, Plan, Scale, fitting, plan
from .mil import rescale
from .patterns import Kind, Rewrite, rewrites, unfit
from .stable import rewrite

with quiet():
    from coremltools.converters.mil.mil import Program

#: What :mod:`mpsearch.scaling.attention` finds.
_ATTENTION: frozenset[Kind] = frozenset(["key_bias", "row_mask"])
#: The root mean square of a bias that is left out, as a share of what it is added to.
_MUCH = 0.5
_SDPA = "scaled_dot_product_attention"

Sizes = Callable[[], Mapping[int, Magnitudes]]


def planned(
    prepared: Prepared,
    range_: Range,
    sizes: Sizes,
    insert: bool,
    seconds: float,
    fp32: Collection[str] = (),
) -> Plan:
    """The exponents for what calibration samples reach; see :mod:`mpsearch.scaling.exponents`.

    ``sizes`` gives the magnitudes of tensors by slot, and is asked where they are needed. Ops of
    the names ``fp32`` stay FP32.
    """
    (function,) = prepared.precast.program.functions.values()
    shapes = {op.name: _shape(op.outputs[0]) for op in function.operations if op.outputs}
    shapes |= {var.name: _shape(var) for var in function.outputs}
    constants = [op.outputs[0].name for op in function.operations if op.op_type == "const"]
    inner = {
        node.name: share
        for node in prepared.lowered.nodes
        if node.name not in fp32 and (share := range_.inner(node)) >= 1
    }
    wide = _wide(prepared.lowered, fp32)
    found = {
        slot: replace(size, limit=math.inf) if slot in wide else size
        for slot, size in sizes().items()
    }
    return plan(prepared.lowered, found, inner, shapes, constants, insert, seconds)


def _wide(function: Function, fp32: Collection[str]) -> set[int]:
    """Slots that ops write which are FP32, and that nothing else reads."""
    found = {slot for node in function.nodes if node.name in fp32 for slot in node.outputs}
    for node in function.nodes:
        if node.name not in fp32:
            found.difference_update(slots_read(node))
    return found


def rewritten(prepared: Prepared, sizes: Sizes) -> list[Rewrite]:
    """What can be rewritten; see :mod:`mpsearch.scaling.stable`, and :func:`planned`.

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
    attention = _attention(prepared, samples, sizes) if "softmax" in kinds or _SDPA in kinds else ()
    return rewrites(prepared.precast.program, truths, exponents, attention)


def _attention(
    prepared: Prepared, samples: Sequence[Mapping[str, Any]], sizes: Sizes
) -> list[Rewrite]:
    """What attention does without: biases of keys, and what rows of masks have in common."""
    found = Attention(prepared.precast.program, prepared.lowered)
    nodes = {node.name: node for node in prepared.lowered.nodes}
    biases = [
        Rewrite(name, nodes[name].op_type, "key_bias", channels=spans)
        for name, spans in found.biases.items()
        if _dominates(nodes[name], spans, sizes())
    ]
    return biases + [
        Rewrite(name, nodes[name].op_type, "row_mask", input=port)
        for name, port in found.masked_rows(samples).items()
    ]


def _dominates(
    node: Node, spans: Sequence[tuple[int, int]], sizes: Mapping[int, Magnitudes]
) -> bool:
    """Whether these channels of a bias are much of what its op computes; else little is won."""
    size = sizes.get(node.outputs[0])
    bias = np.concatenate([bias_of(node)[start:end] for start, end in spans])
    return size is not None and float(np.sqrt(np.mean(bias**2))) >= _MUCH * size.typical


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
    """A program with ops rewritten, then with inputs of ops multiplied by powers of two.

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
