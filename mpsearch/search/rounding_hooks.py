"""Measures what rounding does: one forward with a hook on every value, a few backward passes.

The size of a source's effect, the norm of J delta, is estimated with random output directions v,
since ``E[(v . J delta)^2] = |J delta|^2`` (Hutchinson 1990; as ADAPT, Menon et al., SC 2018, but
per tensor and without summing signed terms). A rounding that overflows is beyond first order and
counts as infinite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..buffers import Scratch
from ..ending import Ending
from ..evaluation.evaluator import Evaluator
from ..evaluation.metrics import Outputs
from ..executor.loop import Schedule, Step
from ..executor.ops import OPS
from ..executor.runtime import Runtime, gather
from ..numerics.formats import narrow
from ..numerics.profiles import carries_rounding
from ..program.graph import Constant, Function, Node, Ref, Source
from .rounding import OVERFLOW, RoundingModel

#: Random output directions, each a backward pass, for each of so many samples.
DIRECTIONS, SAMPLES = 8, 2
#: The share of the time left that the model may take, where that is limited.
_SHARE = 0.25


def rounding_model_of(evaluator: Evaluator, seed: int) -> RoundingModel:
    """The model over an evaluator's first samples, in the last of its profiles.

    Raises
    ------
    Stop
        If the run ends before one direction is known.
    """
    engine = evaluator.engine
    samples = min(SAMPLES, engine.samples)
    with engine.aside():  # gradients need every value of a sample at once
        return rounding_model(
            engine.function,
            [engine.sample(i) for i in range(samples)],
            evaluator.references[:samples],
            engine.runtimes[-1],
            seed,
            DIRECTIONS,
            ending=engine.ending,
        )


def rounding_model(
    function: Function,
    samples: Sequence[Mapping[str, Tensor]],
    references: Sequence[Outputs],
    runtime: Runtime,
    seed: int,
    directions: int,
    ending: Ending | None = None,
) -> RoundingModel:
    """Build the model from one forward and ``directions`` backward passes for each sample.

    ``runtime`` gives the numerics profile and the weights. Ops inside loops and branches are not
    seen one by one and get no effect. Where time is limited, fewer directions and samples do: the
    order of ops needs less of them than the sizes of their effects.

    Raises
    ------
    Stop
        If the run ends before one direction is known.
    """
    ending = ending or Ending()
    finish = ending.after(_SHARE)
    totals: dict[tuple[frozenset[int], int], float] = {}
    generator = torch.Generator().manual_seed(seed)
    seen = 0
    for sample, reference in zip(samples, references, strict=True):
        if seen and finish():
            break
        recorder = _Recording(function, runtime, ending)
        outputs = recorder.forward(sample)
        wanted = dict(zip(function.outputs, reference.values(), strict=True))
        scaled = _scaled(outputs, wanted)
        seen += 1
        if not scaled:
            continue
        for k in range(directions):
            if k and finish():
                break
            grads = [torch.randn(o.shape, generator=generator).to(o.device) * s for o, s in scaled]
            torch.autograd.backward([o for o, _ in scaled], grads, retain_graph=k + 1 < directions)
            recorder.collect()
        for key, value in recorder.effects().items():
            totals[key] = totals.get(key, 0.0) + value
    model = RoundingModel()
    for (trigger, _), effect in totals.items():
        model.add(trigger, effect / seen)
    return model


def _scaled(outputs: Mapping[str, Tensor], reference: Outputs) -> list[tuple[Tensor, float]]:
    """Differentiable outputs with one over the norm of what they should be."""
    pairs = []
    for name, out in outputs.items():
        wanted = reference[name]
        if out.requires_grad and out.is_floating_point():
            finite = wanted[torch.isfinite(wanted)].double()
            size = float(torch.linalg.vector_norm(finite)) or 1.0
            pairs.append((out, 1.0 / size))
    return pairs


class _Recording:
    """One FP32 forward with a hook on every value where it is read.

    What rounding changes in a value is kept in bfloat16: half the memory of the value, and the
    eight bits are plenty for an estimate.
    """

    def __init__(self, function: Function, runtime: Runtime, ending: Ending) -> None:
        self._function = function
        self._runtime = runtime
        self._ending = ending
        self._scratch = Scratch()
        self._directions = 0
        self._triggers: list[frozenset[int]] = []
        self._rounding: dict[int, Tensor] = {}  # slot -> what rounding changes in its value
        self._fixed: dict[int, float] = {}
        self._current: dict[int, float] = {}
        self._sums: dict[int, float] = {}

    def forward(self, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
        env: dict[int, Any] = {}
        given = {**self._function.inputs, **self._function.states}
        for name, slot in given.items():
            value = sample[name].to(self._runtime.device)
            if value.is_floating_point():
                value = value.float()
            env[slot] = _differentiable(value)
        origins: dict[int, frozenset[int]] = {}
        schedule = Schedule.of_function(self._function)
        schedule.run(env, lambda step, values: self._run(step, values, origins))
        outputs = {}
        for name, source in self._function.outputs.items():
            if isinstance(source, Ref):
                value = env[source.slot]
                if isinstance(value, Tensor):
                    trigger = origins.get(source.slot, frozenset())
                    outputs[name] = self._read(value, trigger, source.slot)
        return outputs

    def _run(
        self, step: Step, env: Mapping[int, Any], origins: dict[int, frozenset[int]]
    ) -> Sequence[Any]:
        self._ending.check()
        node = step.node
        own = frozenset() if node.candidate is None else frozenset({node.candidate})
        op = OPS.get(node.op_type)
        if node.blocks or op is None:
            with torch.no_grad():
                return self._runtime.run(node, env)
        moves = carries_rounding(node.op_type)
        narrowed = node.fp16.inputs if node.fp16 is not None else {}
        rounded: dict[str, Any] = {}  # constants as FP16 has them

        def tensor(name: str, source: Source) -> Any:
            changed = narrowed.get(name)
            if isinstance(source, list):
                forms = changed if isinstance(changed, list) else [None] * len(source)
                return [
                    self._argument(s, c, env, origins, own, moves)
                    for s, c in zip(source, forms, strict=True)
                ]
            if isinstance(source, Constant) and isinstance(changed, Constant):
                rounded[name] = changed
            return self._argument(source, changed, env, origins, own, moves)

        arguments = gather(
            node.fp32, op, tensor, lambda _, source: self._runtime.value(source, env)
        )
        out = op.function(**arguments)
        results = tuple(map(_differentiable, out if isinstance(out, tuple) else (out,)))
        if own and not moves:
            results = self._constants(node, arguments, rounded, results, own)
        passed = own
        if moves:
            read = (s for s in node.fp32.inputs.values() if isinstance(s, Ref))
            passed = own.union(*(origins.get(s.slot, frozenset()) for s in read))
        origins.update(dict.fromkeys(node.outputs, passed))
        if self._runtime.profile.treats(node.op_type) and own:
            results = self._inner(node, env, results, own)
        return results

    def _argument(
        self,
        source: Source,
        changed: Source,
        env: Mapping[int, Any],
        origins: Mapping[int, frozenset[int]],
        own: frozenset[int],
        moves: bool,
    ) -> Any:
        value = self._runtime.source(source, env)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        value = value.float()
        # What a move reads is a source where its result is read.
        if not isinstance(source, Ref) or moves:
            return value
        trigger = origins.get(source.slot, frozenset())
        if isinstance(changed, Ref) and changed.narrow:
            trigger = trigger | own
        return self._read(value, trigger, source.slot)

    def _constants(
        self,
        node: Node,
        arguments: Mapping[str, Any],
        rounded: Mapping[str, Constant],
        results: tuple[Any, ...],
        own: frozenset[int],
    ) -> tuple[Any, ...]:
        """Watch what rounding an op's constants changes in its results.

        The change is taken where it shows, in the result: gradients for the weights themselves
        would cost as much again as all the rest.
        """
        forms = {name: self._runtime.source(constant, {}) for name, constant in rounded.items()}
        changes = [
            isinstance(form, Tensor) and form.is_floating_point() and bool((form != value).any())
            for form, value in ((f, arguments[name]) for name, f in forms.items())
        ]
        if not any(changes):
            return results
        with torch.no_grad():
            plain = {k: _detached(v) for k, v in arguments.items()}
            plain.update({k: v.float() for k, v in forms.items() if isinstance(v, Tensor)})
            out = OPS[node.op_type].function(**plain)
        moved = out if isinstance(out, tuple) else (out,)
        watched = []
        for exact, other in zip(results, moved, strict=True):
            if isinstance(exact, Tensor) and exact.requires_grad and exact.is_floating_point():
                change = other - exact.detach()
                watched.append(self._watch(exact.view(exact.shape), own, change))
            else:
                watched.append(exact)
        return tuple(watched)

    def _read(self, value: Tensor, trigger: frozenset[int], slot: int) -> Tensor:
        if not trigger or not value.requires_grad or not value.is_floating_point():
            return value
        if slot not in self._rounding:
            self._rounding[slot] = self._change(value.detach())
        return self._watch(value.view(value.shape), trigger, self._rounding[slot], slot)

    def _change(self, value: Tensor) -> Tensor:
        """What rounding to FP16 changes, in memory that the next call uses again."""
        return self._scratch.copied(narrow(value)).sub_(value)

    def _watch(
        self, value: Tensor, trigger: frozenset[int], change: Tensor, slot: int | None = None
    ) -> Tensor:
        index = len(self._triggers)
        self._triggers.append(trigger)
        if change.dtype is not torch.bfloat16:
            if not _finite(change):
                change = torch.full((1,), math.inf)
            change = change.to(torch.bfloat16)
            if slot is not None:
                self._rounding[slot] = change
        if change.numel() == 1 and not math.isfinite(float(change)):
            self._fixed[index] = OVERFLOW
            return value

        def hook(grad: Tensor) -> Tensor | None:
            self._ending.check()
            moved = float(torch.dot(grad.reshape(-1), change.reshape(-1).float()))
            clean = None
            if not math.isfinite(moved):
                clean = torch.nan_to_num(grad, 0.0, 0.0, 0.0)
                moved = float(torch.dot(clean.reshape(-1), change.reshape(-1).float()))
            self._current[index] = self._current.get(index, 0.0) + moved
            return clean

        value.register_hook(hook)
        return value

    def _inner(
        self, node: Node, env: Mapping[int, Any], results: tuple[Any, ...], own: frozenset[int]
    ) -> tuple[Any, ...]:
        """The results, watched for what the profile does inside an op, beyond rounding."""
        with torch.no_grad():
            got = self._runtime.run(node, env, frozenset())
        watched = []
        for exact, result in zip(results, got, strict=True):
            if isinstance(exact, Tensor) and exact.is_floating_point() and exact.requires_grad:
                change = result.float() - exact.detach()
                watched.append(self._watch(exact.view(exact.shape), own, change))
            else:
                watched.append(exact)
        return tuple(watched)

    def collect(self) -> None:
        """Take in one backward pass."""
        self._directions += 1
        for index, value in self._current.items():
            self._sums[index] = self._sums.get(index, 0.0) + value * value
        self._current.clear()

    def effects(self) -> dict[tuple[frozenset[int], int], float]:
        """Trigger and place of each source -> mean squared effect."""
        out = {}
        for index, trigger in enumerate(self._triggers):
            effect = self._fixed.get(index, self._sums.get(index, 0.0) / self._directions)
            out[(trigger, index)] = effect if math.isfinite(effect) else OVERFLOW
        return out


def _differentiable(value: Any) -> Any:
    """A leaf where nothing before it has a gradient: an embedding of token ids, for instance."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.requires_grad:
        return value
    leaf = value.detach().requires_grad_()
    leaf.register_post_accumulate_grad_hook(_forget)
    return leaf.view(leaf.shape)


def _finite(value: Tensor) -> bool:
    """Whether all of a tensor is finite, without another tensor of its size."""
    if not value.numel():
        return True
    low, high = torch.aminmax(value)
    return math.isfinite(float(low)) and math.isfinite(float(high))


def _forget(leaf: Tensor) -> None:
    leaf.grad = None


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return [_detached(v) for v in value] if isinstance(value, list) else value
