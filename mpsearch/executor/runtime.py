"""Runs nodes: fetches what a node takes and runs its op in a numerics profile."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor

from ..buffers import Scratch, empty
from ..errors import ExecutionError, UnsupportedOpError
from ..numerics.formats import narrow
from ..numerics.profiles import Profile
from ..program.graph import Block, Constant, Form, Node, Ref, Source, refs
from .fused import Hidden, Iteration, Loop
from .loop import Schedule
from .ops import OPS, Op

#: Bytes of derived weight forms (FP16 copies, decompressed weights, copies on a device) to keep.
DEFAULT_WEIGHT_BYTES = 2 << 30
#: Ops whose results never share memory with what they are given, and whose weights are large.
_PRODUCTS = frozenset({"conv", "conv_transpose", "linear", "matmul"})
#: FP16 weights with fewer elements are widened as any other value is.
_LEAST_SPREAD = 1 << 16
#: Iterations of a loop in one run after which it is traced.
TRACED_AFTER = 16


class _Every:
    def __contains__(self, _: object) -> bool:
        return True


#: Every candidate op in FP32.
EVERY: Container[int] = _Every()

Take = Callable[[str, Source], Any]  # parameter name, source -> what the op is given


def gather(form: Form, op: Op, tensor: Take, value: Take) -> dict[str, Any]:
    """The arguments of an op, by parameter name.

    ``tensor`` gives those that the op takes as tensors, ``value`` those that it takes as Python
    values. Whoever runs an op, or watches one, gathers what it takes here.
    """
    return {
        name: (tensor if name in op.tensors else value)(name, source)
        for name, source in form.inputs.items()
    }


def tensor_bytes(value: Any) -> int:
    """Bytes of a tensor, or of a list of tensors."""
    if isinstance(value, Tensor):
        return value.element_size() * value.numel()
    return sum(map(tensor_bytes, value)) if isinstance(value, (list, tuple)) else 0


def _to_tensor(value: Any) -> Any:
    """A MIL constant as a tensor that shares its memory where numpy and torch allow it."""
    array = np.asarray(value)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    elif (array.dtype.kind in "iu" and array.dtype != np.int32) or (
        array.dtype == object and array.size == 0  # coremltools' empty part of a symbolic shape
    ):
        array = array.astype(np.int32)
    elif array.dtype.kind in "US":
        return value
    if array.flags.c_contiguous:
        return torch.from_numpy(array)
    # torch's memory, not numpy's: BLAS sums in another order where data is aligned otherwise.
    out = empty(array.shape, torch.from_numpy(np.empty(0, array.dtype)).dtype)
    out.numpy()[...] = array
    return out


def _warn_once() -> None:
    """Take torch's one warning of tensors over read-only memory: ops never write to their inputs.

    Here and not around every constant, of which a program has hundreds.
    """
    array = np.zeros(1, np.float32)
    array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.from_numpy(array)


_warn_once()


def _to_python(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_to_python(v) for v in value]
    return value


class Runtime:
    """Runs the nodes of one function on ``device`` in ``profile``.

    Parameters
    ----------
    profile
        The numerics profile for ops typed FP16.
    device
        A torch device; constants are copied to it when first used.
    weight_bytes
        Limit for derived forms of constants; the originals are shared, not copied.
    traced_after
        Iterations of a loop in one run after which it is traced (see :mod:`.fused`).
    """

    def __init__(
        self,
        profile: Profile,
        device: str | torch.device = "cpu",
        weight_bytes: int = DEFAULT_WEIGHT_BYTES,
        traced_after: int = TRACED_AFTER,
    ) -> None:
        self.profile = profile
        self.device = torch.device(device)
        self.executions = 0
        self._weights: LRUCache[Constant, Any] = LRUCache(weight_bytes, getsizeof=tensor_bytes)
        self._python: dict[Constant, Any] = {}
        self._schedules: dict[Block, Schedule] = {}
        self._traced_after = traced_after
        self._loops: dict[Node, Loop] = {}
        self._scratch = Scratch()

    def share_weights(self, other: Runtime) -> None:
        """Use another runtime's forms of constants: they do not depend on the profile."""
        self._weights = other._weights
        self._python = other._python

    def release(self) -> None:
        """Drop the derived forms of constants; they are made again when needed."""
        self._weights.clear()
        self._loops.clear()
        self._scratch.release()

    # -- what a node takes ---------------------------------------------------------------------

    def _constant(self, constant: Constant) -> Any:
        found = self._weights.get(constant)
        if found is None:
            with torch.inference_mode(False):  # the rounding model takes gradients through these
                found = _to_tensor(constant.made.pop() if constant.made else constant.load())
                if isinstance(found, Tensor):
                    found = narrow(found) if constant.narrow else found
                    found = found.to(self.device)
            if tensor_bytes(found) <= self._weights.maxsize:
                self._weights[constant] = found
        return found

    def _spread(self, value: Any) -> Any:
        """FP16 weights in FP32, in memory that the next op uses again."""
        wide = not isinstance(value, Tensor) or value.dtype is not torch.float16
        return value if wide or value.numel() < _LEAST_SPREAD else self._scratch.copied(value)

    def _tensor(self, source: Source, env: Mapping[int, Any]) -> Any:
        if isinstance(source, Ref):
            value = env[source.slot]
            return narrow(value) if source.narrow else value
        if isinstance(source, Constant):
            return self._constant(source)
        return None if source is None else [self._tensor(item, env) for item in source]

    def _value(self, source: Source, env: Mapping[int, Any]) -> Any:
        if isinstance(source, Constant):
            if source not in self._python:
                value = source.load()
                if source.narrow:
                    with np.errstate(over="ignore"):
                        value = np.float16(value)
                self._python[source] = _to_python(value)
            return self._python[source]
        if isinstance(source, Ref):
            return _to_python(self._tensor(source, env))
        return None if source is None else [self._value(item, env) for item in source]

    # -- running -------------------------------------------------------------------------------

    def run(
        self, node: Node, env: Mapping[int, Any], fp32: Container[int] = EVERY
    ) -> tuple[Any, ...]:
        """The results of one node.

        ``fp32`` holds the candidate ops in FP32; ops without an FP16 form run as they are typed.

        Raises
        ------
        UnsupportedOpError
            If the executor has no such op, or the op cannot take these arguments.
        ExecutionError
            If the op fails on these values.
        """
        if node.blocks:
            return self._control(node, env, fp32)
        op = OPS.get(node.op_type)
        if op is None:
            raise UnsupportedOpError(f"the executor has no {node}")
        cast = node.fp16 is not None and node.candidate is not None and node.candidate not in fp32
        form: Form = node.fp16 if cast and node.fp16 is not None else node.fp32
        self.executions += 1
        fp16 = cast or "fp16" in form.out_dtypes
        arguments: dict[str, Any] = {}
        weight = "y" if node.op_type == "matmul" else "weight"
        spread = node.op_type in _PRODUCTS and isinstance(form.inputs.get(weight), Constant)
        if spread:  # a trace holds weights in FP32, in memory of their own
            taken = (env[ref.slot] for source in form.inputs.values() for ref in refs(source))
            spread = not any(isinstance(value, Hidden) for value in taken)

        def tensor(name: str, source: Source) -> Any:
            value = self._tensor(source, env)
            return self._spread(value) if spread and name == weight else value

        try:
            arguments = gather(form, op, tensor, lambda _, source: self._value(source, env))
            results = self.profile.run(node.op_type, op.function, arguments, form.out_dtypes, fp16)
        except (NotImplementedError, TypeError) as error:
            raise UnsupportedOpError(f"the executor cannot run {node}: {error}") from error
        except Exception as error:  # programs come from files: anything can be wrong with them
            shapes = ", ".join(
                f"{name} {tuple(v.shape)}" for name, v in arguments.items() if isinstance(v, Tensor)
            )
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ExecutionError(f"{node} failed on {shapes}: {reason}") from error
        if self.device.type != "cpu":
            return tuple(r.to(self.device) if isinstance(r, Tensor) else r for r in results)
        return results

    def run_block(
        self, block: Block, arguments: list[Any], env: Mapping[int, Any], fp32: Container[int]
    ) -> list[Any]:
        """Run a nested block on a copy of the surrounding values."""
        inner = dict(env)
        inner.update(zip(block.inputs, arguments, strict=True))
        schedule = self._schedules.get(block)
        if schedule is None:
            schedule = self._schedules[block] = Schedule.of_block(block)
        schedule.run(inner, lambda step, values: self.run(step.node, values, fp32))
        return [self._tensor(source, inner) for source in block.outputs]

    def _control(self, node: Node, env: Mapping[int, Any], fp32: Container[int]) -> tuple[Any, ...]:
        if node.op_type == "cond":
            taken = node.blocks[0 if bool(self._tensor(node.fp32.inputs["pred"], env)) else 1]
            return tuple(self.run_block(taken, [], env, fp32))
        values = self._tensor(node.fp32.inputs["loop_vars"], env)
        return tuple(self._loop(node, values, env, fp32))

    def _loop(
        self, node: Node, values: list[Any], env: Mapping[int, Any], fp32: Container[int]
    ) -> list[Any]:
        condition, body = node.blocks

        def iterate(values: list[Any], env: Mapping[int, Any]) -> Iteration:
            before = self.executions
            values = self.run_block(body, values, env, fp32)
            (going,) = self.run_block(condition, values, env, fp32)
            return Iteration(going, values, self.executions - before)

        if node not in self._loops:
            limit = int(self._weights.maxsize) // 8
            self._loops[node] = Loop(node, self._traced_after, limit)
        (going,) = self.run_block(condition, values, env, fp32)
        first = Iteration(going, values, self.executions)
        last = self._loops[node].run(iterate, first, env, fp32)
        self.executions = last.executions  # what is traced does not count, its runs do
        return last.values

    def source(self, source: Source, env: Mapping[int, Any]) -> Any:
        """The value of an input or of a function output, as a tensor."""
        return self._tensor(source, env)

    def value(self, source: Source, env: Mapping[int, Any]) -> Any:
        """The value of an input as a Python value."""
        return self._value(source, env)
