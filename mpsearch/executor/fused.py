"""Runs the iterations of a ``while_loop`` as one function each.

Converted recurrent layers (a GRU, for instance) are loops of some thirty small ops, and most of the
time goes into calling them. Here an iteration runs once on tensors that nothing can look into. The
calls of torch that its ops make become one TorchScript function, which makes the same calls in the
same order. It must give the first two iterations to the bit; else the loop runs op by op.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from cachetools import LRUCache
from torch import Tag, Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..buffers import same
from ..program.graph import Form, Node, slots_read, walk

#: Traces to keep for one loop.
TRACES = 8
#: Iterations at the beginning of a run on which a trace is compared with the ops.
_COMPARED = 2
#: Tags of functions that look at values or draw at random.
_BY_VALUE = {Tag.data_dependent_output, Tag.dynamic_output_shape, Tag.nondeterministic_seeded}


class Iteration(NamedTuple):
    """The condition after an iteration, the loop variables after it, and how many ops ran."""

    going: Any
    values: list[Any]
    executions: int


Iterate = Callable[[list[Any], Mapping[int, Any]], Iteration]  # of loop and surrounding values
_Calls = list[tuple[Any, Any, Any]]  # function, arguments, results
_Trace = tuple[Callable[..., Any], int, int]  # function, executions, bytes of constants


class Hidden(Tensor):
    """``value`` without its memory; calls of torch that take one are added to ``calls``."""

    value: Tensor
    calls: _Calls
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, value: Tensor, calls: _Calls) -> Hidden:
        made: Hidden = Tensor._make_wrapper_subclass(
            cls, value.shape, value.stride(), dtype=value.dtype, device=value.device
        )
        made.value, made.calls = value, calls
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, _: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func._schema.is_mutable or not _BY_VALUE.isdisjoint(func.tags):
            raise NotImplementedError(f"{func} depends on values, or writes to them")
        given = (args, kwargs or {})
        calls = next(leaf.calls for leaf in tree_leaves(given) if isinstance(leaf, Hidden))
        args, kwargs = tree_map_only(Hidden, lambda t: t.value, given)
        out = tree_map_only(Tensor, lambda t: Hidden(t, calls), func(*args, **kwargs))
        calls.append((func, given, out))
        return out


class Loop:
    """The iterations of one ``while_loop`` in one numerics profile.

    Parameters
    ----------
    node
        The loop.
    after
        The number of iterations in one run after which it is traced: a trace costs some of them.
    limit
        Limit for the bytes of constants in traces.
    """

    def __init__(self, node: Node, after: int, limit: int) -> None:
        self._after = max(after, _COMPARED)
        self._captured = slots_read(replace(node, fp32=Form({}, ())))
        self._candidates = [n.candidate for n in walk([node]) if n.candidate is not None]
        self._traces: LRUCache[Any, _Trace] = LRUCache(limit, lambda t: max(t[2], limit // TRACES))
        self._op_by_op = False

    def run(
        self, iterate: Iterate, first: Iteration, env: Mapping[int, Any], fp32: Container[int]
    ) -> Iteration:
        """The last iteration, with the executions of all; ``first`` is what precedes the loop."""
        going, values, executions = first
        captured = [env[slot] for slot in self._captured]
        key = self._key([*values, *captured], fp32)
        trace, count = self._traces.get(key), 0
        done: list[tuple[list[Any], Iteration]] = []
        while bool(going):
            if trace is not None:
                try:
                    going, *values = trace[0](*values, *captured)
                    executions += trace[1]
                    continue
                except Exception:  # the op that fails says so below
                    self._op_by_op, key, trace = True, None, None
            before, (going, values, ran) = values, iterate(values, env)
            executions, count = executions + ran, count + 1
            if key is not None and count <= _COMPARED:
                done.append((before, Iteration(going, values, ran)))
            if key is not None and count == self._after:
                trace = self._trace(iterate, done, captured)
                self._op_by_op = trace is None
                if trace is not None and trace[2] <= self._traces.maxsize:
                    self._traces[key] = trace
        return Iteration(going, values, executions)

    def _key(self, given: Sequence[Any], fp32: Container[int]) -> Any:
        """What a trace depends on; None where none is to be made or used."""
        batched = torch._C._functorch.peek_interpreter_stack() is not None
        plain = all(type(value) is Tensor for value in given)
        if self._op_by_op or batched or torch.is_grad_enabled() or not plain:
            return None
        return frozenset(c for c in self._candidates if c in fp32), _forms(given)

    def _trace(
        self, iterate: Iterate, done: list[tuple[list[Any], Iteration]], captured: list[Any]
    ) -> _Trace | None:
        """A trace of an iteration; None where it does not give what the ops gave."""
        before, (_, _, executions) = done[0]
        n, calls = len(before), _Calls()
        given: list[Any] = [Hidden(value, calls) for value in (*before, *captured)]

        def again(*real: Tensor) -> tuple[Tensor, ...]:
            known = dict(zip(map(id, given), real, strict=True))
            for func, arguments, out in calls:
                args, kwargs = tree_map_only(Hidden, lambda t: known[id(t)], arguments)
                results = tree_leaves(func(*args, **kwargs))
                known.update(zip(map(id, tree_leaves(out)), results, strict=True))
            return tuple(known.get(id(value), value) for value in (made.going, *made.values))

        try:
            with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit.trace
                made = iterate(given[:n], dict(zip(self._captured, given[n:], strict=True)))
                traced = torch.jit.trace(again, (*before, *captured), check_trace=False)
                torch._C._jit_pass_cse(traced.graph)  # what several ops do to one of their inputs
                # Optimizing takes two runs, and may fuse.
                function = torch.jit.optimized_execution(False)(traced)  # type: ignore[attr-defined]
            for before, (going, values, ran) in done:
                equal = same(function(*before, *captured), (going, *values))
                if not equal or ran != executions or _forms(values) != _forms(before):
                    return None
        except Exception:  # whatever an op does that a trace cannot hold
            return None
        leaves = (leaf for _, arguments, _ in calls for leaf in tree_leaves(arguments))
        return function, executions, sum(t.nbytes for t in leaves if type(t) is Tensor)


def _forms(values: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple((v.shape, v.dtype, v.device) for v in values)


def hidden(value: Tensor) -> bool:
    """Whether a tensor's values are not to be looked at: of many samples, or of a trace."""
    return torch._C._functorch.is_batchedtensor(value) or isinstance(value, Hidden)
