"""From a precision vector to its error: incremental, memoised execution.

Two neighbouring vectors differ in few ops. Every result gets an identity made of its op, its
precision and the identities of its inputs, so what lies upstream of a difference, or beside it,
is looked up instead of run. Results that come out bit for bit equal share one identity, which
stops a difference from spreading any further.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch import Tensor

from ..cache import ByteCache
from ..ending import Ending
from ..errors import InputError
from ..executor.runtime import Runtime, tensor_bytes
from ..memory import give_back
from ..numerics.profiles import Profile
from ..program.graph import Function, Node, Ref, Source, slots_read, walk
from .metrics import Metric, Outputs

Vector = tuple[bool, ...]
Place = tuple[int, int]  # step, sample
Where = tuple[int, int]  # identity of a result (negative: a model input), place within it
See = Callable[[int, int, dict[str, Tensor]], None]  # sample, profile, outputs


#: What a key with its recipe takes, about, and what they may take however small the limit.
_KEY_BYTES = 1_000
_LEAST_KEY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Measured:
    """What evaluating a precision vector gave.

    ``exact`` is False where evaluation stopped at the first sample that broke the budget; the
    loss is then a lower bound.
    """

    loss: float
    exact: bool
    executions: int
    seconds: float


def default_cache_bytes() -> int:
    """A quarter of the machine's memory."""
    import psutil

    return int(psutil.virtual_memory().total) // 4


@dataclass(slots=True)
class _Recipe:
    """How a result was made: enough to make it again after it left the cache."""

    node: Node
    kept: frozenset[int]
    slots: dict[int, Where]  # slot read -> its value
    sample: int
    profile: int


