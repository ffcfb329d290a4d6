"""Runs a program in any precision, and remembers results; open to those who step into the graph.

Two neighboring precisions differ in few ops. What lies upstream of a difference, or beside it, is
looked up instead of run (:mod:`mpsearch.evaluation.identities`).

Not every result is worth its memory: to fill a page for the first time takes longer than most ops
need to compute what goes in. So what is dear to make (products) is kept when it is made, and so is
what is small; all else when it is made for the second time, which shows that it is asked for.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..buffers import aligned
from ..ending import Ending
from ..errors import InputError
from ..executor.loop import Schedule, Step
from ..executor.ops import PRODUCTS
from ..executor.runtime import Runtime, tensor_bytes
from ..executor.together import Look, Together
from ..memory import give_back
from ..numerics.formats import narrow
from ..numerics.profiles import Profile, carries_rounding
from ..program.graph import Function, Node, Ref, walk
from ..program.precision import Precision
from .identities import Identities, Key, Results, Where
from .metrics import Outputs

#: Results of so many bytes and fewer are kept whatever made them.
_SMALL = 32 << 10


class _Cell(NamedTuple):
    """A value of one run: its identity, and the value itself where it was made in this run."""

    where: Where
    value: Any = None


@dataclass(frozen=True, slots=True)
class _Run:
    """What is run: which candidates are FP32, on which sample, in which profile."""

    fp32: frozenset[int]
    sample: int
    profile: int
    remember: bool = True


@dataclass(frozen=True, slots=True)
class _Plan:
    """The steps of a program: which compute in FP16 whatever is chosen, and which ops they hold."""

    schedule: Schedule
    typed: list[bool]
    inside: list[frozenset[int]]

    @classmethod
    def of(cls, function: Function) -> _Plan:
        schedule = Schedule.of_function(function)
        typed = [_typed_fp16(step.node) for step in schedule.steps]
        return cls(schedule, typed, [frozenset(step.candidates) for step in schedule.steps])


def default_cache_bytes(processes: int = 1) -> int:
    """A quarter of the machine's memory for all processes, and no more than 2 GiB for each.

    More saves few executions, and what it saves goes into memory never used before: with 1, 2
    and 6 GB a search of ViT-B with 4 of its layers took 31, 28 and 27 forwards in 91, 95 and 117 s.
    """
    import psutil

    return min(int(psutil.virtual_memory().total) // 4 // processes, 2 << 30)


class Incremental:
    """Runs one program on fixed samples in any precision, and remembers results.

    Parameters
    ----------
    function
        The lowered pre-cast program.
    candidates
        How many ops can be chosen.
    samples
        Per sample, input name to tensor.
    profiles
        The numerics profiles.
    device, cache_bytes
        Where to run, and how many bytes of results to remember (default: a quarter of the
        machine's memory, 2 GiB at most).
    ending
        Asked before every op whether to go on.

    Attributes
    ----------
    executions
        Ops run so far.

    Raises
    ------
    InputError
        If a sample lacks an input.
    """

    def __init__(
        self,
        function: Function,
        candidates: int,
        samples: Sequence[Mapping[str, Tensor]],
        profiles: Sequence[Profile],
        device: str = "cpu",
        cache_bytes: int | None = None,
        ending: Ending | None = None,
    ) -> None:
        self.function = function
        self.candidates = candidates
        self.ending = ending or Ending()
        self.executions = 0
        self._seconds = 0.0  # measured op time of what was executed
        self.runtimes = [Runtime(p, device) for p in profiles]
        # FP32 ops do the same in every profile: one runtime holds the weights for all of them.
        for runtime in self.runtimes[1:]:
            runtime.share_weights(self.runtimes[0])
        self._memory = Identities(default_cache_bytes() if cache_bytes is None else cache_bytes)
        self._plan = _Plan.of(function)
        self._times: dict[int, float] = {}  # step -> seconds of its first run
        self._given = [self._bind(i, sample) for i, sample in enumerate(samples)]
        self._together = Together(function, self._plan.schedule, self.ending.check)

    def add(self, sample: Mapping[str, Tensor]) -> int:
        """Take in one more sample; its index."""
        self._given.append(self._bind(self.samples, sample))
        return self.samples - 1

    @property
    def samples(self) -> int:
        """How many inputs there are."""
        return len(self._given)

    @property
    def profiles(self) -> int:
        """In how many ways FP16 may compute."""
        return len(self.runtimes)

    def _bind(self, sample: int, values: Mapping[str, Tensor]) -> dict[int, Any]:
        for name in self.function.inputs:
            if name not in values:
                raise InputError(
                    f"sample {sample} has no input {name!r}; the model takes "
                    + ", ".join(self.function.inputs)
                )
        slots = {**self.function.inputs, **self.function.states}
        return {slot: aligned(values[name]) for name, slot in slots.items()}

    # -- outputs -------------------------------------------------------------------------------

    def outputs(self, precision: Precision, sample: int, profile: int = 0) -> dict[str, Tensor]:
        """The outputs for one sample, by name, on the CPU.

        Raises
        ------
        Stop
            If the run is to end.
        """
        return self.run(precision, sample, profile)[0]

    def run(
        self, precision: Precision, sample: int, profile: int = 0
    ) -> tuple[dict[str, Tensor], list[str]]:
        """The outputs for one sample, and the names of the ops that are not finite in FP16.

        Ops that only pass on values are not among them.

        Raises
        ------
        Stop
            If the run is to end.
        """
        run = _Run(precision.fp32, sample, profile)
        nonfinite = []

        def execute(step: Step, env: Mapping[int, _Cell]) -> list[_Cell]:
            cells = self._cells(step, env, run)
            rounds = self._rounds(step, run.fp32) and not carries_rounding(step.node.op_type)
            if rounds and cells and cells[0].where[0] in self._memory.nonfinite:
                nonfinite.append(step.node.name)
            return cells

        with self._running():
            cells = self._inputs(sample)
            self._plan.schedule.run(cells, execute)
            return self._outputs(cells), nonfinite

    def several(
        self,
        precision: Precision,
        samples: Sequence[int],
        profile: int = 0,
        look: Look | None = None,
        finite: bool = False,
    ) -> Iterator[tuple[Outputs, Any]]:
        """For several samples in turn, the outputs and what was seen on the way.

        An op that runs on several at once counts as one execution; nothing is remembered. ``look``
        is that of :class:`mpsearch.executor.together.Together`, and gives numbers, each under a
        key. With ``finite`` the names of the ops that are not finite in FP16 are seen instead.

        Raises
        ------
        Stop
            If the run is to end.
        """
        runtime = self.runtimes[profile]
        given = [self._given[sample] for sample in samples]
        if finite:
            look = partial(self._all_finite, precision.fp32)
        found = self._together.run(runtime, given, precision.fp32, look)
        while True:
            before, started = runtime.executions, time.perf_counter()
            with torch.inference_mode():
                item = next(found, None)
            self.executions += runtime.executions - before
            self._seconds += time.perf_counter() - started
            if item is None:
                return
            outputs, seen = item
            yield outputs, ([n for n, fine in seen.items() if not bool(fine)] if finite else seen)

    def _all_finite(
        self, fp32: frozenset[int], step: Step, env: Mapping[int, Any], results: Results
    ) -> dict[str, Tensor]:
        """Whether all that an op gives in FP16 is finite, under its name."""
        if not self._rounds(step, fp32) or carries_rounding(step.node.op_type):
            return {}
        spans = [_span(value) for value in results if _checked(value)]
        return {step.node.name: torch.stack(spans).isfinite().all()} if spans else {}

    def _rounds(self, step: Step, fp32: frozenset[int]) -> bool:
        """Whether something in a step is computed in FP16."""
        return not fp32.issuperset(step.candidates) or self._plan.typed[step.index]

    @contextmanager
    def _running(self) -> Iterator[None]:
        self.ending.check()
        if self._memory.overgrown:  # no identity outlives a run
            self._memory = Identities(self._memory.limit)
        with torch.inference_mode():
            yield

    def _inputs(self, sample: int) -> dict[int, _Cell]:
        """Model inputs have negative identities: -1 - sample, and the slot as place."""
        places = [(-1 - sample, slot) for slot in self._given[sample]]
        return {where[1]: _Cell(where, self._input(where)) for where in places}

    def _input(self, where: Where) -> Tensor:
        """A model input by its identity; samples stay on the CPU, however many there are."""
        identity, slot = where
        return self._given[-1 - identity][slot].to(self.runtimes[0].device)

    def _outputs(self, cells: Mapping[int, _Cell]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, source in self.function.outputs.items():
            if isinstance(source, Ref):
                value = self._value(cells[source.slot])
                out[name] = (narrow(value) if source.narrow else value).to("cpu")
            else:
                out[name] = self.runtimes[0].source(source, {}).to("cpu")
        return out

    # -- one step ------------------------------------------------------------------------------

    def _cells(self, step: Step, env: Mapping[int, _Cell], run: _Run) -> list[_Cell]:
        """The results of a step: looked up where it can be, run where not."""
        self.ending.check()
        key = self._key(step, env, run)
        identity, results = self._memory.known(key), None
        if identity is None:
            results = self._execute(step, key, run.profile, self._values(step, env))
            identity = self._memory.learn(key, results, self._fetch)
            looked_at = key.profile >= 0 and not carries_rounding(step.node.op_type)
            if looked_at and not all(map(_finite, results)):
                self._memory.nonfinite.add(identity)
            if run.remember and (
                step.node.blocks or step.node.op_type in PRODUCTS or tensor_bytes(results) <= _SMALL
            ):
                self._memory.hold(identity, results)
        return [
            _Cell((identity, place), None if results is None else results[place])
            for place in range(len(step.node.outputs))
        ]

    def _key(self, step: Step, env: Mapping[int, _Cell], run: _Run) -> Key:
        inside = self._plan.inside[step.index] & run.fp32
        rounds = self._rounds(step, run.fp32)
        reads = tuple([env[slot].where for slot in step.reads])
        return Key(step.index, inside, reads, run.profile if rounds else -1, run.sample)

    def _values(self, step: Step, env: Mapping[int, _Cell]) -> dict[int, Any]:
        return {slot: self._value(env[slot]) for slot in step.reads}

    def _value(self, cell: _Cell) -> Any:
        if cell.value is not None:
            return cell.value
        identity, place = cell.where
        return self._input(cell.where) if identity < 0 else self._fetch(identity)[place]

    def _execute(self, step: Step, key: Key, profile: int, env: Mapping[int, Any]) -> Results:
        """Run a step on the values it reads, and count what that cost."""
        runtime = self.runtimes[profile]
        before, started = runtime.executions, time.perf_counter()
        results = runtime.run(step.node, env, key.fp32)
        seconds = time.perf_counter() - started
        self.executions += runtime.executions - before
        # The first run of an op sets what it weighs ever after.
        self._seconds += self._times.setdefault(step.index, seconds)
        return results

    def _fetch(self, identity: int) -> Results:
        """A result from memory, or made again, with what it needs and is not there either."""
        held = self._memory.held(identity)
        if held is not None:
            return held
        order, made = self._missing(identity)
        readers = Counter(w[0] for i in order for w in set(self._memory.key(i).reads))
        for each in order:
            key = self._memory.key(each)
            step = self._plan.schedule.steps[key.step]
            env = {
                slot: self._input(w) if w[0] < 0 else made[w[0]][w[1]]
                for slot, w in zip(step.reads, key.reads, strict=True)
            }
            made[each] = self._execute(step, key, max(key.profile, 0), env)
            self._memory.hold(each, made[each])
            for source in {w for w in key.reads if w[0] >= 0}:
                readers[source[0]] -= 1
                if not readers[source[0]]:
                    del made[source[0]]
        return made[identity]

    def _missing(self, identity: int) -> tuple[list[int], dict[int, Results]]:
        """What must be run to have a result, in order, and what that rests on."""
        order: list[int] = []
        made: dict[int, Results] = {}
        seen: set[int] = set()
        pending = [(identity, False)]
        while pending:
            top, ready = pending.pop()
            if ready:
                order.append(top)
                continue
            if top in seen:
                continue
            seen.add(top)
            held = self._memory.held(top)
            if held is not None:
                made[top] = held
                continue
            pending.append((top, True))
            pending.extend((w[0], False) for w in self._memory.key(top).reads if w[0] >= 0)
        return order, made

    # -- stepping into the graph ---------------------------------------------------------------

    @property
    def nodes(self) -> list[Node]:
        """The nodes of the outer block that some output depends on, in execution order."""
        return [step.node for step in self._plan.schedule.steps]

    @property
    def _every(self) -> frozenset[int]:
        return frozenset(range(self.candidates))

    def trace(self, sample: int, see: Callable[[Node, Results], None]) -> None:
        """Show ``see`` every node of the outer block and its results in all-FP32, in order."""
        run = _Run(self._every, sample, 0)

        def show(step: Step, env: Mapping[int, _Cell]) -> list[_Cell]:
            cells = self._whole(step, env, run)
            see(step.node, tuple(cell.value for cell in cells))
            return cells

        with self._running():
            self._plan.schedule.run(self._inputs(sample), show)

    def _whole(self, step: Step, env: Mapping[int, _Cell], run: _Run) -> list[_Cell]:
        """:meth:`_cells` with the values, where all that the step reads has its value."""
        cells = self._cells(step, env, run)
        if cells and cells[0].value is None:
            identity = cells[0].where[0]
            results = self._memory.held(identity)
            if results is None:
                key = self._key(step, env, run)
                results = self._execute(step, key, run.profile, self._values(step, env))
            cells = [_Cell((identity, place), value) for place, value in enumerate(results)]
        return cells

    def replaced(
        self, sample: int, node: Node, results: Results, profile: int = 0
    ) -> dict[str, Tensor]:
        """The outputs of all-FP32 when ``node`` gives ``results`` instead of its own."""
        run, other = _Run(self._every, sample, profile), (0, -1)  # no result has this place

        def execute(step: Step, env: Mapping[int, _Cell]) -> list[_Cell]:
            if step.node is node:
                return [_Cell(other, value) for value in results]
            if not any(env[slot].where == other for slot in step.reads):
                return self._cells(step, env, run)
            self.ending.check()
            values = self._values(step, env)
            changed = self.runtimes[profile].run(step.node, values)
            return [_Cell(other, value) for value in changed]

        with self._running():
            cells = self._inputs(sample)
            self._plan.schedule.run(cells, execute)
            return self._outputs(cells)

    def taken(self, sample: int, node: Node) -> dict[int, Any]:
        """The values that a node of the outer block reads in all-FP32, by slot."""
        run = _Run(self._every, sample, 0)
        found: dict[int, _Cell] = {}

        def execute(step: Step, env: Mapping[int, _Cell]) -> list[_Cell]:
            if step.node is node:
                found.update({slot: env[slot] for slot in step.reads})
            return self._cells(step, env, run)

        with self._running():
            self._plan.schedule.run(self._inputs(sample), execute)
            return {slot: self._value(cell) for slot, cell in found.items()}

    def overflows(self, precision: Precision) -> set[int]:
        """Candidates left in FP16 that overflow, on any sample, where FP32 would be finite.

        Those named are where it starts: ops that only pass on what overflowed before them are not.
        """
        self._make_space()
        found: set[int] = set()
        for profile in range(self.profiles):
            for sample in range(self.samples):
                with self._running():
                    found |= self._overflows(precision, sample, profile)
        return found

    def _overflows(self, precision: Precision, sample: int, profile: int) -> set[int]:
        mixed = _Run(precision.fp32, sample, profile, remember=False)
        plain = _Run(self._every, sample, profile, remember=False)
        found: set[int] = set()
        tainted: set[int] = set()  # slots with values that are infinite or NaN in FP16 alone

        def execute(
            step: Step, env: Mapping[int, tuple[_Cell, _Cell]]
        ) -> list[tuple[_Cell, _Cell]]:
            ours = self._whole(step, {s: env[s][0] for s in step.reads}, mixed)
            exact = self._whole(step, {s: env[s][1] for s in step.reads}, plain)
            pairs = list(zip(ours, exact, strict=True))
            fresh = [
                slot
                for slot, (a, b) in zip(step.node.outputs, pairs, strict=True)
                if a.where != b.where and _spoilt(a.value, b.value)
            ]
            if fresh and tainted.isdisjoint(step.reads):
                own = step.node.candidate
                at_fault = step.candidates if own is None or own in precision else (own,)
                found.update(op for op in at_fault if op not in precision)
            tainted.update(fresh)
            return pairs

        self._plan.schedule.run({s: (c, c) for s, c in self._inputs(sample).items()}, execute)
        return found

    def sample(self, sample: int) -> dict[str, Any]:
        """What one sample gives the inputs and states, by name."""
        slots = {**self.function.inputs, **self.function.states}
        return {name: self._given[sample][slot] for name, slot in slots.items()}

    # -- memory and cost -----------------------------------------------------------------------

    @property
    def forward_equivalents(self) -> float:
        """Measured op time of everything executed, over that of one forward of all samples."""
        once = sum(self._times.values()) * self.samples
        return self._seconds / once if once else 0.0

    def _make_space(self) -> None:
        """Keep the newest quarter of what may be remembered, for work that holds much besides."""
        self._memory.trim(self._memory.limit // 4)
        give_back()

    def release(self) -> None:
        """Give back the memory of what is remembered; it is computed again when needed."""
        self._memory = Identities(self._memory.limit)
        for runtime in self.runtimes:
            runtime.release()
        give_back()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Work beside evaluation, on what it holds: with room made for it, and its time counted."""
        started = time.perf_counter()
        self.ending.check()
        self._make_space()
        try:
            yield
        finally:
            give_back()
            self._seconds += time.perf_counter() - started


def _finite(value: Any) -> bool:
    if not _checked(value):
        return True
    low, high = torch.aminmax(value)
    return math.isfinite(low) and math.isfinite(high)


def _checked(value: Any) -> bool:
    """Whether a result can be infinite or NaN."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _span(value: Tensor) -> Tensor:
    """From the smallest element to the largest: finite where all elements are."""
    low, high = torch.aminmax(value)
    return high.float() - low.float()


def _spoilt(value: Any, exact: Any) -> bool:
    """Whether some value is infinite or NaN where it should be finite."""
    if isinstance(value, (list, tuple)):
        return any(_spoilt(v, e) for v, e in zip(value, exact, strict=False))
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    if value.shape != exact.shape:
        return False
    return bool((~torch.isfinite(value) & torch.isfinite(exact)).any())


def _typed_fp16(node: Node) -> bool:
    """Whether a node computes in FP16 whatever is chosen."""
    return any("fp16" in n.fp32.out_dtypes for n in walk([node]))
