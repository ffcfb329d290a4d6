"""Profiles that were observed on a device: what ``mpsearch probe`` writes and ``--numerics`` reads.

A file says, for each op type that was probed, how it computes when it is typed FP16, and how all
others are taken to. It holds observations and no code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor

from ..errors import InputError
from ..files import regular
from . import orders
from .formats import FP16, widen
from .profiles import MOVES, PROFILES, Profile, typed
from .steps import ONE_STEP, Replaced, Steps, inner_peak, round_floats

VERSION = 1
#: What stands among the op types for convolutions of one tap.
ONE_TAP = "conv of one tap"
#: Of files; a profile has some hundred lines.
_MOST_BYTES = 1 << 20


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an op typed FP16 computes.

    Attributes
    ----------
    result
        ``fp16``: rounded; ``fp32``: as computed, since there is no FP16 kernel.
    inside
        Inner steps, and sums: ``fp32``, rounded at the end alone, or ``fp16``, each rounded.
    order, fused
        Those of :class:`mpsearch.numerics.steps.Steps`, where ``inside`` is ``fp16``.
    overflows
        Results of this magnitude and larger are infinite.
    exponential
        The result is 0 where an exponential inside, or the sum of them, reaches this; null where
        none does.
    invalid
        What inf - inf, 0 * inf, sqrt(-1) and log(-1) give.
    """

    result: Literal["fp16", "fp32"] = "fp16"
    inside: Literal["fp32", "fp16"] = "fp32"
    order: str = "sequential"
    fused: bool = False
    overflows: float = FP16.overflows
    exponential: float | None = None
    invalid: Literal["nan", "zero", "inf"] = "nan"

    def __post_init__(self) -> None:
        try:
            orders.order(self.order)
        except InputError as error:
            raise ValueError(str(error)) from error
        if self.result == "fp32" and self.inside == "fp16":
            raise ValueError("inside fp16 with result fp32: what is rounded inside is rounded")
        for value in (self.overflows, self.exponential):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{value!r} is no magnitude; expected a number above 0")


class Observation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was seen of a device.

    Attributes
    ----------
    version
        Of this format.
    name
        Of the profile, in results and configs.
    about
        The device, its system, and what asked.
    subnormals
        Whether numbers below 2**-14 are kept, or become 0.
    nan
        What a NaN that comes in counts as.
    otherwise
        For op types that are not in ``ops``.
    unexplained
        Op types of which what was seen fits no rule; they are taken as ``otherwise``.
    """

    version: int = VERSION
    name: str
    about: dict[str, str] = {}
    subnormals: Literal["kept", "flushed"] = "kept"
    nan: Literal["nan", "zero", "inf"] = "nan"
    otherwise: Rule = Rule()
    ops: dict[str, Rule] = {}
    unexplained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version}, expected {VERSION}")
        if not self.name or "," in self.name or not self.name.isprintable() or len(self.name) > 80:
            raise ValueError(f"name {self.name[:80]!r}: expected 1 to 80 characters and no comma")
        if self.name in PROFILES:
            raise ValueError(f"name {self.name!r} is that of a built-in profile")

    def to_json(self) -> str:
        """As a file has it."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n"


def read(path: str | Path) -> Observed:
    """The profile in a file.

    Raises
    ------
    InputError
        If there is none.
    """
    file = regular(path, "a profile that mpsearch probe wrote")
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{file.stat().st_size:,} bytes, expected some thousand")
        return Observed(msgspec.json.decode(file.read_bytes(), type=Observation))
    except (msgspec.MsgspecError, ValueError, RecursionError, OSError) as error:
        raise InputError(f"{file} is no numerics profile: {error}") from error


_VALUES = {"nan": math.nan, "zero": 0.0, "inf": math.inf}


