"""Tiny packages, each with one op typed FP16 between a cast from FP32 and one back to it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .._ct import ct, quiet
from ..numerics.observed import ONE_TAP

with quiet():
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - its usual name
    from coremltools.converters.mil.mil import Function, Program, types

#: How many terms the sums have, no power of two; and how many sums there are.
TERMS, ROWS = 96, 64
Build = Callable[..., Any]


__all__ = ["ROWS", "TERMS", "Build", "Question", "Subject", "mb", "subjects"]


@dataclass(frozen=True)
class Question:
    """An op, with inputs that show how it computes.

    Attributes
    ----------
    build
        Makes the op from its inputs, FP16 variables of MIL.
    inputs
        Arrays of FP32, each of whose values the first cast rounds.
    target
        The opset, as a deployment target.
    """

    build: Build
    inputs: tuple[np.ndarray, ...]
    target: str = "iOS17"

    @cached_property
    def package(self) -> Any:
        """The ``MLModel``, not loaded into Core ML: ``x0``, ``x1``, ... give ``y``."""
        target = getattr(ct.target, self.target)
        with quiet():
            given = {
                f"x{i}": mb.placeholder(value.shape, dtype=types.fp32)
                for i, value in enumerate(self.inputs)
            }
            with Function(given, opset_version=target) as function:
                half = [mb.cast(x=x, dtype="fp16") for x in function.inputs.values()]
                function.set_outputs([mb.cast(x=self.build(*half), dtype="fp32", name="y")])
            program = Program()
            program.add_function("main", function)
            return ct.convert(
                program,
                convert_to="mlprogram",
                compute_precision=ct.precision.FLOAT32,  # it is typed already
                minimum_deployment_target=target,
                pass_pipeline=ct.PassPipeline.EMPTY,  # nothing is to be folded or fused
                skip_model_load=True,
            )

    @property
    def named(self) -> dict[str, np.ndarray]:
        """The inputs by name."""
        return {f"x{i}": value for i, value in enumerate(self.inputs)}


def _random(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Numbers of FP16, of several magnitudes, in FP32."""
    generator = np.random.default_rng(seed)
    found = generator.standard_normal(shape) * scale * 2.0 ** generator.integers(-3, 4, shape)
    return found.astype(np.float16).astype(np.float32)


_WEIGHT = _random(1, TERMS).astype(np.float16)
_ONES = np.ones(TERMS, np.float16)
_FIRST = (np.arange(TERMS) == 0).astype(np.float16)  # takes the first of many terms


def _matmul(weight: np.ndarray) -> Build:
    return lambda x: mb.matmul(x=x, y=weight.reshape(TERMS, 1))


def _linear(weight: np.ndarray) -> Build:
    return lambda x: mb.linear(x=x, weight=weight.reshape(1, TERMS), bias=np.zeros(1, np.float16))


