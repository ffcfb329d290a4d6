"""The operator table: a function *is* the op, its name the op's name.

Every public function of a family module is an op. Parameters annotated as ``Tensor`` (or a list
of them) receive tensors; all others receive Python values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from . import (
    activation,
    control_flow,
    conv,
    elementwise_binary,
    elementwise_unary,
    image_resizing,
    linear,
    normalization,
    pool,
    quantization,
    random,
    recurrent,
    reduction,
    scatter_gather,
    states,
    tensor_operation,
    tensor_transformation,
    transformers,
)

FAMILIES: tuple[ModuleType, ...] = (
    activation,
    control_flow,
    conv,
    elementwise_binary,
    elementwise_unary,
    image_resizing,
    linear,
    normalization,
    pool,
    quantization,
    random,
    recurrent,
    reduction,
    scatter_gather,
    states,
    tensor_operation,
    tensor_transformation,
    transformers,
)


#: Ops that BLAS or a convolution kernel computes. They cost more than what they read and write, and
#: the order in which they add depends on where their operands lie in memory.
PRODUCTS = frozenset(
    [
        "conv",
        "conv_quantized",
        "conv_transpose",
        "einsum",
        "gru",
        "linear",
        "lstm",
        "matmul",
        "rnn",
        "scaled_dot_product_attention",
    ]
)


@dataclass(frozen=True, slots=True)
class Op:
    """An op of the table: its function and which of its parameters take tensors."""

    name: str
    family: str
    function: Callable[..., Any]
    tensors: frozenset[str]


def _read(module: ModuleType) -> dict[str, Op]:
    family = module.__name__.rsplit(".", 1)[-1]
    table = {}
    for name, function in vars(module).items():
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        if function.__module__ != module.__name__:
            continue
        parameters = inspect.signature(function).parameters.values()
        tensors = frozenset(p.name for p in parameters if "Tensor" in str(p.annotation))
        table[name] = Op(name, family, function, tensors)
    return table


OPS: dict[str, Op] = {name: op for module in FAMILIES for name, op in _read(module).items()}

#: Ops that run blocks or that lowering turns into constants; :mod:`.runtime` and
#: :mod:`mpsearch.program.lowering` handle them.
STRUCTURAL = frozenset({"cond", "while_loop", "const", "_const_symbolic"})
