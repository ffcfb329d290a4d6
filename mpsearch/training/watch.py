"""What training is asked every so often, whatever runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from ..flows.apply import as_config
from ..flows.check import check
from ..flows.optimize import optimize
from ..options import Execution
from ..package.config import Config
from ..result import Result
from ..results.check import CheckResult


class Watch:
    """Checks a stored choice on a model in training, and searches again at the end if need be.

    Nothing of the training is touched: the model is copied, its modes, gradients and device, and
    the random state stay as they are.

    Parameters
    ----------
    data
        Samples, as :func:`mpsearch.optimize` takes them.
    config
        A :class:`mpsearch.Config`, or the path of a ``precision.json`` or of its folder; None:
        there is nothing to check yet, and the search at the end finds one.
    budget
        The largest error allowed; default: the config's.
    out
        A folder for what the search at the end finds.
    metric, targets
        As for :func:`mpsearch.optimize`.
    options
        More of what :func:`mpsearch.optimize` takes, for the search at the end.

    Attributes
    ----------
    checked
        What the last check said; None before there was one.
    result
        What the search at the end found; None where the choice held to the end.

    Raises
    ------
    InputError
        If there is neither a config nor a budget, or the config cannot be read.
    """

    def __init__(
        self,
        data: Any,
        config: Config | str | Path | None = None,
        budget: float | None = None,
        *,
        out: str | Path | None = None,
        metric: Any = None,
        targets: Any = None,
        **options: Any,
    ) -> None:
        if config is None and budget is None:
            raise InputError("give a config to check, or a budget for the search at the end")
        self.checked: CheckResult | None = None
        self.result: Result | None = None
        self._data = data
        self._config = None if config is None else as_config(config)
        self._budget = budget
        self._out = out
        self._metric = metric
        self._targets = targets
        self._options = options

    def look(self, model: Any) -> dict[str, float]:
        """Check the model as it is now; what there is to log, by name. Empty without a config."""
        if self._config is None:
            return {}
        self.checked = check(
            self._config,
            model,
            self._data,
            targets=self._targets,
            budget=self._budget,
            metric=self._metric,
            execution=self._options.get("execution", Execution()),
        )
        found = {
            "mpsearch/error": self.checked.error,
            "mpsearch/budget": self.checked.budget,
            "mpsearch/holds": float(self.checked.holds),
        }
        if self.checked.coverage is not None:
            found["mpsearch/coverage"] = self.checked.coverage
        return found

    def finish(self, model: Any) -> dict[str, float]:
        """Check once more, and search where the choice does not hold; what there is to log."""
        found = self.look(model)
        if self.checked is not None and self.checked.holds:
            return found
        config = self._config
        metric = self._metric or ("rel_l2" if config is None else config.metric)
        budget = self._budget if config is None or self._budget is not None else config.budget
        assert budget is not None
        self.result = optimize(
            model, self._data, budget, metric, targets=self._targets, **self._options
        )
        if self._out is not None:
            self.result.save(self._out)
        return found | {"mpsearch/fp32_ops": float(len(self.result.kept))}