def _conv(weight: np.ndarray, taps: int) -> Build:
    kernel = weight.reshape(1, TERMS // taps, 1, taps)

    def build(x: Any) -> Any:
        rows = mb.reshape(x=x, shape=(-1, TERMS // taps, 1, taps))
        return mb.reshape(x=mb.conv(x=rows, weight=kernel, pad_type="valid"), shape=(-1, 1))

    return build


def _layer_norm(x: Any) -> Any:
    return mb.layer_norm(x=x, axes=[-1], epsilon=np.float16(1e-5))


def _instance_norm(x: Any) -> Any:
    rows = mb.reshape(x=x, shape=(-1, 1, TERMS))
    return mb.instance_norm(x=rows, epsilon=np.float16(1e-5))


def _batch_norm(x: Any) -> Any:
    rows = mb.reshape(x=x, shape=(1, -1, TERMS))
    count = rows.shape[1]
    mean = np.linspace(-2, 2, count).astype(np.float16)
    variance = np.linspace(0.25, 9, count).astype(np.float16)
    return mb.batch_norm(x=rows, mean=mean, variance=variance, epsilon=np.float16(1e-5))


def _avg_pool(x: Any) -> Any:
    rows = mb.reshape(x=x, shape=(-1, 1, TERMS))
    return mb.avg_pool(x=rows, kernel_sizes=[TERMS], strides=[TERMS], pad_type="valid")


def _attention(x: Any) -> Any:
    rows = mb.reshape(x=x, shape=(1, 1, ROWS, TERMS))
    return mb.scaled_dot_product_attention(query=rows, key=rows, value=rows)


@dataclass(frozen=True)
class Subject:
    """An op type, with what can be asked of it.

    Attributes
    ----------
    op_type
        As the rules have it.
    inside
        Shows how it computes inside; its inputs are of shape (ROWS, TERMS).
    ordered, fused
        Whether it sums, so that there is an order, and whether it sums products.
    exact
        Whether it adds and multiplies alone, so that every bit counts.
    passes
        Makes an op of this type that passes the first column of its input on, to see from which
        magnitude on it is infinite.
    invalid
        Makes one that computes something invalid, with its inputs.
    exponential
        Whether an exponential inside may become too large.
    """

    op_type: str
    inside: Question
    ordered: bool = False
    fused: bool = False
    exact: bool = False
    passes: Build | None = None
    invalid: Question | None = None
    exponential: bool = False


_X = _random(2, ROWS, TERMS)
_SMALL = _random(3, ROWS, TERMS, scale=0.25)
_INF = np.full((1, TERMS), np.inf, np.float32)


def _summing(op_type: str, make: Callable[[np.ndarray], Build]) -> Subject:
    """A product: 0 times infinity is its invalid operation."""
    zero = make(np.zeros(TERMS, np.float16))
    return Subject(
        op_type,
        Question(make(_WEIGHT), (_X,)),
        ordered=True,
        fused=True,
        exact=True,
        passes=make(_FIRST),
        invalid=Question(zero, (_INF,)),
    )


@functools.cache
def subjects() -> tuple[Subject, ...]:
    """Every op type that is asked about."""
    return *_elementwise(), *_composite()


def _elementwise() -> tuple[Subject, ...]:
    negative = np.full((1, TERMS), -1.0, np.float32)
    positive = np.abs(_X) + 0.125
    one = np.float16(1)
    return (
        Subject(
            "add",
            Question(lambda x: mb.add(x=x, y=np.float16(0.1)), (_X,)),
            exact=True,
            passes=lambda x: mb.add(x=x, y=np.float16(0)),
            invalid=Question(lambda x: mb.add(x=x, y=np.float16(-np.inf)), (_INF,)),
        ),
        Subject(
            "mul",
            Question(lambda x: mb.mul(x=x, y=np.float16(0.1)), (_X,)),
            exact=True,
            passes=lambda x: mb.mul(x=x, y=one),
            invalid=Question(lambda x: mb.mul(x=x, y=np.float16(0)), (_INF,)),
        ),
        Subject(
            "real_div",
            Question(lambda x: mb.real_div(x=x, y=np.float16(3)), (_X,)),
            exact=True,
            passes=lambda x: mb.real_div(x=x, y=one),
            invalid=Question(lambda x: mb.real_div(x=x, y=np.float16(np.inf)), (_INF,)),
        ),
        Subject(
            "sqrt",
            Question(lambda x: mb.sqrt(x=x), (positive,)),
            invalid=Question(lambda x: mb.sqrt(x=x), (negative,)),
        ),
        Subject(
            "log",
            Question(lambda x: mb.log(x=x, epsilon=np.float16(0.01)), (positive,)),
            invalid=Question(lambda x: mb.log(x=x), (negative,)),
        ),
        Subject("exp", Question(lambda x: mb.exp(x=x), (_SMALL,))),
        Subject("tanh", Question(lambda x: mb.tanh(x=x), (_SMALL,))),
        Subject("sigmoid", Question(lambda x: mb.sigmoid(x=x), (_SMALL,))),
    )


def _composite() -> tuple[Subject, ...]:
    return (
        _summing("matmul", _matmul),
        _summing("linear", _linear),
        _summing("conv", lambda weight: _conv(weight, 3)),
        _summing(ONE_TAP, lambda weight: _conv(weight, 1)),
        Subject(
            "reduce_sum",
            Question(lambda x: mb.reduce_sum(x=x, axes=[-1]), (_X,)),
            ordered=True,
            exact=True,
            passes=lambda x: mb.reduce_sum(x=x, axes=[-1], keep_dims=True),
        ),
        Subject(
            "reduce_mean",
            Question(lambda x: mb.reduce_mean(x=x, axes=[-1]), (_X,)),
            ordered=True,
        ),
        Subject("avg_pool", Question(_avg_pool, (_X,)), ordered=True),
        Subject("layer_norm", Question(_layer_norm, (_X,)), ordered=True),
        Subject("instance_norm", Question(_instance_norm, (_X,)), ordered=True),
        Subject("batch_norm", Question(_batch_norm, (_X,))),
        Subject("softmax", Question(lambda x: mb.softmax(x=x, axis=-1), (_SMALL,)), ordered=True),
        Subject(
            "scaled_dot_product_attention",
            Question(_attention, (_SMALL,), "iOS18"),
            ordered=True,
            fused=True,
        ),
        Subject("gelu", Question(lambda x: mb.gelu(x=x, mode="EXACT"), (_SMALL,))),
        Subject("silu", Question(lambda x: mb.silu(x=x), (_SMALL,))),
        Subject("softplus", Question(lambda x: mb.softplus(x=x), (_SMALL,)), exponential=True),
        Subject(
            "reduce_log_sum_exp",
            Question(lambda x: mb.reduce_log_sum_exp(x=x, axes=[-1], keep_dims=True), (_SMALL,)),
            ordered=True,
            exponential=True,
        ),
    )