class _Identities:
    """Identities of results and the tensors behind them."""

    def __init__(self, limit: int) -> None:
        self.tensors: ByteCache[tuple[Any, ...]] = ByteCache(limit, tensor_bytes)
        self.by_key: dict[tuple[Any, ...], int] = {}
        self.recipes: dict[int, _Recipe] = {}
        self._by_content: dict[tuple[Place, bytes], int] = {}
        self._lone: dict[Place, int] = {}
        self._count = 0

    @property
    def overgrown(self) -> bool:
        """Whether the tables of keys and recipes have outgrown their part of the limit."""
        return len(self.by_key) * _KEY_BYTES > max(self.tensors.limit // 4, _LEAST_KEY_BYTES)

    def identify(self, place: Place, results: tuple[Any, ...]) -> int:
        """The identity of a result at ``place``: an earlier one if it is bit for bit the same.

        The first result at a place has nothing to be compared with; it is digested only when a
        second one comes.
        """
        if place not in self._lone:
            self._lone[place] = self._new()
            return self._lone[place]
        first = self._lone[place]
        held = self.tensors.get(first) if first else None
        if held is not None:
            self._by_content[place, _digest(held)] = first
            self._lone[place] = 0
        content = (place, _digest(results))
        if content not in self._by_content:
            self._by_content[content] = self._new()
        return self._by_content[content]

    def _new(self) -> int:
        self._count += 1
        return self._count


def _digest(values: tuple[Any, ...]) -> bytes:
    digest = xxhash.xxh3_128()
    _feed(digest, values)
    return digest.digest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        # FP16 values are compared as FP32: readers of a value do not see how it is stored.
        data = value.float() if value.dtype is torch.float16 else value
        digest.update(f"{data.dtype}{tuple(data.shape)}".encode())
        data = data.detach().cpu().contiguous()
        if data.numel():
            digest.update(data.view(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, (list, tuple)):
        digest.update(str(len(value)).encode())
        for item in value:
            _feed(digest, item)
    else:
        digest.update(repr(value).encode())


@dataclass(slots=True)
class _Step:
    """A node with what evaluation asks of it again and again."""

    index: int
    node: Node
    reads: list[int]
    bits: list[int]  # candidate indices inside the node, its own included


@dataclass(slots=True)
class Counters:
    """What evaluation has cost so far."""

    evaluations: int = 0
    executions: int = 0
    seconds: float = 0.0
    work: float = 0.0  # measured op time of what was executed, in forwards


class Evaluator:
    """Evaluates precision vectors on samples against references.

    Parameters
    ----------
    function
        The lowered pre-cast program.
    candidates
        Length of the precision vector.
    samples
        Per sample, input name to tensor.
    references
        Per sample, output name to tensor: the PyTorch model in FP32.
    metric, targets
        The error measure, and what a task metric compares with.
    profiles
        Numerics profiles; the loss is the worst over them.
    device, cache_bytes
        Where to run, and how many bytes of results to remember.
    ending
        Asked before every sample whether to go on.
    """

    def __init__(
        self,
        function: Function,
        candidates: int,
        samples: Sequence[Mapping[str, Tensor]],
        references: Sequence[Outputs],
        metric: Metric,
        profiles: Sequence[Profile],
        targets: Sequence[Any] = (),
        device: str = "cpu",
        cache_bytes: int | None = None,
        ending: Ending | None = None,
    ) -> None:
        self.metric = metric
        self._ending = ending or Ending()
        self.counters = Counters()
        self._function = function
        self._candidates = candidates
        self._references = list(references)
        self._targets = list(targets)
        self._runtimes = [Runtime(p, device) for p in profiles]
        # FP32 ops do the same in every profile: one runtime holds the weights for all of them.
        for runtime in self._runtimes[1:]:
            runtime.share_weights(self._runtimes[0])
        limit = default_cache_bytes() if cache_bytes is None else cache_bytes
        self._memory = _Identities(limit)
        self._steps = [
            _Step(
                i,
                node,
                slots_read(node),
                [n.candidate for n in walk([node]) if n.candidate is not None],
            )
            for i, node in enumerate(_needed(function))
        ]
        self._times: dict[int, float] = {}
        self._held: list[dict[int, Any]] = []
        self._inputs = [self._bind(i, sample) for i, sample in enumerate(samples)]
        self._order = list(range(len(samples)))

    # -- evaluation ----------------------------------------------------------------------------

    def evaluate(
        self,
        fp32: Vector,
        limit: float = math.inf,
        see: See | None = None,
        enough: Callable[[], bool] | None = None,
        remember: int | None = None,
    ) -> Measured:
        """The loss of a precision vector (True = FP32).

        ``limit`` stops at the first sample that brings the loss above it. ``see`` is shown what
        comes out: sample, profile and outputs. ``enough`` says, after the first sample, whether
        those seen so far will do. ``remember`` says of how many samples results are remembered,
        those likeliest to break the budget first, if not of all: of the others they are let go
        as soon as nothing reads them. To fill memory takes longer than the ops of some models.

        Raises
        ------
        Stop
            If the run is to end.
        """
        started, executed = time.perf_counter(), self.counters.executions
        kept = frozenset(i for i, bit in enumerate(fp32) if bit)
        worst, exact = -math.inf, True
        profiles = len(self._runtimes) if len(kept) < self._candidates else 1
        for profile in range(profiles):
            loss, complete = self._in_profile(kept, profile, limit, see, enough, remember)
            worst, exact = max(worst, loss), exact and complete
            if worst > limit or not complete:
                # What was not looked at, samples or profiles, may be worse still.
                exact = exact and profile == profiles - 1
                break
        exact |= worst == math.inf
        seconds = time.perf_counter() - started
        self.counters.evaluations += 1
        self.counters.seconds += seconds
        return Measured(worst, exact, self.counters.executions - executed, seconds)

    def _in_profile(
        self,
        kept: frozenset[int],
        profile: int,
        limit: float,
        see: See | None,
        enough: Callable[[], bool] | None,
        remember: int | None,
    ) -> tuple[float, bool]:
        kept_of = len(self._inputs) if remember is None else remember
        if self.metric.combine == "task":
            outputs: list[Outputs] = []
            for sample in range(len(self._inputs)):
                if outputs and enough is not None and enough():
                    break
                outputs.append(self.outputs(kept, sample, profile, sample < kept_of))
                if see is not None:
                    see(sample, profile, dict(outputs[-1]))
            seen = len(outputs)
            loss = self.metric.whole(self._references[:seen], outputs, self._targets[:seen])
            return loss, seen == len(self._inputs)
        parts: dict[int, tuple[float, float]] = {}
        assert self.metric.parts is not None
        for position, sample in enumerate(self._order):
            if parts and enough is not None and enough():
                return self.metric.combined(list(parts.values())), False
            outputs_ = self.outputs(kept, sample, profile, position < kept_of)
            if see is not None:
                see(sample, profile, outputs_)
            parts[sample] = self.metric.parts(self._references[sample], outputs_)
            lost = parts[sample][0]
            if self.metric.combine == "max" and (lost > limit or lost == math.inf):
                # What broke the budget now is likeliest to break it for the next vector.
                self._order.insert(0, self._order.pop(position))
                return self.metric.combined(list(parts.values())), len(parts) == len(self._order)
        return self.metric.combined(list(parts.values())), True

    def outputs(
        self, kept: frozenset[int], sample: int, profile: int = 0, remember: bool = True
    ) -> dict[str, Tensor]:
        """The outputs for one sample when the ops in ``kept`` are FP32 and the others FP16."""
        self._ending.check()
        self._tidy()
        before = self.counters.executions
        with torch.inference_mode():
            if not remember:
                return self._forgetful(kept, sample, profile)
            identities = self._identities(kept, sample, profile)
            outputs = {
                name: self._output(source, identities)
                for name, source in self._function.outputs.items()
            }
        if self.counters.executions - before > len(self._steps) // 2:
            # Most of a forward: results to keep and results to drop lie side by side in the heap.
            give_back()
        return outputs

    def _forgetful(self, kept: frozenset[int], sample: int, profile: int) -> dict[str, Tensor]:
        """:meth:`outputs` without looking anything up, and without keeping anything."""
        last = {slot: step.index for step in self._steps for slot in step.reads}
        sources = self._function.outputs
        for source in sources.values():
            if isinstance(source, Ref):
                last[source.slot] = len(self._steps)
        env = dict(self._held[sample])
        for step in self._steps:
            self._ending.check()
            inside = frozenset(b for b in step.bits if b in kept)
            results = self._execute(step.node, inside, profile, env)
            env.update(zip(step.node.outputs, results, strict=True))
            for slot in {*step.reads, *step.node.outputs}:
                if last.get(slot, -1) <= step.index:
                    env.pop(slot, None)
        runtime = self._runtimes[profile]
        return {name: runtime.source(source, env).to("cpu") for name, source in sources.items()}

    def trace(
        self,
        kept: frozenset[int],
        sample: int,
        see: Callable[[Node, tuple[Any, ...]], None],
        profile: int = 0,
    ) -> None:
        """Show ``see`` every node of the outer block and its results, in order."""
        self._tidy()
        with torch.inference_mode():
            identities = self._identities(kept, sample, profile)
            for step in self._steps:
                see(step.node, self._fetch(identities[step.node.outputs[0]][0]))

    def replaced(
        self, sample: int, node: Node, results: tuple[Any, ...], profile: int = 0
    ) -> dict[str, Tensor]:
        """The outputs of all-FP32 when ``node`` gives ``results`` instead of its own."""
        self._ending.check()
        every = frozenset(range(self._candidates))
        self._tidy()
        with torch.inference_mode():
            plain = self._identities(every, sample, profile)
            env: dict[int, Any] = dict(zip(node.outputs, results, strict=True))
            runtime, started = self._runtimes[profile], False
            for step in self._steps:
                if step.node is node:
                    started = True
                elif started and any(slot in env for slot in step.reads):
                    given = {s: env[s] if s in env else self._value(plain[s]) for s in step.reads}
                    out = runtime.run(step.node, given, every.__contains__)
                    env.update(zip(step.node.outputs, out, strict=True))
            return {
                name: env[source.slot].to("cpu")
                if isinstance(source, Ref) and source.slot in env
                else self._output(source, plain)
                for name, source in self._function.outputs.items()
            }

    def taken(self, sample: int, node: Node) -> dict[int, Any]:
        """The values that a node of the outer block reads in all-FP32, by slot."""
        every = frozenset(range(self._candidates))
        self._tidy()
        with torch.inference_mode():
            plain = self._identities(every, sample, 0)
            return {slot: self._value(plain[slot]) for slot in slots_read(node)}

    @property
    def function(self) -> Function:
        """The program."""
        return self._function

    @property
    def ending(self) -> Ending:
        """When the run ends."""
        return self._ending

    @property
    def references(self) -> Sequence[Outputs]:
        """Per sample, what the outputs should be."""
        return self._references

    @property
    def candidates(self) -> int:
        """The length of a precision vector."""
        return self._candidates

    @property
    def nodes(self) -> list[Node]:
        """The nodes of the outer block that some output depends on, in execution order."""
        return [step.node for step in self._steps]

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self._inputs)

    @property
    def runtimes(self) -> Sequence[Runtime]:
        """A runtime for each profile."""
        return self._runtimes

    def overflows(self, fp32: Vector) -> set[int]:
        """Candidates left in FP16 that overflow, on any sample, where FP32 would be finite.

        Those named are where it starts: ops that only pass on what overflowed before them are not.
        """
        kept = frozenset(i for i, bit in enumerate(fp32) if bit)
        every = frozenset(range(self._candidates))
        found: set[int] = set()
        self._make_room()  # results that were dropped are made again, whole chains at a time
        with torch.inference_mode():
            for profile in range(len(self._runtimes)):
                for sample in range(len(self._inputs)):
                    self._ending.check()
                    found |= self._overflows(kept, every, sample, profile)
        return found

    def _overflows(
        self, kept: frozenset[int], every: frozenset[int], sample: int, profile: int
    ) -> set[int]:
        self._tidy()
        mixed = self._identities(kept, sample, profile)
        plain = self._identities(every, sample, profile)
        found: set[int] = set()
        tainted: set[int] = set()  # slots with values that are infinite or NaN in FP16 alone
        for step in self._steps:
            node = step.node
            fresh = [
                slot
                for slot in node.outputs
                if mixed[slot] != plain[slot]
                and _lost(self._value(mixed[slot]), self._value(plain[slot]))
            ]
            if fresh and tainted.isdisjoint(step.reads):
                if node.candidate is not None and node.candidate not in kept:
                    found.add(node.candidate)
                else:
                    found.update(b for b in step.bits if b not in kept)
            tainted.update(fresh)
        return found

    def _tidy(self) -> None:
        """Start over where the tables have grown too large; identities held do not outlive this."""
        if self._memory.overgrown:
            self._memory = _Identities(self._memory.tensors.limit)

    # -- identities ----------------------------------------------------------------------------

    def _identities(self, kept: frozenset[int], sample: int, profile: int) -> dict[int, Where]:
        """Slot -> (identity of the result, place in the result's tuple)."""
        memory, check = self._memory, self._ending.check
        found = dict(self._inputs[sample])
        for step in self._steps:
            check()
            inside = frozenset(b for b in step.bits if b in kept)
            rounds = len(inside) < len(step.bits) or _typed_fp16(step.node)
            reads = tuple(found[s] for s in step.reads)
            key = (step.index, inside, reads, profile if rounds else -1, sample)
            identity = memory.by_key.get(key)
            if identity is None:
                slots = {s: found[s] for s in step.reads}
                recipe = _Recipe(step.node, inside, slots, sample, profile)
                values = {s: self._value(w) for s, w in slots.items()}
                results = self._execute(step.node, inside, profile, values)
                identity = memory.identify((step.index, sample), results)
                memory.recipes.setdefault(identity, recipe)
                memory.tensors.put(identity, results)
                memory.by_key[key] = identity
            for place, slot in enumerate(step.node.outputs):
                found[slot] = (identity, place)
        return found

    def _execute(
        self, node: Node, kept: frozenset[int], profile: int, env: Mapping[int, Any]
    ) -> tuple[Any, ...]:
        """Run a node on the values it reads, and count what that cost."""
        runtime = self._runtimes[profile]
        before = runtime.executions
        started = time.perf_counter()
        results = runtime.run(node, env, kept.__contains__)
        seconds = time.perf_counter() - started
        self.counters.executions += runtime.executions - before
        # The first run of a node sets what it weighs ever after.
        self.counters.work += self._times.setdefault(id(node), seconds)
        return results

    def _fetch(self, identity: int) -> tuple[Any, ...]:
        """A result from the cache, or made again from its recipe."""
        results = self._memory.tensors.get(identity)
        if results is not None:
            return results
        # Deep chains are unrolled, since a result may rest on thousands of dropped ones.
        pending = [identity]
        made: dict[int, tuple[Any, ...]] = {}
        while pending:
            top = pending[-1]
            if top in made:
                pending.pop()
                continue
            recipe = self._memory.recipes[top]
            missing = []
            for where in recipe.slots.values():
                source = where[0]
                if source in made or source < 0:
                    continue
                held = self._memory.tensors.get(source)
                if held is None:
                    missing.append(source)
                else:
                    made[source] = held
            if missing:
                pending.extend(missing)
                continue
            env = {
                slot: self._input_value(w) if w[0] < 0 else made[w[0]][w[1]]
                for slot, w in recipe.slots.items()
            }
            made[top] = self._execute(recipe.node, recipe.kept, recipe.profile, env)
            self._memory.tensors.put(top, made[top])
            pending.pop()
        return made[identity]

    def _value(self, where: Where) -> Any:
        return self._input_value(where) if where[0] < 0 else self._fetch(where[0])[where[1]]

    # -- inputs and outputs --------------------------------------------------------------------

    def _bind(self, sample: int, values: Mapping[str, Tensor]) -> dict[int, Where]:
        """Inputs have negative identities: -1 - sample, and the slot as place."""
        device = self._runtimes[0].device
        held = {}
        for name, slot in self._function.inputs.items():
            if name not in values:
                raise InputError(
                    f"sample {sample} has no input {name!r}; the model takes "
                    + ", ".join(self._function.inputs)
                )
            held[slot] = values[name].to(device)
        for name, slot in self._function.states.items():
            held[slot] = values[name].to(device)
        self._held.append(held)
        return {slot: (-1 - sample, slot) for slot in held}

    def _input_value(self, where: Where) -> Any:
        return self._held[-1 - where[0]][where[1]]

    def _output(self, source: Source, identities: dict[int, Where]) -> Tensor:
        if isinstance(source, Ref):
            value = self._value(identities[source.slot])
        else:
            value = self._runtimes[0].source(source, {})
        out: Tensor = value
        return out.to("cpu")

    def _make_room(self) -> None:
        """Drop the older half of what may be remembered, for work that holds much besides."""
        self._memory.tensors.trim(self._memory.tensors.limit // 2)
        give_back()

    def release(self) -> None:
        """Give back the memory of what is remembered; it is computed again when needed."""
        self._memory = _Identities(self._memory.tensors.limit)
        for runtime in self._runtimes:
            runtime.release()
        give_back()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Work beside evaluation, on what it holds: with room made for it, and its time counted."""
        started = time.perf_counter()
        self._ending.check()
        self._make_room()
        try:
            yield
        finally:
            give_back()
            seconds = time.perf_counter() - started
            self.counters.seconds += seconds
            self.counters.work += seconds

    def sample(self, sample: int) -> dict[str, Any]:
        """What one sample gives the inputs and states, by name."""
        slots = {**self._function.inputs, **self._function.states}
        return {name: self._held[sample][slot] for name, slot in slots.items()}

    @property
    def cached_bytes(self) -> int:
        """Bytes of results remembered now."""
        return self._memory.tensors.bytes

    # -- cost ----------------------------------------------------------------------------------

    @property
    def forward_equivalents(self) -> float:
        """Measured op time of everything executed, over that of one forward of all samples."""
        once = sum(self._times.values()) * len(self._inputs)
        return self.counters.work / once if once else 0.0


def _lost(value: Any, exact: Any) -> bool:
    """Whether some value is infinite or NaN where it should be finite."""
    if isinstance(value, (list, tuple)):
        return any(_lost(v, e) for v, e in zip(value, exact, strict=False))
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    if value.shape != exact.shape:
        return False
    return bool((~torch.isfinite(value) & torch.isfinite(exact)).any())


def _typed_fp16(node: Node) -> bool:
    """Whether a node computes in FP16 whatever the vector says."""
    return any("fp16" in n.fp32.out_dtypes for n in walk([node]))


def _needed(function: Function) -> list[Node]:
    """The nodes that some output depends on."""
    wanted: set[int] = set()
    for source in function.outputs.values():
        if isinstance(source, Ref):
            wanted.add(source.slot)
    nodes = []
    for node in reversed(function.nodes):
        if wanted.intersection(node.outputs):
            nodes.append(node)
            wanted.update(slots_read(node))
    return nodes[::-1]
