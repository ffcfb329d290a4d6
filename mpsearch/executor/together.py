"""Runs many samples of the same shapes at once, where that is faster and the program allows it.

Programs are lowered for the batch size that they were converted with, 1 for the most part.
``torch.func.vmap`` adds an axis of samples in front of what an op reads without the op knowing. For
small samples most of the time goes into calling ops and not into computing; for large ones the
values of several samples no longer fit the cache, and one after the other is faster.

Results are those of the samples one by one, to the bit: a kernel that adds in another order when
samples are stacked runs in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..buffers import placed_as, same
from ..errors import MpsearchError
from ..program.graph import Function, Ref, Source
from .loop import Schedule, Step
from .runtime import EVERY, Runtime, tensor_bytes

#: Samples run together, at most, and bytes of the largest input or result of them all: on a CPU
#: what its cache holds, elsewhere what occupies the device.
_MOST, _BYTES, _DEVICE_BYTES = 32, 2 << 20, 256 << 20

Given = Mapping[int, Any]  # slot -> value
Seen = dict[Any, Tensor]  # what a look wanted, by key
#: Shown every step with what it reads and its results; gives tensors that are wanted of it, by key.
Look = Callable[[Step, Mapping[int, Any], tuple[Any, ...]], Mapping[Any, Tensor]]


class Together:
    """Runs one function on several samples.

    Parameters
    ----------
    schedule
        Of the function.
    check
        Called before every op; raises where the run is to end.
    """

    def __init__(
        self, function: Function, schedule: Schedule, check: Callable[[], None] = lambda: None
    ) -> None:
        self._outputs = list(function.outputs.items())
        self._schedule = schedule
        self.check = check
        self._size = 0  # samples at once; 0 until one was run
        self.exact: dict[Any, bool] = {}  # op in a form -> whether stacked samples change no bit

    def run(
        self,
        runtime: Runtime,
        samples: Sequence[Given],
        fp32: Container[int] = EVERY,
        look: Look | None = None,
    ) -> Iterator[tuple[dict[str, Tensor], dict[Any, Tensor]]]:
        """Per sample: the outputs by name, on the CPU, and what ``look`` wanted.

        The same as one after the other, to the bit.
        """
        done = 0
        while done < len(samples):
            batch = self._alike(samples[done:])
            if len(batch) > 1:
                try:
                    out = self._at_once(runtime, batch, fp32, look)
                except (MpsearchError, RuntimeError, ValueError, TypeError, IndexError):
                    self._size = 1  # some op decides by its values, or draws at random
                    continue
            else:
                out = [self._one(runtime, batch[0], fp32, look)]
            yield from out
            done += len(out)

    def _alike(self, samples: Sequence[Given]) -> Sequence[Given]:
        """The first samples, as many as can be run at once."""
        first = _form(samples[0])
        count = 1
        for sample in samples[1 : max(self._size, 1)]:
            if first is None or _form(sample) != first:
                break
            count += 1
        return samples[:count]

    def _one(
        self, runtime: Runtime, sample: Given, fp32: Container[int], look: Look | None
    ) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
        peak = max(tensor_bytes(tuple(sample.values())), 1)

        def measure(step: Step, env: Mapping[int, Any], results: tuple[Any, ...]) -> Any:
            nonlocal peak
            peak = max(peak, tensor_bytes(results))
            return {} if look is None else look(step, env, results)

        given = {slot: value.to(runtime.device) for slot, value in sample.items()}
        out, seen = self._forward(runtime, given, fp32, measure)
        most = _BYTES if runtime.device.type == "cpu" else _DEVICE_BYTES
        self._size = self._size or min(max(most // peak, 1), _MOST)
        return {name: value.cpu() for name, value in out.items()}, seen

    def _at_once(
        self, runtime: Runtime, samples: Sequence[Given], fp32: Container[int], look: Look | None
    ) -> list[tuple[dict[str, Tensor], dict[Any, Tensor]]]:
        env: dict[int, Any] = {
            slot: torch.stack([s[slot] for s in samples]).to(runtime.device) for slot in samples[0]
        }
        batch = _Batch(self, runtime, len(samples), fp32, look)
        seen: dict[Any, Tensor] = {}
        pending: list[Step] = []  # steps that run at once
        for step in self._schedule.steps:
            if self.exact.get(batch.key(step)):
                pending.append(step)
                continue
            seen.update(batch.at_once(pending, env))
            pending = []
            seen.update(batch.in_turn(step, env))
        seen.update(batch.at_once(pending, env))
        out = {name: batch.output(source, env).cpu() for name, source in self._outputs}
        return [
            ({n: v[row] for n, v in out.items()}, {k: v[row] for k, v in seen.items()})
            for row in range(len(samples))
        ]

    def _forward(
        self, runtime: Runtime, env: dict[int, Any], fp32: Container[int], look: Look | None
    ) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
        seen: dict[Any, Tensor] = {}

        def execute(step: Step, values: dict[int, Any]) -> tuple[Any, ...]:
            self.check()
            results = runtime.run(step.node, values, fp32)
            if look is not None:
                seen.update(look(step, values, results))
            return results

        self._schedule.run(env, execute)
        return {
            name: runtime.source(source, env if isinstance(source, Ref) else {})
            for name, source in self._outputs
        }, seen


@dataclass(frozen=True, slots=True)
class _Batch:
    """Samples that are stacked along a first axis of every value."""

    together: Together
    runtime: Runtime
    rows: int
    fp32: Container[int]
    look: Look | None

    def key(self, step: Step) -> Any:
        """A step in the form in which it runs here."""
        inside = frozenset(c for c in step.candidates if c in self.fp32)
        return step.index, inside, self.rows, self.runtime.profile.identity

    def one(self, step: Step, given: Mapping[int, Any]) -> tuple[tuple[Any, ...], Seen]:
        """A step on one row, or on what ``vmap`` makes of all."""
        self.together.check()
        results = self.runtime.run(step.node, given, self.fp32)
        return results, {} if self.look is None else dict(self.look(step, given, results))

    def at_once(self, steps: Sequence[Step], env: dict[int, Any]) -> Seen:
        """Steps on all rows at once; puts their results into ``env``."""
        if not steps:
            return {}
        made = {slot for step in steps for slot in step.node.outputs}
        reads = {slot for step in steps for slot in step.reads} - made
        left = made.difference(*(step.last for step in steps))

        def run(given: dict[int, Any]) -> tuple[dict[int, Any], Seen]:
            values, seen = dict(given), {}
            for step in steps:
                results, found = self.one(step, values)
                values.update(zip(step.node.outputs, results, strict=True))
                seen.update(found)
            return {slot: values[slot] for slot in left}, seen

        given = {slot: env[slot] for slot in reads}
        if given:
            with torch.no_grad():
                results, seen = torch.func.vmap(run)(given)
        else:
            results, seen = tree_map(self._repeated, run({}))
        env.update(results)
        for slot in {slot for step in steps for slot in step.last}:
            env.pop(slot, None)
        return seen

    def in_turn(self, step: Step, env: dict[int, Any]) -> Seen:
        """A step on one row after the other; notes whether it may run at once from now on.

        Which order a kernel adds in depends on shapes and layout and not on values, so the first
        run of an op in a form decides.
        """
        given = {slot: env[slot] for slot in step.reads}
        executed = self.runtime.executions
        apart = []
        for row in range(self.rows):
            self.runtime.executions = executed  # however many rows there are, it counts once
            apart.append(self.one(step, tree_map(lambda v, row=row: _row(v, row), given)))
        results, seen = tree_map(_joined, *apart)
        key = self.key(step)
        if key not in self.together.exact:
            at_once = self._tried_at_once(step, given)
            self.together.exact[key] = at_once is not None and same(at_once, results)
            if self.together.exact[key]:
                results = at_once  # laid out as it will be from now on
            self.runtime.executions = executed + 1
        env.update(zip(step.node.outputs, results, strict=True))
        for slot in step.last:
            env.pop(slot, None)
        return seen

    def _tried_at_once(self, step: Step, given: dict[int, Any]) -> Any:
        if not given:
            return tree_map(self._repeated, self.one(step, given)[0])
        try:
            with torch.no_grad():
                return torch.func.vmap(lambda v: self.one(step, v)[0])(given)
        except (MpsearchError, RuntimeError, ValueError, TypeError, IndexError):
            return None  # it decides by its values, draws at random, or vmap does not know it

    def output(self, source: Source, env: Mapping[int, Any]) -> Tensor:
        """An output of all rows."""
        if isinstance(source, Ref):
            return self.runtime.source(source, env)
        return self._repeated(self.runtime.source(source, {}))

    def _repeated(self, value: Any) -> Any:
        """What no sample is part of, as every sample has it."""
        return value.expand(self.rows, *value.shape) if isinstance(value, Tensor) else value


def _row(value: Any, row: int) -> Any:
    """A row where a run of it alone would have it."""
    return placed_as(value[row], value[0]) if isinstance(value, Tensor) else value


def _joined(*rows: Any) -> Any:
    if isinstance(rows[0], Tensor):
        return torch.stack(rows)
    if any(row != rows[0] for row in rows):
        raise ValueError("rows differ in what is no tensor")
    return rows[0]


def _form(sample: Given) -> Any:
    """What samples that run at once have in common; None where one cannot."""
    if not all(isinstance(value, Tensor) for value in sample.values()):
        return None
    return {slot: (value.shape, value.dtype) for slot, value in sample.items()}
