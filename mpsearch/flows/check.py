"""Checking a stored config against a model, for instance after retraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import options
from ..ending import Ending
from ..evaluation import coverage
from ..evaluation.evaluator import Evaluator
from ..explain.diagnosis import Diagnosis, diagnosable, judge
from ..numerics.choosing import Numerics
from ..options import Execution
from ..package import config as configs
from ..package.config import Config, KeptOp
from ..package.matching import match
from ..program.precision import Precision
from ..results.check import CheckResult
from ..results.plain import in_metric, number
from ..scaling.scaled import with_changes
from ..search.rounding_hooks import rounding_model_of
from ..source.prepare import Prepared, check_device, prepare
from .apply import as_config
from .isolation import isolated
from .job import measured

#: So many ops are run alone to say which break a budget.
_TRIED = 32


@isolated
def check(
    config: Config | str | Path,
    model: Any,
    data: Any,
    *,
    targets: Any = None,
    budget: float | None = None,
    metric: Any = None,
    numerics: Numerics | None = None,
    execution: Execution = Execution(),
) -> CheckResult:
    """Measure whether a stored config still holds.

    Parameters
    ----------
    config, model
        As for :func:`mpsearch.apply`.
    data, targets
        As for :func:`mpsearch.optimize`; all samples are used, and count as such that the search
        never saw: give others than those.
    budget, metric, numerics
        Default: the config's.
    execution
        Where to run.

    Raises
    ------
    InputError
        If something given cannot be used.
    """
    config = as_config(config)
    options.group(execution, Execution, "execution")
    check_device(execution.device)
    measure = configs.metric(config, metric)
    prepared = prepare(
        model,
        data,
        measure,
        config.numerics if numerics is None else numerics,
        config.conversion,
        0.0,
        targets,
    )
    if config.rewrites or config.scales:
        prepared = with_changes(prepared, config.rewrites, config.scales)
    larger = prepared.metric.larger_is_better
    limit = options.budget(config.budget if budget is None else budget, larger)
    matched = match(config, prepared.ops)
    found, missing = matched.found, matched.missing
    evaluator = prepared.evaluator(execution.device, execution.cache_bytes)
    count, show = len(prepared.ops), prepared.metric.loss_of
    wanted, bound = config.constraints, show(limit)
    precision, samples = Precision.of(found, count), len(prepared.calibration.samples)
    broken: int | None = None
    covered: float | None = None
    if evaluator.by_sample:
        losses = [e.loss for e in evaluator.evaluate_together(precision, range(samples))]
        loss = max(losses)
        broken = sum(one > bound for one in losses)
        if not prepared.calibration.noise:
            covered = coverage.lower_bound(broken, samples, wanted.confidence)
    else:
        loss = evaluator.loss(precision)
    outgrown: list[str] = []
    if config.scales:
        _, range_ = measured(prepared, evaluator, Ending())
        outgrown = [prepared.ops[i].name for i in sorted(range_.refused - found)]
    enough = covered is not None and covered >= wanted.coverage
    over = loss > bound and not enough
    fp32_loss = evaluator.loss(Precision.all_fp32(count))
    return CheckResult(
        holds=not (missing or over),
        error=show(loss),
        error_fp16=show(evaluator.loss(Precision.all_fp16(count))),
        error_fp32=show(fp32_loss),
        budget=limit,
        metric=prepared.metric.name,
        samples=samples,
        broken=broken,
        coverage=covered,
        confidence=None if covered is None else wanted.confidence,
        unmatched=missing,
        moved=matched.moved,
        outgrown=tuple(outgrown),
        fp32_holds=fp32_loss <= bound,
        broken_by=_broken_by(prepared, evaluator, precision, limit)
        if over and fp32_loss <= bound and (found or not missing)
        else (),
        same_model=prepared.fingerprint == config.fingerprint,
    )


def _broken_by(
    prepared: Prepared, evaluator: Evaluator, precision: Precision, limit: float
) -> tuple[KeptOp, ...]:
    """The ops in FP16 that do harm alone, the worst first, each with why FP16 breaks it.

    Those for which the model of rounding predicts most are run alone.
    """
    engine, model = evaluator.engine, rounding_model_of(evaluator, 0)
    harm = {i: model.harm((i,), ()) for i in precision.fp16}
    nodes = diagnosable(engine)
    worst = sorted((i for i in harm if harm[i] > 0), key=lambda i: (-harm[i], i))[:_TRIED]
    errors = judge(prepared.metric, prepared.metric.loss_of(limit))
    diagnosis = Diagnosis(engine, errors)
    found = []
    for op in (prepared.ops[i] for i in worst if i in nodes):
        verdict, error = diagnosis.verdict(nodes[op.index])
        if verdict != "fine":
            alone = number(in_metric(error, errors.name))
            found.append((error, KeptOp(op.name, op.type, op.layer, alone, op.line, verdict)))
    found.sort(key=lambda pair: -pair[0])
    return tuple(op for _, op in found)
