"""The flow of ``mpsearch verify``: the written package, on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import options
from ..device.coreml import CoreML, Loaded
from ..evaluation.metrics import Metric, Outputs, resolve
from ..executor.predict import Executor
from ..numerics.choosing import Numerics, chosen
from ..package import config as configs
from ..package import emission
from ..program.packages import open_package
from ..result import PACKAGE
from ..results import rows
from ..results.plain import number
from ..results.verified import OpOnDevice, OutputSeen, Verified
from ..source.prepare import Prepared, as_data, prepare
from .isolation import isolated

Arrays = dict[str, np.ndarray]


@isolated
def verify(
    directory: str | Path,
    device: CoreML,
    data: Any,
    model: Any = None,
    *,
    targets: Any = None,
    metric: Any = None,
    numerics: Numerics | None = None,
    timed: bool = True,
) -> Verified:
    """Run the package of a result on a device, and compare it with what was promised.

    Parameters
    ----------
    directory
        What :func:`mpsearch.optimize` wrote.
    device
        Where to run.
    data, targets
        As for :func:`mpsearch.optimize`; all samples are used.
    model
        As for :func:`mpsearch.optimize`: what the package was made from. Without it the device is
        compared with mpsearch's executor alone.
    metric, numerics
        Default: the config's; of several profiles the first is simulated.
    timed
        Whether to measure how long it takes, and to find the ops at which it parts from FP32.

    Raises
    ------
    InputError
        If something given cannot be used, or Core ML fails.
    """
    folder = Path(directory)
    config = configs.read(folder)
    wanted = configs.metric(config, metric)
    package = open_package(folder / PACKAGE)
    profile, *_ = chosen(config.numerics if numerics is None else numerics)
    executor = Executor(package, profile)
    names = [feature.name for feature in package.get_spec().description.input]
    prepared = None
    if model is None:
        samples = [_arrays(sample, names) for sample in as_data(data, names, targets).samples]
        measure = resolve(wanted, False)
    else:
        prepared = prepare(model, data, wanted, "ieee", config.conversion, 0.0, targets)
        samples = [_arrays(sample, names) for sample in prepared.calibration.samples]
        measure = prepared.metric
    loaded = device.load(package)
    seen, simulated = [], []
    for sample in samples:
        seen.append(_tensors(loaded.predict(sample)))
        state = executor.make_state() if loaded.states else None
        simulated.append(_tensors(executor.predict(sample, state)))
    budget = options.budget(config.budget, measure.larger_is_better)
    found = _compared(prepared, measure, seen, simulated)
    loss = found.pop("loss")
    timing = loaded.timed(samples[0]) if timed else None
    return Verified(
        holds=None if loss is None else loss <= measure.loss_of(budget),
        promised=config.errors.get("error"),
        budget=budget,
        metric=measure.name,
        device=device.about,
        samples=len(samples),
        load_milliseconds=None if timing is None else timing.load,
        predict_milliseconds=None if timing is None else timing.predict,
        ops=() if timing is None else tuple(OpOnDevice(*op) for op in timing.ops),
        parted=_parted(prepared, loaded, samples[0], budget, measure) if timed else None,
        **found,
    )


def _compared(
    prepared: Prepared | None, measure: Metric, seen: list[Outputs], simulated: list[Outputs]
) -> dict[str, Any]:
    """The errors of a device and of the executor, and of each output."""
    references = None if prepared is None else _renamed(prepared.references, seen[0])
    targets = [] if prepared is None else prepared.calibration.targets
    loss = None if references is None else measure.whole(references, seen, targets)
    expected = None if references is None else measure.whole(references, simulated, targets)
    alone = measure.parts is not None and measure.combine == "max"
    rows = []
    for name in seen[0]:
        error = None
        if references is not None and alone:
            wanted = [{name: reference[name]} for reference in references]
            given = [{name: outputs[name]} for outputs in seen]
            error = number(measure.loss_of(measure.whole(wanted, given, [])))
        apart = max(_apart(o[name], s[name]) for o, s in zip(seen, simulated, strict=True))
        rows.append(OutputSeen(name, error, apart))
    return {
        "loss": loss,
        "error": None if loss is None else measure.loss_of(loss),
        "simulated": None if expected is None else measure.loss_of(expected),
        "outputs": tuple(rows),
    }


def _parted(
    prepared: Prepared | None, loaded: Loaded, sample: Arrays, budget: float, measure: Metric
) -> tuple[str, ...] | None:
    """Where the package parts from the same in FP32; None without the model, or with states."""
    if prepared is None or loaded.states:
        return None
    plain = emission.convert(prepared.precast, lambda _: False)
    most = rows.harmful(measure, budget)
    return loaded.parted(plain, sample, lambda a, b: _apart(_tensor(b), _tensor(a)) <= most)


def _apart(output: torch.Tensor, other: torch.Tensor) -> float:
    """Relative L2 distance; infinite where one is not finite and the other is."""
    a, b = output.double().reshape(-1), other.double().reshape(-1)
    if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
        return float("inf")
    finite = torch.isfinite(a)
    size = float(torch.linalg.vector_norm(b[finite])) or 1.0
    return float(torch.linalg.vector_norm((a - b)[finite])) / size


def _arrays(sample: Any, names: list[str]) -> Arrays:
    """A sample as Core ML takes it; a package may have renamed its inputs."""
    values = {name: value for name, value in sample.items() if name in names}
    if len(values) != len(names):
        values = dict(zip(names, sample.values(), strict=False))
    return {name: np.asarray(value) for name, value in values.items()}


def _tensor(value: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(value))


def _tensors(outputs: dict[str, Any]) -> Outputs:
    return {name: _tensor(value) for name, value in outputs.items()}


def _renamed(references: list[Outputs], like: Outputs) -> list[Outputs]:
    """References under the package's names, which may be others in the same order."""
    if set(references[0]) == set(like):
        return references
    return [dict(zip(like, r.values(), strict=True)) for r in references]
