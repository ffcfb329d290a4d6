"""Random MIL programs of ops that powers of two pass through, and of ops that they do not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from mpsearch._ct import ct, quiet
from mpsearch.program.graph import Constant, Function, Ref
from mpsearch.scaling.exponents import Magnitudes

with quiet():
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

SHAPE = (2, 4, 4)
#: Choices that brute force follows at a time.
MOST = 50_000
#: A tensor and an exponent.
Pair = tuple[int, int]
#: The exponents that later ops see, or the multiplications that they find made.
Left = frozenset[Pair]


def program(seed: int, ops: int, few: bool = False):
    """A program of so many random ops on one input, all results of which may be read again.

    ``few`` leaves out what takes more than the input and one constant or result.
    """
    draw, numbers = random.Random(seed), np.random.default_rng(seed)

    def constant(*shape: int):
        return numbers.normal(0, 1, shape).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape=SHAPE)], opset_version=ct.target.iOS17)
    def made(x):
        known = [mb.mul(x=x, y=constant(4))]
        for _ in range(ops):
            known.append(_op(draw, constant, draw.choice(known), draw.choice(known), few))
        outputs = known[-1 - draw.randrange(2) :] if len(known) > 1 else known
        return tuple(mb.identity(x=v, name=f"y{i}") for i, v in enumerate(outputs))

    return made


def _op(draw, constant, x, y, few):
    simple = {
        "mul": lambda: mb.mul(x=x, y=y),
        "mul by a constant": lambda: mb.mul(x=x, y=constant(4)),
        "add": lambda: mb.add(x=x, y=y),
        "add a constant": lambda: mb.add(x=x, y=constant(4, 1)),
        "square": lambda: mb.square(x=x),
        "relu": lambda: mb.relu(x=x),
        "tanh": lambda: mb.tanh(x=x),
    }
    more = {
        "sub": lambda: mb.sub(x=x, y=y),
        "maximum": lambda: mb.maximum(x=x, y=y),
        "minimum": lambda: mb.minimum(x=x, y=constant(4)),
        "divide": lambda: mb.real_div(x=x, y=mb.add(x=mb.abs(x=y), y=np.float32(0.5))),
        "sqrt": lambda: mb.sqrt(x=mb.abs(x=x)),
        "rsqrt": lambda: mb.rsqrt(x=mb.square(x=x), epsilon=np.float32(0.25)),
        "inverse": lambda: mb.inverse(x=mb.square(x=x), epsilon=np.float32(0.5)),
        "pow 3": lambda: mb.pow(x=x, y=np.float32(3)),
        "pow -0.5": lambda: mb.pow(x=mb.add(x=mb.square(x=x), y=np.float32(1)), y=np.float32(-0.5)),
        "leaky": lambda: mb.leaky_relu(x=x, alpha=np.float32(0.125)),
        "clip": lambda: mb.clip(x=x, alpha=np.float32(-1.5), beta=np.float32(1.25)),
        "linear": lambda: mb.linear(x=x, weight=constant(4, 4), bias=constant(4)),
        "matmul": lambda: mb.matmul(x=x, y=y, transpose_y=True),
        "concat": lambda: mb.slice_by_index(
            x=mb.concat(values=[x, y], axis=1), begin=[0, 1, 0], end=[2, 5, 4]
        ),
        "transpose": lambda: mb.transpose(x=x, perm=[0, 2, 1]),
        "reshape": lambda: mb.reshape(x=mb.reshape(x=x, shape=[8, 4]), shape=SHAPE),
        "select": lambda: mb.select(cond=mb.greater(x=x, y=y), a=x, b=y),
        "mean": lambda: mb.sub(x=x, y=mb.reduce_mean(x=x, axes=[-1], keep_dims=True)),
        "sum": lambda: mb.add(x=x, y=mb.reduce_sum(x=x, axes=[1], keep_dims=True)),
        "norm": lambda: mb.add(x=x, y=mb.reduce_l2_norm(x=x, axes=[-1], keep_dims=True)),
        "sum of squares": lambda: mb.mul(
            x=x, y=mb.reduce_sum_square(x=x, axes=[-1], keep_dims=True)
        ),
        "largest": lambda: mb.sub(x=x, y=mb.reduce_max(x=x, axes=[-1], keep_dims=True)),
        "softmax": lambda: mb.softmax(x=x, axis=-1),
        "sign": lambda: mb.mul(x=mb.sign(x=x), y=y),
        "layer norm": lambda: mb.layer_norm(
            x=x, axes=[-1], gamma=constant(4), beta=constant(4), epsilon=np.float32(1e-3)
        ),
        "plain layer norm": lambda: mb.layer_norm(x=x, axes=[-1], epsilon=np.float32(1e-3)),
        "split": lambda: mb.concat(values=mb.split(x=x, num_splits=2, axis=2)[::-1], axis=2),
        "conv": lambda: mb.conv(x=x, weight=constant(4, 4, 1), bias=constant(4)),
        "pad": lambda: mb.slice_by_index(
            x=mb.pad(x=x, pad=[1, 0], mode="constant", constant_val=np.float32(0.75)),
            begin=[0, 0, 1],
            end=[2, 4, 5],
        ),
        "cast": lambda: mb.cast(x=mb.cast(x=x, dtype="int32"), dtype="fp32"),
    }
    known = simple if few else {**simple, **more}
    return known[draw.choice(sorted(known))]()


def floats(made, function: Function) -> list[int]:
    """Slots of float tensors that ops compute, in order."""
    kinds = {
        op.name: [v.dtype in (types.fp32, types.fp16) for v in op.outputs]
        for op in made.functions["main"].operations
    }
    return [
        slot
        for node in function.nodes
        for slot, is_float in zip(node.outputs, kinds[node.name], strict=True)
        if is_float
    ]


def magnitudes(seed: int, slots: list[int], inputs: list[int], most: int) -> dict[int, Magnitudes]:
    """Sizes that ask for exponents: some tensors leave FP16's range by up to ``most`` bits."""
    draw = random.Random(seed)
    sizes = dict.fromkeys(inputs, Magnitudes(1.0, 2.0**16, 0.25, 0.01))
    for slot in slots:
        bits = draw.choice([0, 0, *range(1, most + 1)])
        large = 2.0 ** (15.5 + bits) if bits else 1.0
        sizes[slot] = Magnitudes(large, 2.0**16, large / 4, large / 4)
    return sizes


