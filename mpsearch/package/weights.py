"""How weights are stored: FP32 weights as FP16, or weights as int8, where the budget allows.

An op that computes in FP32 need not have its weights stored in FP32: ``constexpr_cast`` (iOS16)
widens FP16 ones when the model is loaded. ``int8`` is coremltools' linear weight quantization,
symmetric, one scale for every output channel, on FP16 and FP32 weights alike. Which weights are
stored so is decided op by op: as many as the budget allows, the largest first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._ct import quiet
from ..program.graph import Constant, Form, Function, Node
from ..program.lowering import written_name

with quiet():
    from coremltools.converters.mil.mil import Block, Operation, Program
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.helper import block_context_manager
    from coremltools.converters.mil.mil.passes.pass_registry import register_pass
    from coremltools.optimize import _utils as quantization
    from coremltools.optimize.coreml import OpLinearQuantizerConfig
    from coremltools.optimize.coreml._quantization_passes import linear_quantize_weights

PASS = "mpsearch::store_weights"

#: The inputs whose values are weights. Others are left alone: some (prelu's alpha, a bias of
#: conv_transpose) do not build with a constexpr, and 1-D ones Apple's own code refuses
#: (rdar://113860800, in coremltools' quantization passes).
_WEIGHTS: dict[str, frozenset[str]] = {
    "linear": frozenset(["weight"]),
    "conv": frozenset(["weight"]),
    "conv_transpose": frozenset(["weight"]),
    "matmul": frozenset(["x", "y"]),
    "gather": frozenset(["x"]),
    "lstm": frozenset(["weight_ih", "weight_hh", "weight_ih_back", "weight_hh_back"]),
}
#: Smaller weights are not worth an op (coremltools' own threshold).
_LEAST = 2048


@dataclass(frozen=True, slots=True)
class Stored:
    """What came of storing weights otherwise.

    Attributes
    ----------
    dtype
        One of :data:`mpsearch.options.WEIGHT_DTYPES`.
    weights
        How many weights are stored so, of how many that could be.
    candidates
        How many could be.
    bytes_before, bytes_after
        The package on disk without and with it.
    """

    dtype: str
    weights: int
    candidates: int
    bytes_before: int
    bytes_after: int


# --- choosing --------------------------------------------------------------------------------


def changed(function: Function, storage: str) -> dict[str, Constant]:
    """The weights of a package that can be stored otherwise, by name, as they then are.

    Largest first. A weight that something else than weights' inputs reads is left out.
    """
    uses: dict[str, list[bool]] = {}
    found: dict[str, tuple[int, Constant]] = {}
    for node in function.nodes:
        for name, source in node.fp32.inputs.items():
            if isinstance(source, Constant):
                fits = name in _WEIGHTS.get(node.op_type, ())
                uses.setdefault(source.name, []).append(fits)
                if fits and source.name not in found:
                    form = _form(np.asarray(source.load()), storage, _axis(node, name))
                    if form is not None:
                        found[source.name] = form.nbytes, Constant.of(form, source.name)
    fitting = {n: pair for n, pair in found.items() if all(uses[n])}
    return {n: fitting[n][1] for n in sorted(fitting, key=lambda n: (-fitting[n][0], n))}


def _axis(node: Node, name: str) -> int:
    """The axis of a weight's output channels, as coremltools' quantization takes it."""
    if node.op_type == "conv_transpose":
        return 1
    if node.op_type != "matmul" or name != "y":
        return 0
    flag = node.fp32.inputs.get("transpose_y")
    transposed = isinstance(flag, Constant) and bool(np.asarray(flag.load()))
    return -2 if transposed else -1


def _form(value: np.ndarray, storage: str, axis: int) -> np.ndarray | None:
    """A weight as it is after storing; None where it cannot be stored so."""
    if value.ndim < 2 or value.size <= _LEAST or value.dtype not in (np.float16, np.float32):
        return None
    if not np.isfinite(value).all():
        return None
    if storage == "fp16":
        half = _half(value)
        return None if half is None else half.astype(np.float32)
    blocks = [1 if i == axis % value.ndim else 0 for i in range(value.ndim)]
    packed = _packed(value, blocks)
    return None if packed is None else (packed.data * packed.scale).astype(value.dtype)


def _half(value: np.ndarray) -> np.ndarray | None:
    if value.dtype != np.float32:
        return None
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    return half if np.isfinite(half).all() else None


def _packed(value: np.ndarray, blocks: Sequence[int]) -> Any:
    """int8 data and scale, computed in FP32: in FP16 coremltools' own arithmetic overflows."""
    packed = linear_quantize_weights.blockwise_compress_by_dtype(
        value.astype(np.float32), "int8", "LINEAR_SYMMETRIC", list(blocks)
    )
    if packed is None:
        return None
    packed = packed._replace(scale=packed.scale.astype(value.dtype))
    axes = tuple(i for i, size in enumerate(blocks) if size == 0)
    lost = (packed.scale == 0) & np.any(packed.data != 0, axis=axes, keepdims=True)
    return None if lost.any() else packed