class Observed(Profile):
    """Computes as a device was seen to.

    Parameters
    ----------
    seen
        What was seen.
    """

    def __init__(self, seen: Observation) -> None:
        self.seen = seen
        self.name = seen.name
        self._steps: dict[tuple[str, bool], Steps] = {}
        #: Whether values typed FP16 may be wider.
        self._wide = "fp32" in {rule.result for rule in (seen.otherwise, *seen.ops.values())}

    @cached_property
    def identity(self) -> str:
        """The name, and a digest of what was seen."""
        return f"{self.name} {xxhash.xxh3_64_hexdigest(msgspec.json.encode(self.seen))}"

    def rule(self, op_type: str, weight: Tensor | None = None) -> Rule:
        """How an op type computes; convolutions of one tap may have a rule of their own."""
        if op_type == "conv" and weight is not None and weight[0, 0].numel() == 1:
            op_type = ONE_TAP
        if op_type == ONE_TAP and ONE_TAP not in self.seen.ops:
            op_type = "conv"
        return self.seen.ops.get(op_type, self.seen.otherwise)

    def treats(self, op_type: str) -> str:
        rule, said = self.rule(op_type), []
        if op_type in MOVES:
            return ""
        if rule.result == "fp32":
            said.append("not rounded")
        if self._inside(op_type):
            said.append(f"every inner step rounded, sums {rule.order}")
        if rule.overflows != FP16.overflows:
            said.append(f"infinite from {rule.overflows:g} on")
        if rule.exponential is not None:
            said.append(f"0 where an exponential reaches {rule.exponential:g}")
        return "; ".join(said)

    def ceiling(self, op_type: str, weight: Tensor | None) -> float:
        rule = self.rule(op_type, weight)
        return math.inf if rule.result == "fp32" else rule.overflows

    def looks_inside(self, op_type: str) -> bool:
        return self._inside(op_type) or self.rule(op_type).exponential is not None

    def inner(
        self, op_type: str, function: Callable[..., Any], arguments: dict[str, Any]
    ) -> Tensor:
        rule = self.rule(op_type)
        if rule.exponential is None:
            return inner_peak(function, arguments) / FP16.overflows
        limit, peak = rule.exponential, torch.zeros(())

        def see(x: Tensor, **given: Any) -> Tensor:
            nonlocal peak
            total = torch.exp(x)
            total = torch.sum(total, given["dim"]) if "dim" in given else total
            peak = torch.maximum(peak, total.max() / limit) if total.numel() else peak
            return x

        with Replaced({F.softplus: see, torch.logsumexp: see}):
            function(**{k: widen(v) for k, v in arguments.items()})
        return peak

    def _inside(self, op_type: str, weight: Tensor | None = None) -> bool:
        steps = op_type not in MOVES and op_type not in ONE_STEP
        return steps and self.rule(op_type, weight).inside == "fp16"

    def _native(self, op_type: str, arguments: dict[str, Any]) -> bool:
        return False

    def run(
        self,
        op_type: str,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        out_dtypes: tuple[str, ...],
        fp16: bool,
    ) -> tuple[Any, ...]:
        rule = self.rule(op_type, arguments.get("weight"))
        if not fp16 or not self._wide:
            return super().run(op_type, function, arguments, out_dtypes, fp16)
        if op_type in MOVES:  # what is wide stays so
            out = function(**arguments)
            pairs = zip(out if isinstance(out, tuple) else (out,), out_dtypes, strict=True)
            return tuple(x if _is_wide(x) else typed(x, t) for x, t in pairs)
        if rule.result == "fp16":
            return super().run(op_type, function, arguments, out_dtypes, fp16)
        out = self._compute(op_type, function, {k: widen(v) for k, v in arguments.items()})
        wide = ("fp32" if dtype == "fp16" else dtype for dtype in out_dtypes)
        return tuple(map(typed, out if isinstance(out, tuple) else (out,), wide))

    def _compute(
        self, op_type: str, function: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        if op_type in MOVES:
            return function(**arguments)
        weight = arguments.get("weight")
        rule = self.rule(op_type, weight)
        given = {k: self._taken(v) for k, v in arguments.items()}
        spoilt = any(isinstance(v, Tensor) and bool(v.isnan().any()) for v in given.values())
        table: dict[Any, Callable[..., Any]] = {}
        after = None
        if self._inside(op_type, weight):
            key = rule.order, rule.fused
            if key not in self._steps:
                self._steps[key] = Steps(*key)
            table, after = self._steps[key].table, round_floats
        if rule.exponential is not None:
            table = {**table, **_exponentials(rule.exponential)}
        if table:
            with Replaced(table, after=after):
                out = function(**given)
        else:
            out = function(**given)
        return (
            tuple(self._given(x, rule, spoilt) for x in out)
            if isinstance(out, tuple)
            else (self._given(out, rule, spoilt))
        )

    def _taken(self, x: Any) -> Any:
        """An argument as the device sees it."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        if self.seen.nan != "nan":
            x = torch.where(x.isnan(), _VALUES[self.seen.nan], x)
        return _flushed(x) if self.seen.subnormals == "flushed" else x

    def _given(self, x: Any, rule: Rule, spoilt: bool) -> Any:
        """A result as the device gives it."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        if rule.invalid != "nan" and not spoilt:
            x = torch.where(x.isnan(), _VALUES[rule.invalid], x)
        if rule.result == "fp32":
            return x
        if rule.overflows != FP16.overflows:
            x = x.half().float()  # what rounds up to the limit is beyond it
            infinite = torch.copysign(torch.full_like(x, math.inf), x)
            x = torch.where(x.abs() >= rule.overflows, infinite, x)
        return _flushed(x) if self.seen.subnormals == "flushed" else x


def _is_wide(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype is torch.float32


def _flushed(x: Tensor) -> Tensor:
    return torch.where(x.abs() < FP16.smallest_normal, torch.copysign(torch.zeros_like(x), x), x)


def _exponentials(limit: float) -> dict[Any, Callable[..., Any]]:
    """Softplus and log-sum-exp without a maximum taken out, 0 from a limit on."""

    def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
        exponential = torch.exp(x)
        return torch.where(exponential >= limit, 0.0, torch.log1p(exponential))

    def logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
        total = torch.sum(torch.exp(x), dim=dim, keepdim=keepdim)
        return torch.where(total >= limit, 0.0, torch.log(total))

    return {F.softplus: softplus, torch.logsumexp: logsumexp}
