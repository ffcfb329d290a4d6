"""Why an op breaks in FP16: the one loss without which the error goes.

Rounding to FP16 loses three things: digits, what is too large, and what is too small; and it loses
them in an op's inputs, in its constants, or in its result. A verdict is found by undoing: the op is
run alone in FP16 with one of these losses left out, its result is carried through the rest of the
model in FP32, and the loss without which the error goes is the cause.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..evaluation.incremental import Incremental
from ..evaluation.metrics import Metric, Outputs
from ..executor.ops import OPS
from ..executor.runtime import gather
from ..numerics.formats import FP16, narrow, rounded
from ..numerics.steps import inner_peak
from ..program.graph import Constant, Node, Ref, Source
from ..program.precision import Precision
from ..search.criterion import amplitude

#: The verdicts, the worst first.
VERDICTS = (
    "overflow",
    "underflow",
    "constant",
    "cancellation",
    "accumulation",
    "amplified",
    "fine",
)
#: Harm, where no budget says what it is: four times FP16's own rounding.
HARMFUL = 2.0**-9
#: Without its cause, an error falls to this share of itself, or below what counts as harm.
_GONE = 0.25
#: A result this much smaller than what it was made from has lost its leading digits.
_CANCELLED = 0.1
_SUMS = ("cumsum", "reduce_", "matmul", "linear", "conv", "einsum", "lstm", "gru", "rnn")
#: How many samples, those with the largest error, a verdict rests on.
_SAMPLES = 1


@dataclass(frozen=True, slots=True)
class Losses:
    """Which of FP16's losses an op suffers, and where."""

    inputs: bool = True
    constants: bool = True
    outputs: bool = True
    digits: bool = True
    overflow: bool = True
    underflow: bool = True

    def apply(self, value: Tensor) -> Tensor:
        """``value`` with these losses."""
        return rounded(value, self.digits, self.overflow, self.underflow)

    @property
    def whole(self) -> bool:
        """Whether FP16 loses all that it does."""
        return self.digits and self.overflow and self.underflow


@dataclass(frozen=True, slots=True)
class Judge:
    """From what error on an op does harm.

    Attributes
    ----------
    name
        The metric of the errors. Those in dB are amplitudes here, 10^(-dB / 20).
    error
        The error of outputs against those of all-FP32, which come first; NaN and infinity count as
        infinite.
    harmful
        The least error that does harm.
    relative
        Whether an error of 1 means that all is wrong.
    """

    name: str
    error: Callable[[Outputs, Outputs], float]
    harmful: float
    relative: bool = True


def judge(metric: Metric, limit: float | None = None) -> Judge:
    """Errors as a metric measures them, harmful beyond its limit.

    By relative L2 without a limit, and for metrics of all samples together.
    """
    if limit is None or metric.combine != "max" or metric.name == "rel_l2":
        own = limit is not None and metric.name == "rel_l2"
        return Judge("rel_l2", relative_l2, limit if own and limit is not None else HARMFUL)

    def error(exact: Outputs, outputs: Outputs) -> float:
        return amplitude(metric.whole([exact], [outputs], []), limit)

    return Judge(metric.name, error, amplitude(limit, limit), metric.larger_is_better)


def relative_l2(exact: Outputs, outputs: Outputs) -> float:
    """The largest relative L2 error of an output; of integers the share that differs."""
    worst = 0.0
    for name, wanted in exact.items():
        if wanted.is_floating_point():
            size = float(torch.linalg.vector_norm(wanted.double())) or 1.0
            off = float(torch.linalg.vector_norm(outputs[name].double() - wanted.double()))
            worst = max(worst, off / size if math.isfinite(off) else math.inf)
        elif not torch.equal(wanted, outputs[name]):
            worst = max(worst, float((wanted != outputs[name]).double().mean()))
    return worst


def diagnosable(engine: Incremental) -> dict[int, Node]:
    """The ops for which a verdict can be found, by candidate: those without blocks of their own."""
    return {n.candidate: n for n in engine.nodes if n.candidate is not None and not n.blocks}


