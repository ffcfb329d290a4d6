"""Error measures between a reference and what was computed.

A measure is turned into a *loss*, smaller is better, which is all that the search sees:
``error`` itself, or its negative for measures in dB, where larger is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .. import options
from ..errors import InputError
from ..usercode import guarded, import_callable

Outputs = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Metric:
    """An error measure.

    Attributes
    ----------
    name
        As given by the user.
    parts
        ``parts(reference, outputs, target)`` of one sample: (numerator, denominator).
    combine
        How samples combine: ``max`` of the numerators, or ``share``, the sum of the numerators
        over the sum of the denominators.
    larger_is_better
        Whether the reported value is the negative of the loss.
    score
        A task metric over all samples, ``score(outputs, targets)``; the loss is how far it falls
        below the reference's score. ``parts`` is then not used.
    """

    name: str
    parts: Callable[[Outputs, Outputs], tuple[float, float]] | None
    combine: Literal["max", "share", "task"] = "max"
    larger_is_better: bool = False
    score: Callable[[Sequence[Outputs], Sequence[Any]], float] | None = None

    def loss_of(self, value: float) -> float:
        """The loss for a reported value (a budget or an error), and the reverse."""
        return -value if self.larger_is_better else value

    def whole(
        self,
        references: Sequence[Outputs],
        outputs: Iterable[Outputs],
        targets: Sequence[Any],
        cut: bool = False,
    ) -> float:
        """The loss over all samples together; with ``cut`` over the first, if outputs are fewer.

        But for a task metric, no more than one sample's outputs are held.
        """
        if self.score is not None:
            found = list(outputs)
            if cut:
                references, targets = references[: len(found)], targets[: len(found)]
            drop = self.score(references, targets) - self.score(found, targets)
            return max(0.0, drop) if not math.isnan(drop) else math.inf
        assert self.parts is not None
        pairs = zip(outputs, references, strict=not cut)
        return self.combined([self.parts(r, o) for o, r in pairs])

    def combined(self, pairs: Sequence[tuple[float, float]]) -> float:
        """The loss of samples whose parts are given."""
        if self.combine == "max":
            return max((n for n, _ in pairs), default=-math.inf)
        return sum(n for n, _ in pairs) / max(sum(d for _, d in pairs), 1.0)


def _spoilt(reference: Tensor, output: Tensor) -> bool:
    """NaN or infinity where the reference has none."""
    return bool((~torch.isfinite(output) & torch.isfinite(reference)).any())


def _worst(measure: Callable[[Tensor, Tensor], float]) -> Callable[..., tuple[float, float]]:
    """The worst of the outputs by ``measure``, which sees finite FP64 values."""

    def parts(references: Outputs, outputs: Outputs) -> tuple[float, float]:
        worst = -math.inf
        for name, reference in references.items():
            output = outputs[name]
            if output.shape != reference.shape:
                output = output.reshape(reference.shape)
            r, o = reference.double(), output.double()
            finite = torch.isfinite(reference).all() & torch.isfinite(output).all()
            if not bool(finite):
                if _spoilt(r, o):
                    return math.inf, 1.0
                known = torch.isfinite(r)
                # Where the reference itself is not finite, the very same value is expected.
                if not torch.equal(r[~known].nan_to_num(), o[~known].nan_to_num()):
                    return math.inf, 1.0
                r, o = r[known], o[known]
            if not r.numel():  # nothing is left that differs
                r = o = torch.ones(1, dtype=torch.float64)
            value = measure(r, o)
            worst = max(worst, math.inf if math.isnan(value) else value)
        return worst, 1.0

    return parts


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def _rel_l2(r: Tensor, o: Tensor) -> float:
    difference, size = _norm(o - r), _norm(r)
    return difference / size if size else (math.inf if difference else 0.0)


def _max_abs(r: Tensor, o: Tensor) -> float:
    return float((o - r).abs().max()) if r.numel() else 0.0


def _mean_abs(r: Tensor, o: Tensor) -> float:
    return float((o - r).abs().mean()) if r.numel() else 0.0


def _cosine(r: Tensor, o: Tensor) -> float:
    sizes = _norm(r) * _norm(o)
    if not sizes:
        return 0.0 if _norm(r) == _norm(o) else 1.0
    return max(0.0, 1.0 - float(torch.dot(r.flatten(), o.flatten())) / sizes)


def _psnr(r: Tensor, o: Tensor) -> float:
    mse = float((o - r).square().mean())
    peak = float(r.abs().max())
    if not mse:
        return -math.inf
    return -10 * math.log10(peak * peak / mse) if peak else math.inf


def _snr(r: Tensor, o: Tensor) -> float:
    noise, signal = float((o - r).square().sum()), float(r.square().sum())
    if not noise:
        return -math.inf
    return -10 * math.log10(signal / noise) if signal else math.inf


def _kl(r: Tensor, o: Tensor) -> float:
    p = torch.log_softmax(r.reshape(-1, r.shape[-1]), -1)
    q = torch.log_softmax(o.reshape(-1, o.shape[-1]), -1)
    return max(0.0, float((p.exp() * (p - q)).sum(-1).mean()))


def _top1(references: Outputs, outputs: Outputs) -> tuple[float, float]:
    """Changed decisions (over the last axis) and decisions, of the first output."""
    name, reference = next(iter(references.items()))
    output = outputs[name].reshape(reference.shape)
    if _spoilt(reference, output):
        return float(reference[..., 0].numel()), float(reference[..., 0].numel())
    changed = reference.argmax(-1) != output.argmax(-1)
    return float(changed.sum()), float(changed.numel())


_ALL = (
    Metric("rel_l2", _worst(_rel_l2)),
    Metric("max_abs", _worst(_max_abs)),
    Metric("mean_abs", _worst(_mean_abs)),
    Metric("cosine", _worst(_cosine)),
    Metric("psnr", _worst(_psnr), larger_is_better=True),
    Metric("snr", _worst(_snr), larger_is_better=True),
    Metric("kl", _worst(_kl)),
    Metric("top1", _top1, combine="share"),
)
_NAMED = {metric.name: metric for metric in _ALL}

NAMES = options.METRICS
assert set(NAMES) == set(_NAMED), "METRICS in mpsearch/options.py does not name those of _ALL here"
assert set(options.IN_DB) == {metric.name for metric in _ALL if metric.larger_is_better}, (
    "IN_DB in mpsearch/options.py does not name those here of which more is better"
)


def resolve(metric: str | Callable[..., float], with_targets: bool) -> Metric:
    """The measure for a name, a callable, or ``package.module:callable``.

    Parameters
    ----------
    metric
        One of :data:`NAMES`, or a callable. Without targets it is called as
        ``f(reference, outputs)`` with dicts of arrays for one sample and gives an error, of which
        the worst over the samples counts; with targets as ``f(outputs, targets)`` with lists over
        all samples and gives a score, larger is better, whose drop is the error.
    with_targets
        Whether the data has targets.

    Raises
    ------
    InputError
        If the name is not known.
    """
    if not (isinstance(metric, str) or callable(metric)):
        raise InputError(f"metric is {metric!r}, expected one of {', '.join(NAMES)}, or a function")
    if isinstance(metric, str):
        if metric in _NAMED:
            return _NAMED[metric]
        if ":" not in metric:
            raise InputError(options.unknown_metric(metric))
        function, name = import_callable(metric, "metric"), metric
    else:
        function, name = metric, getattr(metric, "__name__", "custom")
    if with_targets:
        return Metric(name, None, "task", score=_task(function))
    return Metric(name, _custom(function))


def _arrays(values: Outputs) -> dict[str, Any]:
    # Copies: what a metric does to its arrays is its own affair. It is not to compute in FP16.
    wide = {k: v.float() if v.is_floating_point() else v for k, v in values.items()}
    return {k: v.detach().cpu().numpy().copy() for k, v in wide.items()}


def _task(function: Callable[..., float]) -> Callable[[Sequence[Outputs], Sequence[Any]], float]:
    def score(outputs: Sequence[Outputs], targets: Sequence[Any]) -> float:
        with guarded("the metric"):
            return float(function([_arrays(o) for o in outputs], targets))

    return score


def _custom(function: Callable[..., float]) -> Callable[[Outputs, Outputs], tuple[float, float]]:
    def parts(references: Outputs, outputs: Outputs) -> tuple[float, float]:
        if any(_spoilt(r, outputs[name]) for name, r in references.items()):
            return math.inf, 1.0
        with guarded("the metric"):
            value = float(function(_arrays(references), _arrays(outputs)))
        return (math.inf if math.isnan(value) else value), 1.0

    return parts
