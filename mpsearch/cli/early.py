"""What is wrong with what was typed, said before torch and coremltools are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import options as choices
from ..errors import InputError
from ..files import MODEL_FILE, SAMPLE_FILE, regular

#: What others call an option, and what it is called here.
CALLED = {
    "--calibration-data": "--inputs",
    "--data": "--inputs",
    "--device-target": "--target",
    "--error": "--budget",
    "--log-level": "mpsearch --log-level LEVEL before the command",
    "--minimum-deployment-target": "--target",
    "--minimum_deployment_target": "--target",
    "--output": "--out",
    "--output-dir": "--out",
    "--quantize": "--weight-dtype",
    "--samples": "--inputs or --random",
    "--threshold": "--budget",
    "--tolerance": "--budget",
    "--tol": "--budget",
}
#: How the names of model files end.
MODELS = (".pt", ".pth", ".pt2", ".ts", ".mlpackage", ".mlmodel")


def check(
    model: str,
    options: Mapping[str, Any],
    budget: float | None = None,
    metric: str | None = None,
) -> None:
    """Check what can be checked without the model.

    ``options`` are the others that were typed, by their Python names.

    Raises
    ------
    InputError
        If a file is missing, a name is not known, or a value is out of bounds.
    """
    if metric is not None and ":" not in metric and metric not in choices.METRICS:
        raise InputError(choices.unknown_metric(metric))
    if budget is not None:
        choices.budget(budget, metric is not None and (":" in metric or metric in choices.IN_DB))
    for name in ("keep_fp32", "keep_fp16"):
        for pattern in options.get(name, ()):
            choices.pin(pattern, f"--{name.replace('_', '-')}")
    config = options.get("config")
    if config is not None and Path(config).is_file() and Path(config).suffix in MODELS:
        raise InputError(
            f"{config} is a model; give the folder that optimize wrote first, then the model"
        )
    if ":" not in model and not Path(model).is_dir():
        regular(model, MODEL_FILE)
    inputs, random = options["inputs"], options["random_"]
    if random is not None:
        choices.count(random, "--random")
    if inputs is not None and random is not None:
        raise InputError("--inputs gives the data, --random draws it; give one of them")
    if inputs is None and options["targets"] is not None:
        raise InputError("--targets goes with --inputs; random samples have none")
    if inputs is not None and ":" not in inputs:
        regular(inputs, SAMPLE_FILE)