class Diagnosis:
    """Finds verdicts for single ops of the outer block.

    Parameters
    ----------
    engine
        Over the samples to look at.
    judge
        Measures errors, and says which do harm.
    samples
        Those of the engine's to look at; default: all.
    """

    def __init__(
        self, engine: Incremental, judge: Judge, samples: Sequence[int] | None = None
    ) -> None:
        self._engine = engine
        self._samples = range(engine.samples) if samples is None else sorted(samples)
        self._judge = judge
        every = Precision.all_fp32(engine.candidates)
        self._exact = {s: engine.outputs(every, s) for s in self._samples}
        self._makers = {slot: n for n in engine.nodes for slot in n.outputs}
        #: Of the op that is looked at: what it may compute, and the error that it then makes.
        self._known: dict[int, list[tuple[tuple[Any, ...], float]]] = {}
        #: What it takes, by sample.
        self._taken: dict[int, dict[int, Any]] = {}

    def verdict(self, node: Node) -> tuple[str, float]:
        """The verdict on an op, and its error alone in FP16 (the worst sample and profile)."""
        self._known, self._taken = {}, {}
        profiles = range(self._engine.profiles)
        errors = {(s, p): self._native(node, s, p) for s in self._samples for p in profiles}
        worst = max(errors.values())
        if worst <= self._judge.harmful or node.candidate is None:
            return "fine", worst
        ranked = sorted(errors, key=lambda key: (-errors[key], key))
        sample, profile = ranked[0]
        others = [s for s, p in ranked if p == profile][:_SAMPLES]
        if self._run(node, others, Losses()) <= self._little(worst):
            return self._inner(node, sample), worst
        return self._undo(node, others, worst), worst

    def _undo(self, node: Node, samples: Sequence[int], full: float) -> str:
        def gone(losses: Losses) -> bool:
            left = self._run(node, samples, losses)
            # Where digits are lost as well, an error need only become finite.
            return left <= self._little(full) or (math.isinf(full) and math.isfinite(left))

        everything = Losses()
        if gone(replace(everything, constants=False)):
            return "constant"
        if gone(replace(everything, overflow=False)):
            return "constant" if self._constant_peak(node) > FP16.largest else "overflow"
        if gone(replace(everything, underflow=False)):
            return "underflow"
        # Before the digits, since where nothing overflows this was run already.
        range_ = gone(replace(everything, overflow=False, underflow=False))
        if range_ and not gone(replace(everything, digits=False)):
            return "overflow"
        return self._digits(node, samples[0])

    def _little(self, full: float) -> float:
        """The largest error that counts as gone, given what it was."""
        most = 1.0 if self._judge.relative or math.isinf(full) else full
        return max(self._judge.harmful, _GONE * min(full, most))

    def _digits(self, node: Node, sample: int) -> str:
        """Digits are lost: by subtraction, along a sum, or harmlessly here and not later."""
        taken = self._takes(node, sample)
        sizes = {s: _size(v) for s, v in taken.items() if isinstance(v, Tensor)}
        results = self._exact_results(node, taken)
        result = max((_size(r) for r in results if isinstance(r, Tensor)), default=0.0)
        largest = max(sizes.values(), default=0.0)
        if node.op_type in ("sub", "add") and result < _CANCELLED * largest:
            return "cancellation"
        if node.op_type.startswith(_SUMS):
            return "accumulation"
        if node.op_type == "add" and len(sizes) == 2:
            (big, large), (_, small) = sorted(sizes.items(), key=lambda kv: -kv[1])
            maker = self._makers.get(big)
            chained = maker is not None and maker.op_type == "add"
            if chained and small < _CANCELLED * large:
                return "accumulation"
            # A mask value so large that what it is added to loses its digits.
            made = 0.0 if maker is None else self._constant_peak(maker)
            if small < _CANCELLED * large and made >= large:
                return "constant"
        return "amplified"

    def _constant_peak(self, node: Node) -> float:
        """The largest magnitude among an op's constants, weights left aside."""
        values = [
            self._engine.runtimes[0].source(source, {})
            for name, source in node.fp32.inputs.items()
            if isinstance(source, Constant) and name in OPS[node.op_type].tensors
        ]
        return max(
            (_peak(v) for v in values if isinstance(v, Tensor) and v.numel() == 1), default=0
        )

    def _inner(self, node: Node, sample: int) -> str:
        """What a profile does inside the op, beyond rounding what goes in and comes out."""
        arguments = self._arguments(node, self._takes(node, sample), None)
        limit = FP16.largest / 2  # the Neural Engine's own
        peak = float(inner_peak(OPS[node.op_type].function, arguments))
        results = self._exact_results(node, self._takes(node, sample))
        peak = max([peak, *(_peak(r) for r in results if isinstance(r, Tensor))])
        return "overflow" if peak >= limit or not math.isfinite(peak) else "accumulation"

    # -- running -------------------------------------------------------------------------------

    def _takes(self, node: Node, sample: int) -> dict[int, Any]:
        if sample not in self._taken:
            self._taken[sample] = self._engine.taken(sample, node)
        return self._taken[sample]

    def _native(self, node: Node, sample: int, profile: int) -> float:
        """The error when the op alone is FP16, in a numerics profile."""
        runtime = self._engine.runtimes[profile]
        with torch.inference_mode():
            taken = self._takes(node, sample)
            results = runtime.run(node, taken, frozenset())
        return self._error(node, sample, results)

    def _run(self, node: Node, samples: Sequence[int], losses: Losses) -> float:
        """The worst error when the op alone suffers some of FP16's losses."""
        worst = 0.0
        for sample in samples:
            with torch.inference_mode():
                taken = self._takes(node, sample)
                arguments = self._arguments(node, taken, losses)
                out = OPS[node.op_type].function(**arguments)
                results = out if isinstance(out, tuple) else (out,)
                if losses.outputs:
                    results = tuple(_each(r, losses) for r in results)
            worst = max(worst, self._error(node, sample, results))
        return worst

    def _exact_results(self, node: Node, taken: dict[int, Any]) -> tuple[Any, ...]:
        with torch.inference_mode():
            out = OPS[node.op_type].function(**self._arguments(node, taken, None))
        return out if isinstance(out, tuple) else (out,)

    def _error(self, node: Node, sample: int, results: tuple[Any, ...]) -> float:
        """The error of the outputs against all-FP32, where the op gives these.

        Most losses change nothing on their own: what was seen before is not run again.
        """
        known = self._known.setdefault(sample, [])
        for seen, error in known:
            if all(map(_same, seen, results)):
                return error
        known.append((results, self._measured(node, sample, results)))
        return known[-1][1]

    def _measured(self, node: Node, sample: int, results: tuple[Any, ...]) -> float:
        outputs = self._engine.replaced(sample, node, results)
        return self._judge.error(self._exact[sample], outputs)

    def _arguments(
        self, node: Node, taken: dict[int, Any], losses: Losses | None
    ) -> dict[str, Any]:
        """What the op takes, in FP32 storage, with ``losses`` where FP16 would round."""
        runtime = self._engine.runtimes[0]
        narrowed = node.fp16.inputs if node.fp16 is not None else {}

        def one(source: Source, changed: Source) -> Any:
            value = runtime.source(source, taken)
            if isinstance(source, list):
                forms = changed if isinstance(changed, list) else [None] * len(source)
                return [one(s, c) for s, c in zip(source, forms, strict=True)]
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            value = value.float()
            if losses is None:
                return value
            if isinstance(changed, Ref) and changed.narrow and losses.inputs:
                return losses.apply(value)
            if isinstance(changed, Constant) and changed is not source and losses.constants:
                form = runtime.source(changed, {})
                return narrow(form).float() if losses.whole else losses.apply(value)
            return value

        def python(name: str, source: Source) -> Any:
            cast = losses is not None and losses.constants and losses.whole
            form = narrowed[name] if cast and name in narrowed else source
            return runtime.value(form, taken)

        def tensor(name: str, source: Source) -> Any:
            return one(source, narrowed.get(name))

        return gather(node.fp32, OPS[node.op_type], tensor, python)


def _each(value: Any, losses: Losses) -> Any:
    if isinstance(value, Tensor):
        return losses.apply(value) if value.is_floating_point() else value
    return [_each(v, losses) for v in value] if isinstance(value, list) else value


def _same(a: Any, b: Any) -> bool:
    """Whether two results are equal, whatever dtype they are stored in."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a == b).all())
    return a is b


def _size(value: Tensor) -> float:
    """Root mean square."""
    if not value.is_floating_point() or not value.numel():
        return 0.0
    return float(value.double().square().mean().sqrt())


def _peak(value: Tensor) -> float:
    return float(value.abs().max()) if value.is_floating_point() and value.numel() else 0.0
