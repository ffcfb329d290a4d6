"""Find the fewest ops that must stay FP32 for a model to work in Core ML's FP16.

>>> import mpsearch
>>> result = mpsearch.optimize(model, samples, budget=1e-3)  # doctest: +SKIP
>>> result.save("model-mixed")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .device.coreml import CoreML
    from .errors import (
        ExecutionError,
        InfeasibleError,
        InputError,
        MpsearchError,
        UnsupportedOpError,
        VerificationError,
    )
    from .executor.predict import Executor
    from .flows.analyze import analyze
    from .flows.apply import apply
    from .flows.check import check
    from .flows.convert import convert
    from .flows.optimize import optimize
    from .flows.pareto import pareto
    from .flows.probe import probe
    from .numerics.profiles import Profile
    from .options import Constraints, Conversion, Execution, Limits
    from .package.config import Config
    from .result import Result
    from .results.analysis import Analysis
    from .results.check import CheckResult
    from .results.front import Front

__all__ = [
    "Analysis",
    "CheckResult",
    "Config",
    "Constraints",
    "Conversion",
    "CoreML",
    "Execution",
    "ExecutionError",
    "Executor",
    "Front",
    "InfeasibleError",
    "InputError",
    "Limits",
    "MpsearchError",
    "Profile",
    "Result",
    "UnsupportedOpError",
    "VerificationError",
    "analyze",
    "apply",
    "check",
    "convert",
    "optimize",
    "pareto",
    "probe",
]

#: Where each public name is. They are imported when they are first asked for: torch and coremltools
#: take seconds to load, which nobody should wait for who asks for help or completes a word.
_HOMES = {
    "Analysis": "results.analysis",
    "CheckResult": "results.check",
    "Config": "package.config",
    "Constraints": "options",
    "Conversion": "options",
    "CoreML": "device.coreml",
    "Execution": "options",
    "Executor": "executor.predict",
    "Front": "results.front",
    "Limits": "options",
    "Profile": "numerics.profiles",
    "Result": "result",
    "analyze": "flows.analyze",
    "apply": "flows.apply",
    "check": "flows.check",
    "convert": "flows.convert",
    "optimize": "flows.optimize",
    "pareto": "flows.pareto",
    "probe": "flows.probe",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # which takes as long to load as all else here

        return version("mpsearch")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__)
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
