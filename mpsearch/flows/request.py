"""What the user asks for, checked before any work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .. import options
from ..device.coreml import check_mac
from ..evaluation.metrics import Metric, resolve
from ..numerics.choosing import Numerics, chosen
from ..options import Constraints, Conversion, Execution, Limits
from ..search.registry import find_strategy
from ..search.search import Strategy
from ..search.storage import check_storage
from ..source.prepare import check_device
from .workers import check_workers


@dataclass(frozen=True)
class Request:
    """What the user asks for, checked before any work.

    Attributes are the arguments of :func:`mpsearch.optimize`.

    Raises
    ------
    InputError
        If something cannot be used.
    """

    budget: float
    metric: str | Callable[..., float]
    targets: Any
    heldout: float
    strategy: str | Strategy
    numerics: Numerics
    conversion: Conversion
    constraints: Constraints
    limits: Limits
    execution: Execution

    def __post_init__(self) -> None:
        options.group(self.conversion, Conversion, "conversion")
        options.group(self.constraints, Constraints, "constraints")
        options.group(self.limits, Limits, "limits")
        options.group(self.execution, Execution, "execution")
        options.number(self.heldout, "heldout")
        # A metric's name is looked up again with the data; a wrong budget fails before the work.
        self.limit(resolve(self.metric, False))
        self.strategy_function  # noqa: B018 - an unknown strategy fails before the work
        chosen(self.numerics)
        check_storage(self.execution.storage)
        check_device(self.execution.device)
        check_workers(self.execution)
        if self.execution.backend == "coreml":
            check_mac()

    def limit(self, metric: Metric) -> float:
        """The largest loss allowed."""
        return metric.loss_of(options.budget(self.budget, metric.larger_is_better))

    @property
    def tolerance(self) -> float:
        """The share of inputs that may break the budget."""
        return 1 - self.constraints.coverage

    @property
    def perturbs(self) -> bool:
        """Whether sets are to hold on other inputs than those given."""
        return self.constraints.objective == "unseen"

    @cached_property
    def strategy_function(self) -> Strategy:
        """The strategy itself."""
        return find_strategy(self.strategy)

    @property
    def strategy_name(self) -> str:
        """The strategy, for people and configs."""
        given = self.strategy
        return given if isinstance(given, str) else getattr(given, "__name__", "custom")
