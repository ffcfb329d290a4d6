"""The program just before it is cast to FP16, all in FP32.

Its op names are the names that ``op_selector`` is called with in a full conversion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from .._ct import ct, quiet
from ..program import lowering as _program
from .flat import Flat

with quiet():
    from coremltools.converters.mil.mil import Operation, Program
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline


#: Deployment targets that ML Programs know.
_CAST_PASS = "common::add_fp16_cast"


def passes_before_cast() -> list[str]:
    """coremltools' default passes up to, but not including, the cast to FP16."""
    passes = list(PassPipeline().passes)
    return passes[: passes.index(_CAST_PASS)]


def passes_from_cast() -> list[str]:
    """The rest of coremltools' default passes, the cast to FP16 first."""
    passes = list(PassPipeline().passes)
    return passes[passes.index(_CAST_PASS) :]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: name, MIL dtype, shape (a pair, least and most, where flexible)."""

    name: str
    dtype: str | None
    shape: tuple[int | tuple[int, int], ...] = ()

    @staticmethod
    def of(name: str, value: Tensor) -> Port:
        """The port that takes tensors like ``value``, dtype as torch names it."""
        return Port(name, str(value.dtype).removeprefix("torch."), tuple(value.shape))

    def declaration(self, output: bool = False) -> str:
        """The ``ct.TensorType`` that declares it, as Python source."""
        numpy = {"fp16": "np.float16", "fp32": "np.float32", "int32": "np.int32"}
        parts = [f"name={self.name!r}"]
        if not output:
            sizes = ", ".join(
                str(s) if isinstance(s, int) else f"ct.RangeDim({s[0]}, {s[1]})" for s in self.shape
            )
            parts.append(f"shape=({sizes}{',' if len(self.shape) == 1 else ''})")
        if self.dtype is not None:
            parts.append(f"dtype={numpy[self.dtype]}")
        return f"ct.TensorType({', '.join(parts)})"

    def tensor_type(self, output: bool = False) -> Any:
        """The ``ct.TensorType`` that declares it."""
        numpy = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32, None: None}
        if output:
            return ct.TensorType(name=self.name, dtype=numpy[self.dtype])
        shape = [s if isinstance(s, int) else ct.RangeDim(*s) for s in self.shape]
        return ct.TensorType(name=self.name, shape=shape, dtype=numpy[self.dtype])


@dataclass(slots=True)
class Precast:
    """A source, converted up to the cast.

    Attributes
    ----------
    program
        The pre-cast program.
    inputs, outputs
        As declared to ``ct.convert``; empty for an ``.mlpackage``.
    target
        ``minimum_deployment_target``, such as ``iOS17``.
    kind
        ``torchscript``, ``exported`` or ``mlpackage``.
    layer_of
        The PyTorch module of a MIL op.
    line_of
        The line of Python that a MIL op came from, as ``file:line``; empty where unknown.
    wrapper
        What the model was wrapped in to be traced, if anything.
    states
        Name and shape of the buffers declared as states.
    half
        Whether the model has half-precision parts, and so was traced under
        :class:`mpsearch.source.nohalf.NoHalf`.
    added
        PyTorch ops that coremltools does not know itself (:mod:`mpsearch.source.torch_ops`).
    attention
        Whether the model has attention of torch's own, whose fast path cannot be traced.
    decomposed
        Ops of the exported program that it is decomposed by before it is converted.
    frozen
        Whether what modules hold beside tensors was made constants (:mod:`mpsearch.source.frozen`).
    renamed
        Inputs and outputs with another name in the program: which (``Input 'state'``), and it.
    classifier, description
        Of a package: the ``ct.ClassifierConfig`` taken off its program, and what it says of its
        inputs, outputs and itself (a serialized ``ModelDescription``).
    """

    program: Program
    inputs: list[Port]
    outputs: list[Port]
    target: str
    kind: str
    layer_of: Callable[[Operation], str]
    line_of: Callable[[Operation], str] = lambda op: ""
    wrapper: Flat | None = None
    states: dict[str, tuple[int, ...]] = field(default_factory=dict)
    half: bool = False
    added: tuple[str, ...] = ()
    attention: bool = False
    decomposed: tuple[str, ...] = ()
    frozen: bool = False
    renamed: dict[str, str] = field(default_factory=dict)
    classifier: Any = None
    description: bytes = b""


def fingerprint(precast: Precast) -> str:
    """SHA-256 over the ops and constants of a pre-cast program, to tell models apart."""
    digest = hashlib.sha256()
    for name, function in precast.program.functions.items():
        digest.update(name.encode())
        for op in _program.all_ops(function):
            digest.update(f"{op.op_type} {op.name}\n".encode())
            if op.op_type == "const" and isinstance(op.val.val, np.ndarray):
                array = np.ascontiguousarray(op.val.val)
                if array.dtype.kind in "fiub":
                    digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()
