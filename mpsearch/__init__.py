"""mpsearch."""

from .predict import Executor

__all__ = ["Executor"]
