"""Every op that a numerics profile treats, small and at real widths, in and out of inference mode.

A search runs the same op both ways in turn: the executor in inference mode, the model of rounding,
which takes gradients, out of it. A profile that keeps something between two runs has to stand that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from mpsearch._ct import ct, quiet
from mpsearch.executor.loop import Schedule
from mpsearch.executor.ops import OPS
from mpsearch.executor.runtime import Runtime
from mpsearch.numerics.profiles import PROFILES
from mpsearch.program.lowering import lower_candidates

with quiet():
    from coremltools.converters.mil.mil import Builder as mb

Parameters = dict[str, Any]


def weights(*shape: int) -> np.ndarray:
    """Random weights whose products stay near 1."""
    scale = 1 / np.sqrt(np.prod(shape[1:]))
    return (np.random.default_rng(0).standard_normal(shape) * scale).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """An op at a small size and at a real one: the input's shape, and the other parameters.

    Attributes
    ----------
    small, real
        Shapes of ``x``.
    parameters
        Of the shape.
    opset
        The first target that has the op so.
    """

    small: tuple[int, ...]
    real: tuple[int, ...]
    parameters: Callable[[tuple[int, ...]], Parameters] = lambda shape: {}
    opset: str = "iOS17"


_IMAGE, _PICTURE = (1, 4, 4, 4), (1, 128, 8, 8)
_ROWS, _WIDE = (2, 8), (16, 512)
_BEATS, _SOUND = (3, 1, 4), (8, 1, 128)


def _elementwise(**parameters: Any) -> Case:
    return Case(_ROWS, _WIDE, lambda shape: parameters)


def _channels(**parameters: Any) -> Case:
    return Case(_IMAGE, _PICTURE, lambda s: {k: v(s[1]) for k, v in parameters.items()})


def _reduced(op: str) -> Case:
    return Case(_ROWS, _WIDE, lambda shape: {"axes": [-1], "keep_dims": True})


def _recurrent(gates: int) -> Callable[[tuple[int, ...]], Parameters]:
    def parameters(shape: tuple[int, ...]) -> Parameters:
        width = shape[2]
        return {
            "initial_h": np.zeros((1, width), np.float32),
            "weight_ih": weights(gates * width, width),
            "weight_hh": weights(gates * width, width),
        }

    return parameters


def _scattered(shape: tuple[int, ...]) -> Parameters:
    return {"indices": np.array([1, 0, 1], np.int32), "updates": weights(3, *shape[1:])}


def _ones(channels: int) -> np.ndarray:
    return np.ones(channels, np.float32)


CASES: dict[str, Case] = {
    "affine": Case(
        _IMAGE,
        _PICTURE,
        lambda s: {
            "transform_matrix": np.array([[0.9, 0.1, 0, 0, 1, 0.1]], np.float32),
            "output_height": s[2],
            "output_width": s[3],
            "sampling_mode": "bilinear",
            "padding_mode": "constant",
            "padding_value": 0.0,
            "coordinates_mode": "normalized_minus_one_to_one",
            "align_corners": True,
        },
    ),
    "avg_pool": Case(_IMAGE, _PICTURE, lambda s: {"kernel_sizes": [2, 2], "pad_type": "valid"}),
    "batch_norm": _channels(mean=_ones, variance=lambda n: 0.3 * _ones(n), gamma=_ones),
    "clamped_relu": _elementwise(alpha=0.1, beta=0.5),
    "conv": Case(_IMAGE, (1, 64, 8, 8), lambda s: {"weight": weights(2 * s[1], s[1], 3, 3)}),
    "conv_transpose": Case(
        _IMAGE, (1, 64, 8, 8), lambda s: {"weight": weights(s[1], 2 * s[1], 3, 3)}
    ),
    "crop_resize": Case(
        _IMAGE,
        _PICTURE,
        lambda s: {
            "boxes": np.array([[0.1, 0.1, 0.8, 0.8]], np.float32),
            "box_indices": np.array([0], np.int32),
            "target_height": 4,
            "target_width": 4,
            "normalized_coordinates": True,
        },
    ),
    "cumsum": _elementwise(axis=1),
    "einsum": Case((1, 2, 3, 4), (1, 4, 16, 64), lambda s: {"equation": "nchw,nwhu->nchu"}),
    "elu": _elementwise(alpha=0.3),
    "floor_div": _elementwise(y=np.float32(0.3)),
    "gelu": _elementwise(mode="EXACT"),
    "gru": Case(_BEATS, _SOUND, _recurrent(3)),
    "instance_norm": _channels(gamma=_ones, beta=_ones),
    "inverse": _elementwise(epsilon=1e-3),
    "l2_norm": Case(_IMAGE, _PICTURE, lambda s: {"epsilon": 1e-6}),
    "l2_pool": Case(_IMAGE, _PICTURE, lambda s: {"kernel_sizes": [2, 2], "pad_type": "valid"}),
    "layer_norm": Case(
        _ROWS, _WIDE, lambda s: {"axes": [-1], "gamma": _ones(s[1]), "beta": _ones(s[1])}
    ),
    "leaky_relu": _elementwise(alpha=0.1),
    "linear": Case(_ROWS, _WIDE, lambda s: {"weight": weights(s[1], s[1]), "bias": _ones(s[1])}),
    "linear_activation": _elementwise(alpha=0.3, beta=0.1),
    "local_response_norm": _channels(size=lambda n: 3),
    "log": _elementwise(epsilon=1e-3),
    "lstm": Case(
        _BEATS,
        _SOUND,
        lambda s: {**_recurrent(4)(s), "initial_c": np.zeros((1, s[2]), np.float32)},
    ),
    "matmul": Case(_ROWS, _WIDE, lambda s: {"y": weights(s[1], s[1])}),
    "mod": _elementwise(y=np.float32(0.3)),
    "prelu": _channels(alpha=_ones),
    **{
        op: _reduced(op)
        for op in OPS
        if op.startswith("reduce_") and op not in ("reduce_argmax", "reduce_argmin")
    },
    "resample": Case(
        _IMAGE,
        _PICTURE,
        lambda s: {
            "coordinates": np.random.default_rng(0).uniform(-1, 1, (1, 4, 4, 2)).astype("f4"),
            "sampling_mode": "bilinear",
            "padding_mode": "constant",
            "padding_value": 0.0,
            "coordinates_mode": "normalized_minus_one_to_one",
            "align_corners": True,
        },
    ),
    "resize": Case(
        _IMAGE,
        _PICTURE,
        lambda s: {
            "shape": [2 * s[2], 2 * s[3]],
            "resized_dims": np.uint32(2),
            "interpolation_mode": "LINEAR",
            "sampling_mode": "DEFAULT",
        },
    ),
    "resize_bilinear": Case(
        _IMAGE, _PICTURE, lambda s: {"target_size_height": 7, "target_size_width": 7}
    ),
    "resize_nearest_neighbor": Case(
        _IMAGE, _PICTURE, lambda s: {"target_size_height": 7, "target_size_width": 7}
    ),
    "rnn": Case(_BEATS, _SOUND, _recurrent(1)),
    "rsqrt": _elementwise(epsilon=1e-3),
    "scaled_dot_product_attention": Case((1, 2, 3, 4), (1, 4, 16, 64), lambda s: {}, opset="iOS18"),
    "scaled_tanh": _elementwise(alpha=0.3, beta=0.3),
    "scatter": Case(_ROWS, _WIDE, lambda s: {**_scattered(s), "axis": 0, "mode": "add"}),
    "scatter_along_axis": Case(
        _ROWS,
        _WIDE,
        lambda s: {
            "indices": np.zeros((1, s[1]), np.int32),
            "updates": weights(1, s[1]),
            "axis": 0,
            "mode": "add",
        },
    ),
    "scatter_nd": Case(
        _ROWS,
        _WIDE,
        lambda s: {
            "indices": np.array([[0], [1]], np.int32),
            "updates": weights(2, s[1]),
            "mode": "add",
        },
    ),
    "sigmoid_hard": _elementwise(alpha=0.2, beta=0.5),
    "silu": _elementwise(),
    "softmax": _elementwise(axis=-1),
    "softplus": _elementwise(),
    "softplus_parametric": _channels(alpha=_ones, beta=_ones),
    "softsign": _elementwise(),
    "upsample_bilinear": Case(
        _IMAGE, _PICTURE, lambda s: {"scale_factor_height": 2, "scale_factor_width": 2}
    ),
    "upsample_nearest_neighbor": Case(
        _IMAGE, _PICTURE, lambda s: {"scale_factor_height": 2, "scale_factor_width": 2}
    ),
}
#: Further sizes at which models have met faults.
SIZES: dict[str, tuple[str, Case]] = {
    "conv of 256 taps": (
        "conv",
        Case((1, 1, 16), (1, 1, 768), lambda s: {"weight": weights(258, 1, s[2] // 3)}),
    ),
    "conv by channels": (
        "conv",
        Case(_IMAGE, _PICTURE, lambda s: {"weight": weights(s[1], 1, 3, 3), "groups": s[1]}),
    ),
    "linear of few outputs": (
        "linear",
        Case(_ROWS, (1, 512), lambda s: {"weight": weights(4 * s[1], s[1])}),
    ),
}
#: What a profile treats and no float input of a program of one op reaches: draws, which differ
#: from run to run; quantized weights and lists, which are no FP16 ops.
LEFT_OUT = {
    "conv_quantized",
    "dequantize",
    "list_length",
    "non_maximum_suppression",
    "quantize",
    "random_bernoulli",
    "random_categorical",
    "random_normal",
    "random_uniform",
}


def program(op: str, case: Case, shape: tuple[int, ...]) -> Any:
    """A function of one op, with its FP16 form."""
    specs = [mb.TensorSpec(shape=shape)]

    @mb.program(input_specs=specs, opset_version=getattr(ct.target, case.opset))
    def built(x: Any) -> Any:
        parameters = case.parameters(shape)
        if op == "einsum":
            turned = mb.transpose(x=x, perm=[0, 3, 2, 1])
            return mb.einsum(values=(x, turned), **parameters)
        if op == "scaled_dot_product_attention":
            return mb.scaled_dot_product_attention(query=x, key=x, value=x)
        if op in ("scatter", "scatter_along_axis", "scatter_nd"):
            return getattr(mb, op)(data=x, **parameters)
        return getattr(mb, op)(x=x, **parameters)

    with quiet():
        return lower_candidates(built)[0]


def outputs(function: Any, runtime: Runtime, x: torch.Tensor) -> list[torch.Tensor]:
    """What a function gives with every op in FP16."""
    (slot,) = function.inputs.values()
    env = {slot: x}
    Schedule.of_function(function).run(
        env, lambda step, values: runtime.run(step.node, values, frozenset())
    )
    return [runtime.source(source, env).clone() for source in function.outputs.values()]


def test_every_op_that_a_profile_treats_is_here():
    treated = {op for op in OPS if any(p.treats(op) for p in PROFILES.values())}
    assert treated - LEFT_OUT - CASES.keys() == set(), (
        "a row in CASES is missing, or the op in ONE_STEP (numerics/steps.py) or MOVES "
        "(numerics/profiles.py)"
    )


_ALL = {**{op: (op, case) for op, case in CASES.items()}, **SIZES}


#: Ops of CASES that round once by what they are, whatever their parameters.
_ONCE = {
    *("clamped_relu", "leaky_relu", "prelu", "floor_div", "mod", "reduce_max", "reduce_min"),
    *("resize_nearest_neighbor", "upsample_nearest_neighbor"),
    *("scatter", "scatter_along_axis", "scatter_nd"),
}


@pytest.mark.parametrize("name", sorted(CASES.keys() - _ONCE))
def test_strict_rounds_inner_steps(name):
    """An op written as one torch function, no known step, would be rounded once, as by ieee."""
    case, differs = CASES[name], False
    for shape in (case.small, case.real):
        function = program(name, case, shape)
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1
        for given in (x, 3 - 6 * x):
            with torch.no_grad():
                found = [outputs(function, Runtime(PROFILES[p]), given) for p in ("ieee", "strict")]
            pairs = zip(*found, strict=True)
            differs |= any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)
    assert differs, "write it from functions that mpsearch/numerics/steps.py knows"


@pytest.mark.parametrize("size", ["small", "real"])
@pytest.mark.parametrize("name", _ALL)
def test_inference_mode_changes_nothing(name, size):
    op, case = _ALL[name]
    shape = getattr(case, size)
    function = program(op, case, shape)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1
    for profile in PROFILES.values():
        runtime = Runtime(profile)
        found = []
        for mode in (True, False, True):
            # Without gradients: torch has another LSTM where it records them.
            with torch.inference_mode(mode), torch.no_grad():
                found.append(outputs(function, runtime, x))
        assert found[0], profile.name
        for again in found[1:]:
            for a, b in zip(found[0], again, strict=True):
                assert torch.equal(a, b), profile.name