def cheapest(
    function: Function, sizes: Mapping[int, Magnitudes], span: int, beyond: int, most: int = 10**9
) -> int:
    """What the best exponents from -span to span cost: all of them are tried.

    One for each multiplication that must be inserted, ``beyond`` for each result out of range that
    can have an exponent. For programs made with ``few``; written from the definitions of their ops.
    Of choices that leave the same exponents to the ops that follow, those are not followed that
    cost as much as another with what they have multiplied and it has not. Where all cost more than
    ``most``, that and 1.

    Raises MemoryError where there are too many choices to follow.
    """
    span_ = range(-span, span + 1)
    last = {s.slot: i for i, n in enumerate(function.nodes) for s in _refs(n)}
    ends = {ref.slot for ref in function.outputs.values() if isinstance(ref, Ref)}
    last |= dict.fromkeys(ends, len(function.nodes))

    def price(pairs: Iterable[Pair]) -> int:
        return sum(1 + beyond * _large(sizes, *pair) for pair in pairs)

    start = frozenset((slot, 0) for slot in function.inputs.values())
    costs: dict[Left, dict[Left, int]] = {start: {frozenset(): 0}}
    for i, node in enumerate(function.nodes):
        (out,) = node.outputs
        found: dict[Left, dict[Left, int]] = {}
        if sum(map(len, costs.values())) > MOST:
            raise MemoryError
        for exponents, choices in costs.items():
            k = dict(exponents)
            for chosen in (0,) if node.op_type == "tanh" else span_:
                k[out] = chosen
                left = frozenset((s, e) for s, e in k.items() if last.get(s, -1) > i)
                ways = _ways(node, list(node.fp32.inputs.items()), k, sizes, span_)
                large = beyond * (node.op_type != "tanh" and _large(sizes, out, chosen))
                for made, cost in choices.items():
                    for way in ways:
                        total = cost + large + price(way - made)
                        if total <= most:
                            kept = frozenset(p for p in made | way if last.get(p[0], -1) > i)
                            group = found.setdefault(left, {})
                            group[kept] = min(group.get(kept, total), total)
        costs = {left: _undominated(group, price) for left, group in found.items()}
    whole = [
        cost + price({(slot, 0) for slot in ends if dict(exponents)[slot]} - made)
        for exponents, choices in costs.items()
        for made, cost in choices.items()
    ]
    return min([*whole, most + 1])


def _undominated(
    group: Mapping[Left, int], price: Callable[[Iterable[Pair]], int]
) -> dict[Left, int]:
    """Without the choices that cost as much as another with the multiplications that it lacks."""
    kept: dict[Left, int] = {}
    for made, cost in sorted(group.items(), key=lambda item: item[1]):
        if all(other + price(made - has) > cost for has, other in kept.items()):
            kept[made] = cost
    return kept


def _refs(node) -> list[Ref]:
    return [source for source in node.fp32.inputs.values() if isinstance(source, Ref)]


def _large(sizes: Mapping[int, Magnitudes], slot: int, exponent: int) -> bool:
    return sizes[slot].most * 2.0**-exponent >= 2.0**16


def _ways(node, inputs, k, sizes, span) -> list[frozenset[tuple[int, int]]]:
    refs = [(name, s.slot) for name, s in inputs if isinstance(s, Ref)]
    constants = [name for name, s in inputs if isinstance(s, Constant) and name in ("x", "y")]
    out = k[node.outputs[0]]
    if node.op_type in ("relu", "identity"):
        wanted = [(out,)]
    elif node.op_type == "tanh":
        wanted = [(0,)]
    elif node.op_type == "square":
        wanted = [(out // 2,)] if out % 2 == 0 else []
    elif node.op_type == "add":
        wanted = [(out,) * len(refs)]
    elif constants:  # mul: the constant takes up what is missing
        wanted = [(u,) for u in span]
    else:
        wanted = [(u, out - u) for u in span]
    found = set()
    for exponents in wanted:
        way = frozenset(
            (slot, u) for (_, slot), u in zip(refs, exponents, strict=True) if u != k[slot]
        )
        found.add(way)
    return [way for way in found if not any(other < way for other in found)]
