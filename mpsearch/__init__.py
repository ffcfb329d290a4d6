"""Find the fewest ops that must stay FP32 for a model to work in Core ML's FP16.

>>> import mpsearch
>>> result = mpsearch.optimize(model, samples, budget=1e-3)  # doctest: +SKIP
>>> result.save("model-mixed")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis import Analysis, analyze
    from .api import optimize
    from .errors import (
        ExecutionError,
        InfeasibleError,
        InputError,
        MpsearchError,
        UnsupportedOpError,
        VerificationError,
    )
    from .front import Front, pareto
    from .predict import Executor
    from .result import Result
    from .stored import Report, apply, check

__all__ = [
    "Analysis",
    "ExecutionError",
    "Executor",
    "Front",
    "InfeasibleError",
    "InputError",
    "MpsearchError",
    "Report",
    "Result",
    "UnsupportedOpError",
    "VerificationError",
    "analyze",
    "apply",
    "check",
    "optimize",
    "pareto",
]

#: Where each public name is. They are imported when they are first asked for: torch and coremltools
#: take seconds to load, which nobody should wait for who asks for help or completes a word.
_HOMES = {
    "Analysis": "analysis",
    "Executor": "predict",
    "Front": "front",
    "Report": "stored",
    "Result": "result",
    "analyze": "analysis",
    "apply": "stored",
    "check": "stored",
    "optimize": "api",
    "pareto": "front",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__)
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
