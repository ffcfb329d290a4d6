"""Find the fewest ops that must stay FP32 for a PyTorch model to work in Core ML's FP16.

>>> import mpsearch
>>> result = mpsearch.optimize(model, samples, budget=1e-3)  # doctest: +SKIP
>>> result.save("model-mixed")  # doctest: +SKIP
"""

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
