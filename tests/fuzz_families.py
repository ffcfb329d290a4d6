"""Random programs of one structured op each, with a truth from torch or plain numpy.

Families for ops that take more than one tensor, windows, recurrences or blocks; what maps one
tensor elementwise or by axis is drawn in :mod:`tests.fuzz` itself. The truths are written from
coremltools' documentation of each op, not from the executor.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mpsearch._ct import ct, quiet

with quiet():
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

Array = np.ndarray
Numbers = np.random.Generator


@dataclass
class Case:
    """One op on an input of ``shape``: how to build it, and what it must give."""

    name: str
    shape: tuple[int, ...]
    build: Callable[[Any], Any]
    truth: Callable[[Array], Any]
    opset: Any = ct.target.iOS17


def _normal(n: Numbers, *shape: int) -> Array:
    return n.normal(0, 1, shape).astype(np.float32)


def _torch(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    made = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arguments]
    return function(*made, **options).numpy()


# -- convolution and pooling -----------------------------------------------------------------------


def _same(size: int, kernel: int, stride: int, dilation: int, lower: bool) -> tuple[int, int]:
    """Padding that gives ceil(size / stride) outputs; the odd one at the end, or in front."""
    total = max((math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    small, large = total // 2, total - total // 2
    return (large, small) if lower else (small, large)


def _pads(
    r: random.Random, sizes: list[int], kernel: list[int], stride: list[int], dilation: list[int]
) -> tuple[str, list[int], list[int]]:
    """pad_type, the ``pad`` to give, and the padding meant, (before, after) per axis."""
    kind = r.choice(["valid", "custom", "same", "same_lower"])
    if kind == "valid":
        return kind, [0] * (2 * len(sizes)), [0] * (2 * len(sizes))
    if kind == "custom":
        pad = [r.randint(0, 2) for _ in range(2 * len(sizes))]
        return kind, pad, pad
    meant: list[int] = []
    for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        meant += _same(n, k, s, d, kind == "same_lower")
    return kind, [0] * (2 * len(sizes)), meant


def _reversed_pairs(pads: list[int]) -> list[int]:
    """F.pad counts axes from the last."""
    pairs = [pads[i : i + 2] for i in range(0, len(pads), 2)]
    return [v for pair in reversed(pairs) for v in pair]


def conv(r: random.Random, n: Numbers) -> Case:
    rank = r.choice([1, 2, 3])
    groups = r.choice([1, 2])
    inputs, outputs = groups * r.randint(1, 2), groups * r.randint(1, 2)
    kernel = [r.randint(1, 3) for _ in range(rank)]
    strides = [r.randint(1, 2) for _ in range(rank)]
    dilations = [r.randint(1, 2) for _ in range(rank)]
    sizes = [r.randint(d * (k - 1) + 1, 7) for k, d in zip(kernel, dilations, strict=True)]
    kind, pad, meant = _pads(r, sizes, kernel, strides, dilations)
    weight = _normal(n, outputs, inputs // groups, *kernel)
    bias = _normal(n, outputs)
    options = {"strides": strides, "dilations": dilations, "groups": groups}

    def truth(x: Array) -> Any:
        padded = F.pad(torch.from_numpy(x), _reversed_pairs(meant))
        function = [F.conv1d, F.conv2d, F.conv3d][rank - 1]
        return function(
            padded,
            torch.from_numpy(weight),
            torch.from_numpy(bias),
            stride=strides,
            dilation=dilations,
            groups=groups,
        ).numpy()

    return Case(
        "conv",
        (r.randint(1, 2), inputs, *sizes),
        lambda x: mb.conv(x=x, weight=weight, bias=bias, pad_type=kind, pad=pad, **options),
        truth,
    )


def conv_transpose(r: random.Random, n: Numbers) -> Case:
    rank = r.choice([1, 2])
    groups = r.choice([1, 2])
    inputs, outputs = groups * r.randint(1, 2), groups * r.randint(1, 2)
    kernel = [r.randint(1, 4) for _ in range(rank)]
    strides = [r.randint(1, 3) for _ in range(rank)]
    sizes = [r.randint(2, 5) for _ in range(rank)]
    weight = _normal(n, inputs, outputs // groups, *kernel)
    kind = r.choice(["valid", "custom"])
    full = [(a - 1) * s + k for a, s, k in zip(sizes, strides, kernel, strict=True)]
    pad = [0] * (2 * rank)
    if kind == "custom":
        pad = [r.randint(0, (f - 1) // 2) for f in full for _ in range(2)]

    def truth(x: Array) -> Any:
        function = [F.conv_transpose1d, F.conv_transpose2d][rank - 1]
        whole = _torch(function, x, weight, stride=strides, groups=groups)
        cut = [slice(pad[2 * i], f - pad[2 * i + 1]) for i, f in enumerate(full)]
        return whole[(..., *cut)]

    return Case(
        "conv_transpose",
        (r.randint(1, 2), inputs, *sizes),
        lambda x: mb.conv_transpose(
            x=x, weight=weight, pad_type=kind, pad=pad, strides=strides, groups=groups
        ),
        truth,
    )


def pool(r: random.Random, n: Numbers) -> Case:
    rank = r.choice([1, 2, 3])
    name = r.choice(["max_pool", "avg_pool", "l2_pool"] if rank < 3 else ["max_pool", "avg_pool"])
    kernel = [r.randint(1, 3) for _ in range(rank)]
    strides = [r.randint(1, 3) for _ in range(rank)]
    sizes = [r.randint(k, 7) for k in kernel]
    kind = r.choice(["valid", "custom", "same"])
    meant = [0] * (2 * rank)
    if kind == "custom":  # equal on both sides and less than the kernel, or windows hold nothing
        meant = [v for k in kernel for v in [r.randint(0, k // 2)] * 2]
    if kind == "same":
        meant = [
            v
            for a, k, s in zip(sizes, kernel, strides, strict=True)
            for v in _same(a, k, s, 1, False)
        ]
    ceil = kind != "same" and rank < 3 and r.random() < 0.3
    options: dict[str, Any] = {"ceil_mode": ceil} if ceil else {}
    exclude = r.random() < 0.5
    if name == "avg_pool":
        options["exclude_padding_from_average"] = exclude
    pad = meant if kind == "custom" else [0] * (2 * rank)

    def count(i: int) -> int:
        room = sizes[i] + meant[2 * i] + meant[2 * i + 1] - kernel[i]
        if not ceil:
            return room // strides[i] + 1
        out = math.ceil(room / strides[i]) + 1
        # The last window must start inside the input or the padding in front of it.
        return out - ((out - 1) * strides[i] >= sizes[i] + meant[2 * i])

    def truth(x: Array) -> Any:
        out = np.empty((*x.shape[:2], *(count(i) for i in range(rank))), np.float32)
        for place in itertools.product(*(range(count(i)) for i in range(rank))):
            cut, whole = [], 1
            for i, p in enumerate(place):
                start = p * strides[i] - meant[2 * i]
                stop = start + kernel[i]
                cut.append(slice(max(start, 0), min(stop, sizes[i])))
                whole *= min(stop, sizes[i] + meant[2 * i + 1]) - start
            window = x[(..., *cut)].reshape(*x.shape[:2], -1)
            if name == "max_pool":
                value = window.max(-1)
            elif name == "l2_pool":
                value = np.sqrt(np.square(window).sum(-1))
            else:
                value = window.sum(-1) / (window.shape[-1] if exclude else whole)
            out[(..., *place)] = value
        return out

    return Case(
        name,
        (r.randint(1, 2), r.randint(1, 2), *sizes),
        lambda x: getattr(mb, name)(
            x=x, kernel_sizes=kernel, strides=strides, pad_type=kind, pad=pad, **options
        ),
        truth,
    )


# -- recurrences -----------------------------------------------------------------------------------

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "relu": lambda v: np.maximum(v, 0),
}


def recurrent(r: random.Random, n: Numbers) -> Case:
    name = r.choice(["lstm", "gru", "rnn"])
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[name]
    steps, batch, inputs, hidden = (r.randint(1, 4) for _ in range(4))
    both = name == "lstm" and r.random() < 0.4
    direction = "bidirectional" if both else r.choice(["forward", "reverse"])
    sequence = r.random() < 0.5
    activation = r.choice(list(_ACTIVATIONS))
    weights = [
        (_normal(n, gates * hidden, inputs), _normal(n, gates * hidden, hidden))
        for _ in range(1 + both)
    ]
    biases = [_normal(n, gates * hidden) for _ in range(1 + both)]
    h0 = _normal(n, batch, hidden * (1 + both))
    c0 = _normal(n, batch, hidden * (1 + both))
    clip = r.choice([None, 0.7]) if name == "lstm" else None
    act, sigmoid = _ACTIVATIONS[activation], _ACTIVATIONS["sigmoid"]

    def one_way(x: Array, back: bool, which: int) -> tuple[Array, Array, Array]:
        (wi, wh), b = weights[which], biases[which]
        part = slice(which * hidden, (which + 1) * hidden)
        h, c, seen = h0[:, part], c0[:, part], []
        for t in reversed(range(steps)) if back else range(steps):
            given = x[t] @ wi.T + b
            if name == "rnn":
                h = act(given + h @ wh.T)
            elif name == "gru":
                w = [wh[i * hidden : (i + 1) * hidden] for i in range(3)]  # reset, new, update
                g = [given[:, i * hidden : (i + 1) * hidden] for i in range(3)]
                reset, update = sigmoid(g[0] + h @ w[0].T), sigmoid(g[2] + h @ w[2].T)
                fresh = act(g[1] + (reset * h) @ w[1].T)
                h = (1 - update) * fresh + update * h
            else:
                all_ = given + h @ wh.T
                i, f, o, z = (all_[:, k * hidden : (k + 1) * hidden] for k in range(4))
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(z)
                if clip is not None:  # "a limit on the values of c_t" (NeuralNetwork.proto)
                    c = np.clip(c, -clip, clip)
                h = sigmoid(o) * act(c)
            seen.append(h)
        # A reverse op gives its steps as it took them; a bidirectional one in order of time.
        return np.stack(seen[::-1] if back and both else seen), h, c

    def truth(x: Array) -> Any:
        ways = [one_way(x, direction == "reverse", 0)]
        if both:
            ways.append(one_way(x, True, 1))
        last = np.concatenate([w[1] for w in ways], -1)
        if sequence:
            return np.concatenate([w[0] for w in ways], -1)
        return last[None]

    def build(x: Any) -> Any:
        options: dict[str, Any] = {"direction": direction, "output_sequence": sequence}
        options |= {"activation": activation, "initial_h": h0, "bias": biases[0]}
        options |= {"weight_ih": weights[0][0], "weight_hh": weights[0][1]}
        if name == "lstm":
            options["initial_c"] = c0
            if clip is not None:
                options["clip"] = np.float32(clip)
        if both:
            options |= {"weight_ih_back": weights[1][0], "weight_hh_back": weights[1][1]}
            options["bias_back"] = biases[1]
        return getattr(mb, name)(x=x, **options)[0]

    return Case(name, (steps, batch, inputs), build, truth)


# -- normalization, attention, products ------------------------------------------------------------


def normalization(r: random.Random, n: Numbers) -> Case:
    name = r.choice(["batch_norm", "instance_norm", "l2_norm", "local_response_norm"])
    channels = r.randint(1, 4)
    shape = (r.randint(1, 2), channels, *(r.randint(2, 4) for _ in range(r.choice([1, 2]))))
    if name in ("l2_norm", "local_response_norm"):
        shape = (r.randint(1, 2), channels, r.randint(1, 4), r.randint(1, 4))
    gamma, beta, mean = (_normal(n, channels) for _ in range(3))
    variance = np.square(_normal(n, channels)) + np.float32(0.1)
    if name == "batch_norm":
        return Case(
            name,
            shape,
            lambda x: mb.batch_norm(
                x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=1e-3
            ),
            lambda x: _torch(F.batch_norm, x, mean, variance, gamma, beta, eps=1e-3),
        )
    if name == "instance_norm":
        return Case(
            name,
            shape,
            lambda x: mb.instance_norm(x=x, gamma=gamma, beta=beta, epsilon=1e-3),
            lambda x: (
                _torch(F.instance_norm, x, weight=None, eps=1e-3)
                * gamma.reshape(-1, *[1] * (len(shape) - 2))
                + beta.reshape(-1, *[1] * (len(shape) - 2))
            ),
        )
    if name == "l2_norm":
        return Case(
            name,
            shape,
            lambda x: mb.l2_norm(x=x, epsilon=1e-3),
            lambda x: x / np.sqrt(np.square(x).sum((1, 2, 3), keepdims=True) + 1e-3),
        )
    size, k = r.choice([1, 3, 5]), r.uniform(0.5, 2)
    return Case(
        name,
        shape,
        lambda x: mb.local_response_norm(x=x, size=size, alpha=0.5, beta=0.75, k=k),
        lambda x: _torch(F.local_response_norm, x, size, alpha=0.5, beta=0.75, k=k),
    )


def attention(r: random.Random, n: Numbers) -> Case:
    batch, heads, queries, keys, width = (r.randint(1, 3) for _ in range(5))
    key, value = _normal(n, batch, heads, keys, width), _normal(n, batch, heads, keys, width)
    mask = r.choice([None, "float", "bool"])
    given: dict[str, Any] = {}
    if mask == "float":
        given["attn_mask"] = _normal(n, queries, keys)
    if mask == "bool":
        given["attn_mask"] = n.random((queries, keys)) < 0.7
        given["attn_mask"][:, 0] = True  # a row of nothing but False is defined nowhere

    return Case(
        "scaled_dot_product_attention",
        (batch, heads, queries, width),
        lambda x: mb.scaled_dot_product_attention(query=x, key=key, value=value, **given),
        lambda x: _torch(F.scaled_dot_product_attention, x, key, value, *given.values()),
        ct.target.iOS18,
    )


def product(r: random.Random, n: Numbers) -> Case:
    a, b, c, batch = (r.randint(1, 4) for _ in range(4))
    kind = r.choice(["linear", "matmul", "einsum"])
    if kind == "linear":
        weight, bias = _normal(n, c, b), _normal(n, c)
        return Case(
            kind,
            (batch, a, b),
            lambda x: mb.linear(x=x, weight=weight, bias=bias),
            lambda x: x @ weight.T + bias,
        )
    if kind == "einsum":
        y, equation = (
            (_normal(n, c, b, 2), "abc,cbd->abd")
            if r.random() < 0.5
            else (_normal(n, batch, c, a, 2), "abcd,adce->abce")
        )
        if equation == "abc,cbd->abd":
            return Case(
                kind,
                (a, b, c),
                lambda x: mb.einsum(values=(x, y), equation=equation),
                lambda x: np.einsum(equation, x, y),
            )
        return Case(
            kind,
            (batch, b, a, c),
            lambda x: mb.einsum(values=(x, y), equation=equation),
            lambda x: np.einsum(equation, x, y),
        )
    left, right = r.random() < 0.5, r.random() < 0.5
    y = _normal(n, *((c, b) if right else (b, c)))
    return Case(
        kind,
        (batch, b, a) if left else (batch, a, b),
        lambda x: mb.matmul(x=x, y=y, transpose_x=left, transpose_y=right),
        lambda x: (x.swapaxes(-1, -2) if left else x) @ (y.T if right else y),
    )


# -- images ----------------------------------------------------------------------------------------


def image(r: random.Random, n: Numbers) -> Case:
    shape = (r.randint(1, 2), r.randint(1, 2), r.randint(2, 5), r.randint(2, 5))
    height, width = r.randint(2, 8), r.randint(2, 8)
    kind = r.choice(["nearest", "upsample", "bilinear", "resize", "resample", "affine", "crop"])
    by = [r.randint(1, 3), r.randint(1, 3)]
    if kind == "nearest":
        return Case(
            "upsample_nearest_neighbor",
            shape,
            lambda x: mb.upsample_nearest_neighbor(
                x=x, scale_factor_height=by[0], scale_factor_width=by[1]
            ),
            lambda x: x.repeat(by[0], 2).repeat(by[1], 3),
        )
    corners = r.random() < 0.5
    if kind == "upsample":
        return Case(
            "upsample_bilinear",
            shape,
            lambda x: mb.upsample_bilinear(
                x=x,
                scale_factor_height=by[0],
                scale_factor_width=by[1],
                align_corners=corners,
                **({} if corners else {"half_pixel_centers": True}),
            ),
            lambda x: _torch(
                F.interpolate,
                x,
                [shape[2] * by[0], shape[3] * by[1]],
                mode="bilinear",
                align_corners=corners,
            ),
        )
    if kind in ("bilinear", "resize"):
        mode = "STRICT_ALIGN_CORNERS" if corners else "UNALIGN_CORNERS"

        def truth(x: Array) -> Any:
            return _torch(F.interpolate, x, [height, width], mode="bilinear", align_corners=corners)

        if kind == "bilinear":
            return Case(
                "resize_bilinear",
                shape,
                lambda x: mb.resize_bilinear(
                    x=x, target_size_height=height, target_size_width=width, sampling_mode=mode
                ),
                truth,
            )
        return Case(
            "resize",
            shape,
            lambda x: mb.resize(
                x=x,
                shape=[height, width],
                resized_dims=np.uint32(2),
                interpolation_mode="LINEAR",
                sampling_mode=mode,
            ),
            truth,
        )
    sampling, padding = r.choice(["bilinear", "nearest"]), r.choice(["constant", "border"])
    fill = {"constant": "zeros", "border": "border"}[padding]
    shared = {
        "sampling_mode": "bilinear" if kind == "affine" else sampling,
        "padding_mode": "constant" if kind == "affine" else padding,
        "padding_value": 0.0,
        "coordinates_mode": "normalized_minus_one_to_one",
        "align_corners": corners,
    }
    if kind == "resample":
        grid = n.uniform(-1.3, 1.3, (shape[0], height, width, 2)).astype(np.float32)
        return Case(
            "resample",
            shape,
            lambda x: mb.resample(x=x, coordinates=grid, **shared),
            lambda x: _torch(
                F.grid_sample, x, grid, mode=sampling, padding_mode=fill, align_corners=corners
            ),
        )
    if kind == "affine":
        matrix = _normal(n, shape[0], 6)

        def moved(x: Array) -> Any:
            size = [*x.shape[:2], height, width]
            theta = torch.from_numpy(matrix).reshape(-1, 2, 3)
            grid = F.affine_grid(theta, size, align_corners=corners)
            return F.grid_sample(torch.from_numpy(x), grid, align_corners=corners).numpy()

        return Case(
            "affine",
            shape,
            lambda x: mb.affine(
                x=x, transform_matrix=matrix, output_height=height, output_width=width, **shared
            ),
            moved,
        )
    top, left = r.randint(0, shape[2] - 1), r.randint(0, shape[3] - 1)
    return Case(
        "crop",
        shape,
        lambda x: mb.crop(x=x, crop_height=[top, 0], crop_width=[left, 0]),
        lambda x: x[:, :, top:, left:],
    )


# -- scatter, gather, order ------------------------------------------------------------------------

_MODES: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": np.maximum,
    "min": np.minimum,
    "update": lambda _a, b: b,
}


def scatter(r: random.Random, n: Numbers) -> Case:
    name = r.choice(["scatter", "scatter_along_axis", "scatter_nd"])
    shape = tuple(r.randint(1, 4) for _ in range(r.randint(2, 3)))
    mode = r.choice(list(_MODES))
    axis = r.randrange(len(shape))
    size = shape[axis]
    if name == "scatter_nd":
        depth = r.randint(1, len(shape))
        places = list(itertools.product(*(range(s) for s in shape[:depth])))
        chosen = r.sample(places, r.randint(1, len(places)))
        indices = np.array(chosen, np.int32)
        updates = n.uniform(0.5, 2, (len(chosen), *shape[depth:])).astype(np.float32)

        def at(x: Array) -> Array:
            out = x.copy()
            for place, value in zip(chosen, updates, strict=True):
                out[place] = _MODES[mode](out[place], value)
            return out

        return Case(
            name,
            shape,
            lambda x: mb.scatter_nd(data=x, indices=indices, updates=updates, mode=mode),
            at,
        )
    if name == "scatter":
        indices = np.array(r.sample(range(size), r.randint(1, size)), np.int32)
        moved = (*shape[:axis], len(indices), *shape[axis + 1 :])
        updates = n.uniform(0.5, 2, moved).astype(np.float32)

        def along(x: Array) -> Array:
            out = x.copy()
            for k, i in enumerate(indices):
                place = (slice(None),) * axis + (i,)
                out[place] = _MODES[mode](out[place], updates.take(k, axis))
            return out

        return Case(
            name,
            shape,
            lambda x: mb.scatter(data=x, indices=indices, updates=updates, axis=axis, mode=mode),
            along,
        )
    count = r.randint(1, size)
    order = np.argsort(n.random(shape), axis).astype(np.int32)  # no index twice along the axis
    indices = order.take(range(count), axis)
    updates = n.uniform(0.5, 2, indices.shape).astype(np.float32)

    def each(x: Array) -> Array:
        out = x.copy()
        for place in np.ndindex(indices.shape):
            to = (*place[:axis], indices[place], *place[axis + 1 :])
            out[to] = _MODES[mode](out[to], updates[place])
        return out

    return Case(
        name,
        shape,
        lambda x: mb.scatter_along_axis(
            data=x, indices=indices, updates=updates, axis=axis, mode=mode
        ),
        each,
    )


def gather(r: random.Random, n: Numbers) -> Case:
    shape = tuple(r.randint(1, 4) for _ in range(r.randint(2, 3)))
    if r.random() < 0.5:
        axis = r.randrange(len(shape))
        indices = n.integers(0, shape[axis], (*shape[:axis], 3, *shape[axis + 1 :]), np.int32)
        return Case(
            "gather_along_axis",
            shape,
            lambda x: mb.gather_along_axis(x=x, indices=indices, axis=axis),
            lambda x: np.take_along_axis(x, indices, axis),
        )
    depth = r.randint(1, len(shape))
    indices = np.stack([n.integers(0, s, (2, 3), np.int32) for s in shape[:depth]], -1)
    return Case(
        "gather_nd",
        shape,
        lambda x: mb.gather_nd(x=x, indices=indices),
        lambda x: x[tuple(np.moveaxis(indices, -1, 0))],
    )


def order(r: random.Random, n: Numbers) -> Case:
    shape = tuple(r.randint(1, 5) for _ in range(r.randint(1, 3)))
    axis = r.randrange(-len(shape), len(shape))
    kind = r.choice(["topk", "one_hot", "non_zero", "argmax"])
    if kind == "topk":
        k, ascending = r.randint(1, shape[axis]), r.random() < 0.5
        return Case(
            kind,
            shape,
            lambda x: mb.topk(x=x, k=k, axis=axis, ascending=ascending)[0],
            lambda x: torch.topk(torch.from_numpy(x), k, axis, not ascending).values.numpy(),
        )
    if kind == "one_hot":
        size = r.randint(2, 5)
        return Case(
            kind,
            shape,
            lambda x: mb.one_hot(
                indices=mb.cast(x=mb.clip(x=x, alpha=0.0, beta=size - 1.0), dtype="int32"),
                one_hot_vector_size=size,
                on_value=2.0,
                off_value=-1.0,
            ),
            lambda x: np.where(np.eye(size)[np.clip(x, 0, size - 1).astype(int)] > 0, 2.0, -1.0),
        )
    if kind == "non_zero":
        return Case(
            kind,
            shape,
            lambda x: mb.cast(x=mb.non_zero(x=mb.relu(x=x)), dtype="fp32"),
            lambda x: np.argwhere(np.maximum(x, 0)),
        )
    return Case(
        "reduce_argmax",
        shape,
        lambda x: mb.cast(x=mb.reduce_argmax(x=x, axis=axis, keep_dims=True), dtype="fp32"),
        lambda x: x.argmax(axis, keepdims=True),
    )


# -- moves -----------------------------------------------------------------------------------------


def join(r: random.Random, n: Numbers) -> Case:
    shape = tuple(r.randint(1, 4) for _ in range(r.randint(1, 3)))
    axis = r.randrange(len(shape))
    kind = r.choice(["concat", "interleave", "stack", "split", "select", "where"])
    if kind in ("concat", "interleave", "stack"):
        y = _normal(n, *shape)
        if kind == "stack":
            return Case(
                kind,
                shape,
                lambda x: mb.stack(values=(x, y), axis=axis),
                lambda x: np.stack([x, y], axis),
            )
        if kind == "concat":
            return Case(
                kind,
                shape,
                lambda x: mb.concat(values=(x, y), axis=axis),
                lambda x: np.concatenate([x, y], axis),
            )
        doubled = (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
        return Case(
            "concat",
            shape,
            lambda x: mb.concat(values=(x, y), axis=axis, interleave=True),
            lambda x: np.stack([x, y], axis + 1).reshape(doubled),
        )
    if kind == "split":
        wide = (*shape[:axis], shape[axis] + 3, *shape[axis + 1 :])
        sizes = [shape[axis], 1, 2]
        which = r.randrange(3)
        edges = [0, shape[axis], shape[axis] + 1, shape[axis] + 3]
        return Case(
            kind,
            wide,
            lambda x: mb.split(x=x, split_sizes=sizes, axis=axis)[which],
            lambda x: x.take(range(edges[which], edges[which + 1]), axis),
        )
    y = _normal(n, *shape)
    return Case(
        "select",
        shape,
        lambda x: mb.select(cond=mb.greater(x=x, y=0.1), a=x, b=y),
        lambda x: np.where(x > np.float32(0.1), x, y),
    )


def blocks(r: random.Random, n: Numbers) -> Case:
    kind = r.choice(
        [
            "pixel_shuffle",
            "pixel_unshuffle",
            "space_to_depth",
            "depth_to_space",
            "space_to_batch",
            "batch_to_space",
            "sliding_windows",
            "reverse_sequence",
            "slice_update",
            "reshape_like",
        ]
    )
    b, c, h, w = r.randint(1, 2), r.randint(1, 2), r.randint(1, 3), r.randint(1, 3)
    s = r.randint(2, 3)
    if kind == "pixel_shuffle":
        return Case(
            kind,
            (b, c * s * s, h, w),
            lambda x: mb.pixel_shuffle(x=x, upscale_factor=s),
            lambda x: _torch(F.pixel_shuffle, x, s),
        )
    if kind == "pixel_unshuffle":
        return Case(
            kind,
            (b, c, h * s, w * s),
            lambda x: mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(s)),
            lambda x: _torch(F.pixel_unshuffle, x, s),
        )
    if kind == "space_to_depth":  # blocks in front of channels, as TensorFlow has it
        return Case(
            kind,
            (b, c, h * s, w * s),
            lambda x: mb.space_to_depth(x=x, block_size=s),
            lambda x: (
                x.reshape(b, c, h, s, w, s).transpose(0, 3, 5, 1, 2, 4).reshape(b, c * s * s, h, w)
            ),
        )
    if kind == "depth_to_space":
        return Case(
            kind,
            (b, c * s * s, h, w),
            lambda x: mb.depth_to_space(x=x, block_size=s),
            lambda x: (
                x.reshape(b, s, s, c, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(b, c, h * s, w * s)
            ),
        )
    if kind == "space_to_batch":
        return Case(
            kind,
            (b, c, h * s, w * s),
            lambda x: mb.space_to_batch(
                x=x, block_shape=[s, s], paddings=np.zeros((2, 2), np.int32)
            ),
            lambda x: (
                x.reshape(b, c, h, s, w, s).transpose(3, 5, 0, 1, 2, 4).reshape(s * s * b, c, h, w)
            ),
        )
    if kind == "batch_to_space":
        return Case(
            kind,
            (s * s * b, c, h, w),
            lambda x: mb.batch_to_space(x=x, block_shape=[s, s], crops=np.zeros((2, 2), np.int32)),
            lambda x: (
                x.reshape(s, s, b, c, h, w).transpose(2, 3, 4, 0, 5, 1).reshape(b, c, h * s, w * s)
            ),
        )
    if kind == "sliding_windows":
        length, size, stride = r.randint(3, 7), r.randint(1, 3), r.randint(1, 2)
        starts = range(0, length - size + 1, stride)
        return Case(
            kind,
            (b, length, c),
            lambda x: mb.sliding_windows(x=x, axis=1, size=size, stride=stride),
            lambda x: np.stack([x[:, i : i + size] for i in starts], 1),
        )
    if kind == "reverse_sequence":
        length = r.randint(1, 5)
        lengths = np.array([r.randint(1, length) for _ in range(b)], np.int32)

        def turned(x: Array) -> Array:
            out = x.copy()
            for i, stop in enumerate(lengths):
                out[i, :stop] = x[i, :stop][::-1]
            return out

        return Case(
            kind,
            (b, length, c),
            lambda x: mb.reverse_sequence(x=x, lengths=lengths, seq_axis=1, batch_axis=0),
            turned,
        )
    if kind == "slice_update":
        rows, start = r.randint(2, 5), 0
        start = r.randrange(rows)
        update = _normal(n, rows - start, w)

        def written(x: Array) -> Array:
            out = x.copy()
            out[start:] = update
            return out

        return Case(
            kind,
            (rows, w),
            lambda x: mb.slice_update(x=x, update=update, begin=[start, 0], end=[rows, w]),
            written,
            ct.target.iOS18,
        )
    other = _normal(n, h * w, 1)
    return Case(
        "reshape_like",
        (h, w),
        lambda x: mb.reshape_like(
            x=x, ref_tensors=(other,), begins=[0], ends=[2], end_masks=[False]
        ),
        lambda x: x.reshape(h * w, 1),
        ct.target.iOS16,
    )


# -- quantization, control flow, lists -------------------------------------------------------------


def quantized(r: random.Random, n: Numbers) -> Case:
    shape = (r.randint(1, 3), r.randint(1, 4))
    by_axis = r.random() < 0.5
    scale = np.abs(_normal(n, shape[1])) + np.float32(0.05) if by_axis else np.float32(0.1)
    signed = r.random() < 0.5
    low, high = (-128, 127) if signed else (0, 255)
    kind = np.int8 if signed else np.uint8
    zero = n.integers(low // 2, high // 2, shape[1] if by_axis else (), kind)
    zero = zero if by_axis else kind(zero)
    options: dict[str, Any] = {"scale": scale, "zero_point": zero}
    if by_axis:
        options["axis"] = 1

    def truth(x: Array) -> Any:
        q = np.clip(np.rint(x / scale).astype(np.float32) + zero, low, high)
        return (q - np.float32(zero)) * scale

    return Case(
        "quantize",
        shape,
        lambda x: mb.dequantize(
            input=mb.quantize(input=x, output_dtype="int8" if signed else "uint8", **options),
            **options,
        ),
        truth,
    )


def compressed(r: random.Random, n: Numbers) -> Case:
    rows, columns = r.randint(1, 4), 2 * r.randint(1, 3)
    kind = r.choice(["affine", "sparse", "blockwise", "lut", "cast"])
    opset = ct.target.iOS16 if kind in ("affine", "sparse", "cast") else ct.target.iOS18
    if kind == "cast":
        half = _normal(n, rows, columns).astype(np.float16)
        return Case(
            "constexpr_cast",
            (rows, columns),
            lambda x: mb.add(x=x, y=mb.constexpr_cast(source_val=half, output_dtype="fp32")),
            lambda x: x + half.astype(np.float32),
            opset,
        )
    if kind == "affine":
        data = n.integers(-100, 100, (rows, columns), np.int8)
        scale, zero = np.abs(_normal(n, rows)) + np.float32(0.01), np.int8(r.randint(-5, 5))
        return Case(
            "constexpr_affine_dequantize",
            (rows, columns),
            lambda x: mb.add(
                x=x,
                y=mb.constexpr_affine_dequantize(
                    quantized_data=data, zero_point=zero, scale=scale, axis=0
                ),
            ),
            lambda x: x + (data.astype(np.float32) - zero) * scale[:, None],
            opset,
        )
    if kind == "sparse":
        mask = n.random((rows, columns)) < 0.5
        mask[0, 0] = True
        values = _normal(n, int(mask.sum()))
        dense = np.zeros((rows, columns), np.float32)
        dense[mask] = values
        bits = np.packbits(mask.reshape(-1), bitorder="little")
        return Case(
            "constexpr_sparse_to_dense",
            (rows, columns),
            lambda x: mb.add(
                x=x,
                y=mb.constexpr_sparse_to_dense(
                    nonzero_data=values, mask=bits, shape=np.uint32([rows, columns])
                ),
            ),
            lambda x: x + dense,
            opset,
        )
    if kind == "blockwise":
        data = n.integers(-100, 100, (rows, columns), np.int8)
        scale = np.abs(_normal(n, rows, columns // 2)) + np.float32(0.01)
        offset = n.integers(-5, 5, (rows, columns // 2), np.int8)
        return Case(
            "constexpr_blockwise_shift_scale",
            (rows, columns),
            lambda x: mb.add(
                x=x,
                y=mb.constexpr_blockwise_shift_scale(data=data, scale=scale, offset=offset),
            ),
            lambda x: (
                x
                + (data.astype(np.float32) - offset.repeat(2, 1).astype(np.float32))
                * scale.repeat(2, 1)
            ),
            opset,
        )
    indices = n.integers(0, 4, (rows, columns), np.uint8)
    lut = _normal(n, 1, 1, 4, 1)

    def from_table(x: Array) -> Array:
        return x + lut.reshape(-1)[indices]

    return Case(
        "constexpr_lut_to_dense",
        (rows, columns),
        lambda x: mb.add(
            x=x,
            y=mb.constexpr_lut_to_dense(
                indices=indices.astype(types.np_uint2_dtype), lut=lut, vector_axis=None
            ),
        ),
        from_table,
        opset,
    )


def control(r: random.Random, n: Numbers) -> Case:
    width = r.randint(1, 4)
    kind = r.choice(["cond", "while_loop", "list"])
    if kind == "cond":
        return Case(
            kind,
            (width,),
            lambda x: mb.cond(
                pred=mb.squeeze(x=mb.greater(x=mb.reduce_sum(x=x, keep_dims=True), y=0.0)),
                _true_fn=lambda: mb.mul(x=x, y=2.0),
                _false_fn=lambda: mb.exp(x=x),
            ),
            lambda x: x * 2 if x.sum() > 0 else np.exp(x),
        )
    steps = r.randint(1, 4)
    if kind == "while_loop":
        return Case(
            kind,
            (width,),
            lambda x: mb.while_loop(
                _cond=lambda i, _v: mb.less(x=i, y=steps),
                _body=lambda i, v: (mb.add(x=i, y=1), mb.add(x=mb.mul(x=v, y=0.5), y=x)),
                loop_vars=(np.int32(0), x),
            )[1],
            lambda x: x * sum(0.5**k for k in range(steps + 1)),
        )

    def listed(x: Any) -> Any:
        held = mb.make_list(init_length=steps, elem_shape=(width,), dynamic_length=False)
        for i in range(steps):
            held = mb.list_write(ls=held, index=i, value=mb.mul(x=x, y=float(i + 1)))
        picked = mb.list_gather(ls=held, indices=[steps - 1, 0])
        return mb.add(x=picked, y=mb.list_read(ls=held, index=steps // 2))

    return Case(
        "list_gather",
        (width,),
        listed,
        lambda x: np.stack([x * steps, x]) + x * (steps // 2 + 1),
    )


def made(r: random.Random, n: Numbers) -> Case:
    shape = tuple(r.randint(1, 4) for _ in range(2))
    kind = r.choice(["fill", "fill_like", "range_1d", "logic", "prelu", "parametric", "squeeze"])
    value = r.uniform(-2, 2)
    if kind == "fill":
        return Case(
            kind,
            shape,
            lambda x: mb.add(x=x, y=mb.fill(shape=mb.shape(x=x), value=value)),
            lambda x: x + np.float32(value),
        )
    if kind == "fill_like":
        return Case(
            kind,
            shape,
            lambda x: mb.add(x=x, y=mb.fill_like(ref_tensor=x, value=value)),
            lambda x: x + np.float32(value),
            ct.target.iOS16,
        )
    if kind == "range_1d":
        return Case(
            kind,
            shape,
            lambda x: mb.range_1d(start=mb.reduce_min(x=x), end=mb.reduce_max(x=x), step=0.37),
            lambda x: np.arange(x.min(), x.max(), np.float32(0.37), dtype=np.float32),
        )
    if kind == "logic":
        name = r.choice(["logical_and", "logical_or", "logical_xor"])
        return Case(
            name,
            shape,
            lambda x: mb.cast(
                x=getattr(mb, name)(
                    x=mb.greater(x=x, y=0.0), y=mb.logical_not(x=mb.less(x=x, y=value))
                ),
                dtype="fp32",
            ),
            lambda x: getattr(np, name)(x > 0, ~(x < np.float32(value))),
        )
    alpha = np.abs(_normal(n, shape[1])) + np.float32(0.1)
    beta = np.abs(_normal(n, shape[1])) + np.float32(0.1)
    deep = (*shape, 3, 2)
    spread = (1, -1, 1, 1)
    if kind == "prelu":
        return Case(
            kind,
            deep,
            lambda x: mb.prelu(x=x, alpha=alpha),
            lambda x: np.where(x > 0, x, x * alpha.reshape(spread)),
        )
    if kind == "parametric":
        return Case(
            "softplus_parametric",
            deep,
            lambda x: mb.softplus_parametric(x=x, alpha=alpha, beta=beta),
            lambda x: alpha.reshape(spread) * np.log1p(np.exp(beta.reshape(spread) * x)),
        )
    return Case(
        kind,
        (1, *shape, 1),
        lambda x: mb.squeeze(x=x, axes=[0, -1]),
        lambda x: x[0, ..., 0],
    )


FAMILIES: list[Callable[[random.Random, Numbers], Case]] = [
    conv,
    conv_transpose,
    pool,
    recurrent,
    normalization,
    attention,
    product,
    image,
    scatter,
    gather,
    order,
    join,
    blocks,
    quantized,
    compressed,
    control,
    made,
]