def largest_set(names: Sequence[str], holds: Callable[[set[str]], bool]) -> set[str]:
    """As many as hold together: segments, halved where they do not."""
    chosen: set[str] = set()
    pending = [list(names)] if names else []
    while pending:
        segment = pending.pop()
        if holds(chosen.union(segment)):
            chosen.update(segment)
        elif len(segment) > 1:
            middle = len(segment) // 2
            pending += [segment[middle:], segment[:middle]]
    return chosen


def with_weights(
    function: Function, forms: Mapping[str, Constant], names: Collection[str]
) -> Function:
    """A function in which the named weights are as they are after storing."""

    def node(old: Node) -> Node:
        inputs = {
            k: forms[v.name] if isinstance(v, Constant) and v.name in names else v
            for k, v in old.fp32.inputs.items()
        }
        return replace(old, fp32=Form(inputs, old.fp32.out_dtypes))

    return replace(function, nodes=[node(n) for n in function.nodes])


# --- the pass --------------------------------------------------------------------------------


@register_pass(namespace="mpsearch")
class store_weights(AbstractGraphPass):  # noqa: N801 - passes are named as coremltools names them
    """Stores the named weights otherwise, read back by constexpr ops of the same dtype.

    It has to run last: before the cast, every FP16 reader would get a cast at run time.
    """

    def __init__(self) -> None:
        self._storage = "fp16"
        self._names: frozenset[str] = frozenset()

    @property
    def storage(self) -> str:
        """One of :data:`mpsearch.options.WEIGHT_DTYPES`."""
        return self._storage

    @storage.setter
    def storage(self, value: str) -> None:
        self._storage = value

    @property
    def names(self) -> Collection[str]:
        """The weights, as they are named in the written package."""
        return self._names

    @names.setter
    def names(self, value: Collection[str]) -> None:
        self._names = frozenset(value)

    def apply(self, prog: Program) -> None:
        """Change the program in place."""
        for function in prog.functions.values():
            self._block(function)

    @block_context_manager  # type: ignore[untyped-decorator]
    def _block(self, block: Block) -> None:
        for op in list(block.operations):
            if op.op_type != "const" or written_name(op.outputs[0].name) not in self._names:
                continue
            new = self._fp16(op) if self._storage == "fp16" else self._int8(op)
            if new is not None:
                block.replace_uses_of_var_after_op(
                    anchor_op=op, old_var=op.outputs[0], new_var=new, no_check_var_types=True
                )
                block.remove_ops([op])

    @staticmethod
    def _fp16(op: Operation) -> Any:
        half = _half(op.outputs[0].val)
        if half is None:
            return None
        name = f"{op.name}_stored_fp16"
        return mb.constexpr_cast(source_val=half, output_dtype="fp32", before_op=op, name=name)

    @staticmethod
    def _int8(op: Operation) -> Any:
        value = op.outputs[0].val
        config = OpLinearQuantizerConfig(granularity="per_channel")
        blocks = quantization.infer_block_sizes(op, config, value)
        packed = None if blocks is None else _packed(value, blocks)
        return None if packed is None else linear_quantize_weights._create_constexpr_var(op, packed)


__all__ = [
    "PASS",
    "Stored",
    "changed",
    "largest_set",
    "store_weights",
    "with_weights",
]
