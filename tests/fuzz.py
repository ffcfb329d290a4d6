"""Random small programs, the executor against coremltools' own value inference (numpy).

python -m tests.fuzz [--count 10000] [--seed N]

Half the programs are one op of a family in :mod:`tests.fuzz_families`, which brings its own truth.
The others are built twice with coremltools' builder: with an input, which the executor runs, and
with a constant in its place, which the builder folds where it knows the op's value. Where it does
not, the same op in torch serves as truth if there is one (``TORCH``); else the program only has to
run. What the builder refuses is counted and passed over; any error from the executor that is not
one of mpsearch's own is a failure.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mpsearch import Executor, MpsearchError
from mpsearch._ct import ct, quiet
from tests.fuzz_families import FAMILIES

with quiet():
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program

Call = tuple[str, dict[str, Any]]

UNARY = [
    "abs",
    "acos",
    "asin",
    "atan",
    "atanh",
    "ceil",
    "cos",
    "cosh",
    "erf",
    "exp",
    "exp2",
    "floor",
    "inverse",
    "log",
    "relu",
    "relu6",
    "round",
    "rsqrt",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "sinh",
    "softplus",
    "softsign",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "identity",
]
SCALED = {
    "clamped_relu": 2,
    "elu": 1,
    "leaky_relu": 1,
    "linear_activation": 2,
    "scaled_tanh": 2,
    "sigmoid_hard": 2,
    "thresholded_relu": 1,
    "threshold": 1,
}
BINARY = ["add", "sub", "mul", "real_div", "floor_div", "mod", "pow", "maximum", "minimum"]
COMPARE = ["equal", "greater", "greater_equal", "less", "less_equal", "not_equal"]
REDUCE = [
    "reduce_l1_norm",
    "reduce_l2_norm",
    "reduce_log_sum",
    "reduce_log_sum_exp",
    "reduce_max",
    "reduce_mean",
    "reduce_min",
    "reduce_prod",
    "reduce_sum",
    "reduce_sum_square",
]

ORDERS = {"argsort", "reduce_argmax", "reduce_argmin", "reduce_max", "reduce_min"}

#: Truth for ops that the builder does not fold.
TORCH: dict[str, Callable[..., torch.Tensor]] = {
    "softmax": lambda x, axis: torch.softmax(x, axis),
    "gelu": lambda x, mode: F.gelu(x, approximate="none" if mode == "EXACT" else "tanh"),
    "layer_norm": lambda x, axes, epsilon: (
        (x - x.mean(axes, keepdim=True))
        / torch.sqrt(x.var(axes, unbiased=False, keepdim=True) + epsilon)
    ),
    "silu": F.silu,
    "softplus": F.softplus,
    "cumsum": lambda x, axis: torch.cumsum(x, axis),
    "reverse": lambda x, axes: torch.flip(x, axes),
    "tile": lambda x, reps: torch.tile(x, tuple(reps)),
    "argsort": lambda x, axis, ascending: torch.argsort(
        x, axis, descending=not ascending, stable=True
    ),
}


def call(r: random.Random, shape: tuple[int, ...]) -> Call:
    """A random op for a tensor of this shape, with its parameters."""
    rank = len(shape)
    axis = r.randrange(-rank, rank)
    kind = r.choice(KINDS)
    if kind == "unary" or (kind == "band_part" and rank < 2):
        return r.choice(UNARY), {}
    if kind == "scaled":
        name = r.choice(list(SCALED))
        values = sorted(r.uniform(0.1, 2) for _ in range(2))
        return name, dict(zip(["alpha", "beta"][: SCALED[name]], values, strict=False))
    if kind == "clip":
        low = r.uniform(-1, 0.5)
        return "clip", {"alpha": low, "beta": low + r.uniform(0, 2)}
    if kind in ("binary", "compare"):
        other = tuple(n if r.random() < 0.7 else 1 for n in shape[r.randrange(rank + 1) :])
        y = np.array([r.uniform(0.25, 3) for _ in range(int(np.prod(other)))], np.float32)
        return r.choice(BINARY if kind == "binary" else COMPARE), {"y": y.reshape(other)}
    if kind == "reduce":
        axes = r.sample(range(rank), r.randint(1, rank))
        axes = [a - rank if r.random() < 0.3 else a for a in axes]
        return r.choice(REDUCE), {"axes": axes, "keep_dims": r.random() < 0.5}
    if kind == "arg":
        name = r.choice(["reduce_argmax", "reduce_argmin"])
        return name, {"axis": axis, "keep_dims": r.random() < 0.5}
    if kind == "transpose":
        return "transpose", {"perm": r.sample(range(rank), rank)}
    if kind == "reshape":
        sizes = list(shape)
        r.shuffle(sizes)
        if len(sizes) > 1 and r.random() < 0.5:
            sizes = [sizes[0] * sizes[1], *sizes[2:]]
        if r.random() < 0.3:
            sizes[r.randrange(len(sizes))] = -1
        return "reshape", {"shape": sizes}
    if kind == "expand_dims":
        return "expand_dims", {"axes": [r.randrange(-rank - 1, rank + 1)]}
    if kind == "slice_by_index":
        bounds = [_slice(r, n) for n in shape]
        names = ("begin", "end", "stride", "begin_mask", "end_mask", "squeeze_mask")
        return kind, {name: [b[i] for b in bounds] for i, name in enumerate(names)}
    if kind == "slice_by_size":
        begin = [r.randrange(n) for n in shape]
        size = [r.choice([-1, r.randint(1, n - b)]) for n, b in zip(shape, begin, strict=True)]
        return "slice_by_size", {"begin": begin, "size": size}
    if kind == "pad":
        pads = [r.randint(0, 2) for _ in range(2 * r.randint(1, min(rank, 2)))]
        mode = r.choice(["constant", "reflect", "replicate"])
        return "pad", {"pad": pads, "mode": mode, "constant_val": r.uniform(-1, 1)}
    if kind == "gather":
        count = r.randint(1, 4)
        return "gather", {"indices": [r.randrange(shape[axis]) for _ in range(count)], "axis": axis}
    if kind == "matmul":
        y = np.array([r.gauss(0, 1) for _ in range(shape[-1] * 3)], np.float32)
        return "matmul", {"y": y.reshape(shape[-1], 3)}
    if kind == "tile":
        return "tile", {"reps": [r.randint(1, 2) for _ in shape]}
    if kind == "reverse":
        return "reverse", {"axes": r.sample(range(rank), r.randint(1, rank))}
    if kind == "band_part":
        return "band_part", {"lower": r.randint(-1, 2), "upper": r.randint(-1, 2)}
    if kind == "flatten2d":
        return "flatten2d", {"axis": axis}
    if kind == "cumsum":
        return "cumsum", {"axis": axis}
    if kind == "softmax":
        return "softmax", {"axis": axis}
    if kind == "gelu":
        return "gelu", {"mode": r.choice(["EXACT", "TANH_APPROXIMATION"])}
    if kind == "layer_norm":
        return "layer_norm", {"axes": sorted(r.sample(range(rank), 1)), "epsilon": 1e-3}
    return "argsort", {"axis": axis, "ascending": r.random() < 0.5}


def _slice(r: random.Random, size: int) -> tuple[int, int, int, bool, bool, bool]:
    """begin, end, stride, begin_mask, end_mask, squeeze_mask that take something of an axis."""
    while True:
        begin, end, step = (
            r.randrange(-size, size),
            r.randrange(-size, size + 1),
            r.choice([1, 2, -1]),
        )
        masks = (r.random() < 0.3, r.random() < 0.5)
        start, stop = None if masks[0] else begin, None if masks[1] else end
        if len(range(*slice(start, stop, step).indices(size))):
            return begin, end, step, *masks, r.random() < 0.1


KINDS = [
    "unary",
    "unary",
    "unary",
    "scaled",
    "clip",
    "binary",
    "binary",
    "compare",
    "reduce",
    "arg",
    "transpose",
    "reshape",
    "expand_dims",
    "slice_by_index",
    "slice_by_size",
    "pad",
    "gather",
    "matmul",
    "tile",
    "reverse",
    "band_part",
    "flatten2d",
    "cumsum",
    "softmax",
    "gelu",
    "layer_norm",
    "argsort",
]


def apply(name: str, parameters: dict[str, Any], x: Any) -> Any:
    """The op in MIL; results that are no floats are cast, so that the next op can take them."""
    out = getattr(mb, name)(x=x, **parameters)
    return out if out.dtype is x.dtype else mb.cast(x=out, dtype="fp32")


#: What coremltools' builder raises for what it refuses.
REFUSALS = (
    ValueError,
    RuntimeError,
    AssertionError,
    TypeError,
    IndexError,
    ZeroDivisionError,
    NotImplementedError,
)


def one(seed: int, covered: collections.Counter[str] | None = None) -> str:
    """Run one program; what became of it: folded, torch, family, ran or refused.

    ``covered`` counts the op types judged against a truth.

    Raises
    ------
    AssertionError
        If the executor's result is wrong, or fails where coremltools does not.
    """
    r = random.Random(seed)
    numbers = np.random.default_rng(seed)
    case = r.choice(FAMILIES)(r, numbers) if r.random() < 0.5 else None
    if case is None:
        shape = tuple(r.randint(1, 5) for _ in range(r.randint(1, 4)))
        x = numbers.normal(0, 1.5, shape).astype(np.float32)
    else:
        x = numbers.normal(0, 1, case.shape).astype(np.float32)
    calls: list[Call] = []
    opset = ct.target.iOS17 if case is None else case.opset
    program = Program()
    try:
        with Function({"x": mb.placeholder(x.shape)}, opset_version=opset) as function:
            var, steps = function.inputs["x"], []
            if case is not None:
                steps.append(mb.identity(x=case.build(var), name="y0"))
            else:
                for _ in range(r.randint(1, 3)):
                    calls.append(call(r, tuple(var.shape)))
                    var = apply(*calls[-1], var)
                    if any(n == 0 for n in var.shape):
                        return "refused"
                    steps.append(mb.identity(x=var, name=f"y{len(steps)}"))
            function.set_outputs(steps)
        program.add_function("main", function)
    except REFUSALS as error:
        # The families draw only what the documentation allows: a refusal is a slip in them.
        assert case is None, f"seed {seed}: {case and case.name}: {error}"
        return "refused"
    try:
        results = list(Executor(program).predict({"x": x}).values())
    except MpsearchError as error:
        raise AssertionError(f"seed {seed}: {case and case.name} {calls}: {error}") from error
    if case is not None:
        _agree(results[0], np.asarray(case.truth(x), np.float32), f"seed {seed}: {case.name}")
        if covered is not None:
            covered[case.name] += 1
        return "family"
    # Each op is judged on what the executor gave it, so that errors do not grow along the chain.
    kinds = set()
    for (name, parameters), before, got in zip(calls, [x, *results], results, strict=False):
        truth, kind = _truth(name, parameters, before)
        kinds.add(kind)
        if truth is not None:
            _agree(got, truth, f"seed {seed}: {name} {parameters} on {before.tolist()}")
            if covered is not None:
                covered[name] += 1
    return next(k for k in ("ran", "torch", "folded") if k in kinds)


def _agree(got: np.ndarray, truth: np.ndarray, where: str) -> None:
    truth = truth.reshape(1) if truth.ndim == 0 else truth
    assert got.shape == truth.shape, f"{where}: {got.shape}, expected {truth.shape}"
    assert np.allclose(got, truth, rtol=1e-4, atol=1e-5, equal_nan=True), (
        f"{where}: {got.tolist()}, expected {truth.tolist()}"
    )


def _truth(name: str, parameters: dict[str, Any], x: np.ndarray) -> tuple[np.ndarray | None, str]:
    if name in ORDERS and (np.isnan(x).any() or len(np.unique(x)) < x.size):
        return None, "ran"  # where NaN and equal values stand in an order is defined nowhere
    if name in ("band_part", "gelu") and not np.isfinite(x).all():
        # coremltools multiplies by 0 what band_part leaves out; torch's vector kernel makes NaN
        # of gelu(inf) where its scalar kernel keeps inf.
        return None, "ran"
    try:
        folded = _fold(name, parameters, x)
    except REFUSALS:
        return None, "ran"
    if folded is not None:
        return folded, "folded"
    if name in TORCH and np.isfinite(x).all():
        return TORCH[name](torch.from_numpy(x), **parameters).float().numpy(), "torch"
    return None, "ran"


def _fold(name: str, parameters: dict[str, Any], x: np.ndarray) -> np.ndarray | None:
    """The value that coremltools itself infers for the op on a constant."""
    with Function({"unused": mb.placeholder((1,))}, opset_version=ct.target.iOS17):
        var = apply(name, parameters, mb.const(val=x))
    return None if var.val is None else np.asarray(var.val, np.float32)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tally: collections.Counter[str] = collections.Counter()
    covered: collections.Counter[str] = collections.Counter()
    failures = []
    with quiet(), np.errstate(all="ignore"):
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            try:
                tally[one(seed, covered)] += 1
            except AssertionError as error:
                tally["failed"] += 1
                failures.append(str(error))
            if (seed - arguments.seed) % 500 == 499:
                ct.converters.mil.mil.Builder.name_count.clear()
    for failure in failures[:20]:
        print(failure[:600])
    print(dict(tally))
    print(f"{len(covered)} op types judged:", ", ".join(sorted(covered)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
