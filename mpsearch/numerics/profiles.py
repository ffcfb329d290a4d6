"""The numerics profiles: the one place that knows how FP16 rounds.

A profile says what an op typed FP16 computes. Ops themselves are written once, in FP32, and do
not know in which profile they run.

``ieee``
    Every float input is rounded to FP16 (nearest even, overflow to infinity, subnormals kept),
    the op computes in FP32, its result is rounded to FP16. This is what coremltools' "Typed
    Execution" guide promises, and what a GPU does that accumulates in FP32, which Core ML does
    unless ``allowLowPrecisionAccumulationOnGPU`` is set.
``ane``
    ``ieee`` with what has been observed of the Neural Engine: results of matmul, linear and
    convolutions with more than one tap overflow at 32768; inf - inf, 0 * inf, sqrt(-1) and
    log(-1) give 0; a NaN that comes in counts as +inf; softplus drops to 0 where exp(x) reaches
    32768, log-sum-exp where the sum of exp(x) leaves FP16. Sources: ane-guide.readthedocs.io,
    part 1, "Numerics"; arXiv 2606.22283; coremltools issues #2687 and #2690. Reverse-engineered,
    not documented by Apple.
``strict``
    ``ieee`` with every inner step of a composite op rounded to FP16, and sums and dot products
    accumulated in FP16. A worst case: how BNNS and MPSGraph accumulate, and what l2_norm,
    reduce_mean and scaled_dot_product_attention do inside, is not public.
``wide``
    FP16 only as storage of constants and of the model's inputs and outputs; everything computed
    and passed on in FP32. Typed execution allows it, and Core ML does it on the CPU wherever it
    has no FP16 kernel. For checking a conversion, not for choosing precisions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import options
from .formats import FP16, narrow, widen
from .steps import ONE_STEP, STEPS, Replaced, inner_peak, round_floats

#: Ops that move or select values and compute nothing: they run on FP16 storage as it is.
MOVES = frozenset(
    [
        "batch_to_space",
        "concat",
        "crop",
        "depth_to_space",
        "expand_dims",
        "flatten2d",
        "gather",
        "gather_along_axis",
        "gather_nd",
        "identity",
        "list_gather",
        "list_read",
        "list_scatter",
        "list_write",
        "make_list",
        "maximum",
        "minimum",
        "pixel_shuffle",
        "pixel_unshuffle",
        "relu",
        "reshape",
        "reshape_like",
        "reverse",
        "reverse_sequence",
        "select",
        "slice_by_index",
        "slice_by_size",
        "slice_update",
        "sliding_windows",
        "space_to_batch",
        "space_to_depth",
        "split",
        "squeeze",
        "stack",
        "tile",
        "transpose",
        "read_state",
        "coreml_update_state",
    ]
)


#: Of these, the ops whose every result is a value of their one float input.
_CARRIES = MOVES - frozenset(
    [
        "concat",
        "list_gather",
        "list_scatter",
        "list_write",
        "make_list",
        "maximum",
        "minimum",
        "select",
        "slice_update",
        "stack",
        "coreml_update_state",
    ]
)


def carries_rounding(op_type: str) -> bool:
    """Whether an op only passes on values of one input: a rounded one is not rounded again."""
    return op_type in _CARRIES


#: Elementwise ops whose FP16 kernels in torch compute in FP32 and round once, so that they give
#: ``ieee``'s bits without a conversion before and after.
_ROUND_ONCE = frozenset({"add", "mul", "sub", "real_div"})


_DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "bool": torch.bool}


def typed(x: Any, dtype: str) -> Any:
    """Give a result the dtype that the program declares for it (integers are kept as int32)."""
    if not isinstance(x, Tensor):
        return narrow(x) if dtype == "fp16" else x
    wanted = _DTYPES.get(dtype, torch.int32)
    return x if x.dtype is wanted else x.to(wanted)


def _typed_moved(x: Any, dtype: str) -> Any:
    half = isinstance(x, Tensor) and x.dtype is torch.float16
    return x if half and dtype == "fp32" else typed(x, dtype)


def _one_dtype(arguments: dict[str, Any]) -> bool:
    """Whether all float tensors among the arguments are stored alike."""
    kinds = set()
    for value in arguments.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Tensor) and item.is_floating_point():
                kinds.add(item.dtype)
    return len(kinds) <= 1


class Profile:
    """How an op typed FP16 computes. This base class is the profile ``ieee``."""

    name = "ieee"

    @property
    def identity(self) -> str:
        """What tells it from others, also of the same name."""
        return self.name

    def treats(self, op_type: str) -> str:
        """What this profile does differently from ``ieee`` for an op, empty where nothing."""
        return ""

    def ceiling(self, op_type: str, weight: Tensor | None) -> float:
        """The magnitude from which on a result of an op with this weight is infinite."""
        return FP16.overflows

    def looks_inside(self, op_type: str) -> bool:
        """Whether inner steps of an op can leave FP16's range though its result does not."""
        return False

    def inner(
        self, op_type: str, function: Callable[..., Any], arguments: dict[str, Any]
    ) -> Tensor:
        """The largest inner step of an op in FP32, as a share of what the profile can hold.

        A scalar; several samples may be asked about at once (``torch.func.vmap``).
        """
        return torch.zeros(())

    def run(
        self,
        op_type: str,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        out_dtypes: tuple[str, ...],
        fp16: bool,
    ) -> tuple[Any, ...]:
        """Run one op and give its results the dtypes ``out_dtypes``.

        ``fp16`` says whether the op is typed FP16; its float inputs are then already rounded.
        """
        moves = op_type in MOVES
        as_stored = _one_dtype(arguments) if moves else fp16 and self._native(op_type, arguments)
        if not as_stored:
            arguments = {k: widen(v) for k, v in arguments.items()}
        out = self._compute(op_type, function, arguments) if fp16 else function(**arguments)
        results = out if isinstance(out, tuple) else (out,)
        if moves:  # values moved in FP16 are the same in FP32, and need not be stored as such
            return tuple(map(_typed_moved, results, out_dtypes))
        return tuple(map(typed, results, out_dtypes))

    def _native(self, op_type: str, arguments: dict[str, Any]) -> bool:
        """Whether torch's own FP16 kernel gives this op's result bit for bit."""
        return op_type in _ROUND_ONCE and all(
            not isinstance(v, Tensor) or v.dtype is torch.float16 for v in arguments.values()
        )

    def _compute(
        self, op_type: str, function: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        return function(**arguments)


class Wide(Profile):
    """Everything in FP32 (see the module's docstring)."""

    name = "wide"

    def ceiling(self, op_type: str, weight: Tensor | None) -> float:
        return math.inf

    def run(
        self,
        op_type: str,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        out_dtypes: tuple[str, ...],
        fp16: bool,
    ) -> tuple[Any, ...]:
        out = function(**{k: widen(v) for k, v in arguments.items()})
        results = widen(list(out) if isinstance(out, tuple) else [out])
        wide = ("fp32" if dtype == "fp16" else dtype for dtype in out_dtypes)
        return tuple(map(typed, results, wide))


_ANE_LIMIT = 32768.0


def _ane_saturate(x: Tensor) -> Tensor:
    return torch.where(x.abs() >= _ANE_LIMIT, torch.copysign(torch.full_like(x, math.inf), x), x)


def _ane_softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """0 from about 10.4 on (coremltools #2687)."""
    exponential = torch.exp(x)
    return torch.where(exponential >= _ANE_LIMIT, 0.0, torch.log1p(exponential))


def _ane_logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """0 where the sum overflows, log(65504 / C) for C equal elements (coremltools #2690)."""
    total = torch.sum(torch.exp(x), dim=dim, keepdim=keepdim)
    return torch.where(total > torch.finfo(torch.float16).max, 0.0, torch.log(total))


class Ane(Profile):
    """The Neural Engine as far as it has been observed (see the module's docstring)."""

    name = "ane"
    _PRODUCTS = frozenset({"matmul", "linear", "einsum", "conv", "conv_quantized"})
    _UNSTABLE: ClassVar[dict[Any, Callable[..., Any]]] = {
        F.softplus: _ane_softplus,
        torch.logsumexp: _ane_logsumexp,
    }
    _UNSTABLE_OPS = frozenset({"softplus", "softplus_parametric", "reduce_log_sum_exp"})

    def treats(self, op_type: str) -> str:
        if op_type in self._PRODUCTS:
            taps = " with more than one tap" if op_type.startswith("conv") else ""
            return f"results{taps} of magnitude 32768 and more become infinite"
        if op_type == "reduce_log_sum_exp":
            return "0 where the sum of exp(x) is beyond 65504"
        if op_type in self._UNSTABLE_OPS:
            return "0 where exp(x) is 32768 or more"
        return ""

    def ceiling(self, op_type: str, weight: Tensor | None) -> float:
        taps = 2
        if op_type.startswith("conv") and weight is not None:
            taps = weight[0, 0].numel()
        return _ANE_LIMIT if op_type in self._PRODUCTS and taps > 1 else FP16.overflows

    def looks_inside(self, op_type: str) -> bool:
        return op_type in self._UNSTABLE_OPS

    def inner(
        self, op_type: str, function: Callable[..., Any], arguments: dict[str, Any]
    ) -> Tensor:
        peak = torch.zeros(())

        def see(x: Tensor, **given: Any) -> Tensor:
            nonlocal peak
            total = torch.exp(x)
            limit = _ANE_LIMIT
            if op_type == "reduce_log_sum_exp":
                total, limit = torch.sum(total, given["dim"]), FP16.largest
            peak = torch.maximum(peak, total.max() / limit) if total.numel() else peak
            return x

        with Replaced(dict.fromkeys(self._UNSTABLE, see)):
            function(**{k: widen(v) for k, v in arguments.items()})
        return peak

    def _native(self, op_type: str, arguments: dict[str, Any]) -> bool:
        return False

    def _compute(
        self, op_type: str, function: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        if op_type in MOVES:
            return function(**arguments)
        clean = {
            k: torch.nan_to_num(v, math.inf, math.inf, -math.inf)
            if isinstance(v, Tensor) and v.is_floating_point()
            else v
            for k, v in arguments.items()
        }
        if op_type in self._UNSTABLE_OPS:
            with Replaced(self._UNSTABLE):
                out = function(**clean)
        else:
            out = function(**clean)
        if self.ceiling(op_type, clean.get("weight")) == _ANE_LIMIT:
            out = _ane_saturate(out)
        return tuple(map(self._no_nan, out)) if isinstance(out, tuple) else self._no_nan(out)

    @staticmethod
    def _no_nan(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point():
            return torch.nan_to_num(x, 0.0, math.inf, -math.inf)
        return x


class Strict(Profile):
    """Every step rounded, every sum accumulated in FP16 (see the module's docstring).

    What an op computes decides, not its name: every torch function that its definition calls is
    rounded, and those that sum or multiply many elements do so in FP16.
    """

    name = "strict"

    def treats(self, op_type: str) -> str:
        if op_type in MOVES or op_type in ONE_STEP:
            return ""
        return "every inner step rounded to FP16, sums and products accumulated in it"

    def looks_inside(self, op_type: str) -> bool:
        return bool(self.treats(op_type))

    def inner(
        self, op_type: str, function: Callable[..., Any], arguments: dict[str, Any]
    ) -> Tensor:
        return inner_peak(function, arguments) / FP16.overflows

    def _native(self, op_type: str, arguments: dict[str, Any]) -> bool:
        return False

    def _compute(
        self, op_type: str, function: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        if not self.treats(op_type):
            return function(**arguments)
        with Replaced(STEPS, after=round_floats):
            return function(**arguments)


PROFILES: dict[str, Profile] = dict(
    zip(options.PROFILES, (Profile(), Ane(), Strict(), Wide()), strict=True)
)
