"""The errors that mpsearch raises. Each message is one line: what was given, what was expected,
what to do."""

from __future__ import annotations


class MpsearchError(Exception):
    """Base class of all errors raised by mpsearch."""


class InputError(MpsearchError, ValueError):
    """A model, data set, option or path that cannot be used (exit code 2)."""


class UnsupportedOpError(MpsearchError, NotImplementedError):
    """An op, or a use of one, that the executor does not know (exit code 2)."""


class ExecutionError(MpsearchError, RuntimeError):
    """An op that the executor knows failed on the values it was given (exit code 2)."""


class InfeasibleError(MpsearchError):
    """No choice of precision meets the budget (exit code 3)."""


class VerificationError(MpsearchError):
    """The written package is not what was promised: a defect, never the user's fault."""
