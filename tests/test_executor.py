"""The executor: numerics profiles, states, control flow, MLModel's conventions.

That single ops are right is judged by Apple's tests (tests/conformance), not here.
"""

from __future__ import annotations

import functools
import sys
from itertools import product

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import mpsearch
from mpsearch._ct import ct, quiet
from mpsearch.buffers import same
from mpsearch.executor.loop import Schedule
from mpsearch.executor.runtime import Runtime
from mpsearch.numerics.profiles import PROFILES
from mpsearch.program.lowering import lower
from tests.models import Cache, net

with quiet():
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types


def package(build, precision="fp16", target="iOS17", **options):
    """The MLModel of a function built with coremltools' own builder."""
    with quiet():
        return ct.convert(
            build,
            source="milinternal",
            convert_to="mlprogram",
            compute_precision=getattr(
                ct.precision, "FLOAT16" if precision == "fp16" else "FLOAT32"
            ),
            minimum_deployment_target=getattr(ct.target, target),
            skip_model_load=True,
            **options,
        )


def one_op(op, shape, target="iOS17", **parameters):
    @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=getattr(ct.target, target))
    def program(x):
        return getattr(mb, op)(x=x, name="y", **parameters)

    return package(program, target=target)


def predict(model, x, numerics="ieee"):
    (out,) = mpsearch.Executor(model, numerics=numerics).predict({"x": x}).values()
    return out.astype(np.float64)


# --- profiles --------------------------------------------------------------------------------


@pytest.mark.parametrize("numerics", ["ieee", "ane", "strict"])
def test_a_layer_of_real_width_is_searched(numerics):
    """Large FP16 weights are widened in memory that is used again, in every mode of torch."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Tanh()).eval()
    given = [torch.randn(1, 512) for _ in range(3)]
    assert mpsearch.optimize(model, given, 1e-1, numerics=numerics).met
    with torch.inference_mode():
        given = [torch.randn(1, 512) for _ in range(3)]
        assert mpsearch.optimize(model, given, 1e-1, numerics=numerics).met


def _in_turn(pairs):
    """A sum of products in FP16, one step after the other."""
    total = None
    for a, b in pairs:
        term = np.float16(a) * np.float16(b)
        total = term if total is None else np.float16(total + term)
    return np.float16(0) if total is None else total


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 2), (3, 2, 1)])
def test_strict_convolves_by_single_additions(stride, dilation, groups):
    """Against loops over scalars, in the order of channels and inputs."""
    from mpsearch.executor.ops import OPS
    from mpsearch.numerics.profiles import PROFILES

    random = np.random.default_rng(0)
    x = random.normal(size=(1, 4, 9)).astype(np.float16)
    weight = random.normal(size=(6, 4 // groups, 3)).astype(np.float16)
    given = {"strides": [stride], "dilations": [dilation], "groups": groups}

    def strict(op, weight):
        arguments = dict(x=torch.tensor(x).float(), weight=torch.tensor(weight).float(), **given)
        (out,) = PROFILES["strict"].run(op, OPS[op].function, arguments, ("fp16",), True)
        return out[0].numpy()

    out = strict("conv", weight)
    for o, p in np.ndindex(out.shape):
        first = o // (6 // groups) * (4 // groups)
        assert out[o, p] == _in_turn(
            (x[0, first + c, p * stride + j * dilation], weight[o, c, j])
            for c in range(4 // groups)
            for j in range(3)
        )
    weight = weight[:4, : 4 // groups]
    out = strict("conv_transpose", weight)
    for o, p in np.ndindex(out.shape):
        first = o // (4 // groups) * (4 // groups)
        assert out[o, p] == _in_turn(
            (x[0, first + c, i], weight[first + c, o % (4 // groups), (p - i * stride) // dilation])
            for c in range(4 // groups)
            for i in range(9)
            if (p - i * stride) % dilation == 0 and 0 <= (p - i * stride) // dilation < 3
        )


def test_strict_takes_no_more_memory_than_its_operands():
    """A vocoder's last layer: a sum has 258 * 4 products, and not 258 * 256 windows."""
    from mpsearch.executor.ops import OPS
    from mpsearch.numerics.profiles import PROFILES

    x, weight = torch.randn(1, 258, 65), torch.randn(258, 1, 256)
    given = {"x": x, "weight": weight, "strides": [64]}
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    PROFILES["strict"].run("conv_transpose", OPS["conv_transpose"].function, given, ("fp16",), True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB


def test_ieee_rounds_inputs_and_outputs_and_nothing_between():
    """Typed execution (coremltools guide): FP16 in, FP16 out. 300 * 300 overflows; a sum of 4096
    halves, each of which an FP16 accumulator would stop adding at 2048, does not."""
    assert np.isinf(predict(one_op("square", (1, 4)), np.full((1, 4), 300.0))).all()
    x = np.full((1, 4096), 0.5, np.float32)
    assert predict(one_op("reduce_sum", (1, 4096), axes=[1], keep_dims=True), x) == 2048.0


#: By FP64 numpy, for inputs from the first number to the second: on both sides of every bend.
BY_NUMPY = {
    "exp": (np.exp, -8, 8),
    "sqrt": (np.sqrt, 0.1, 40),
    "tanh": (np.tanh, -4, 4),
    "rsqrt": (lambda v: 1 / np.sqrt(v), 0.1, 40),
    "sigmoid": (lambda v: 1 / (1 + np.exp(-v)), -8, 8),
    "log": (np.log, 0.1, 40),
    "relu": (lambda v: np.maximum(v, 0), -8, 8),
    "relu6": (lambda v: np.clip(v, 0, 6), -8, 16),
    "softsign": (lambda v: v / (1 + np.abs(v)), -8, 8),
    "softplus": (lambda v: np.log1p(np.exp(v)), -8, 8),
    "abs": (np.abs, -8, 8),
    "sign": (np.sign, -8, 8),
    "square": (np.square, -8, 8),
}


@pytest.mark.parametrize("op", BY_NUMPY)
def test_ieee_is_numpy_rounded_once(op):
    """Against numpy in FP64: inputs rounded to FP16, the result rounded to FP16."""
    function, least, most = BY_NUMPY[op]
    x = np.random.default_rng(0).uniform(least, most, (1, 1000)).astype(np.float32)
    half = x.astype(np.float16).astype(np.float64)
    exact = function(half)
    got = predict(one_op(op, (1, 1000)), x)
    # FP32 in between moves a value across a rounding boundary once in a few thousand.
    same = got == exact.astype(np.float16).astype(np.float64)
    assert same.mean() > 0.995
    np.testing.assert_allclose(got, exact, rtol=1e-3, atol=1e-4)


def test_strict_breaks_instance_norm_on_a_checkerboard():
    """coremltools' zoo of reports: InstanceNorm on +-512, whose squares are 262144. The op as a
    whole stays in range (ieee); with every step in FP16 (strict) it does not."""
    board = np.indices((1, 1, 8, 8)).sum(0) % 2 * 1024.0 - 512.0
    model = one_op("instance_norm", (1, 1, 8, 8), epsilon=np.float16(1e-5))
    wanted = np.sign(board)
    np.testing.assert_allclose(predict(model, board), wanted, atol=2e-3)
    assert not np.allclose(predict(model, board, "strict"), wanted, atol=0.1)


def test_ane_breaks_softplus_beyond_ten():
    """coremltools #2687: softplus on the Neural Engine drops to 0 between 10.394 and 10.395."""
    x = np.full((1, 4), 10.5, np.float32)
    model = one_op("softplus", (1, 4))
    np.testing.assert_allclose(predict(model, x), np.log1p(np.exp(x.astype(np.float64))), rtol=1e-3)
    assert (predict(model, x, "ane") == 0).all()
    edge = np.array([[10.39, 10.394, 10.395, 11.0]], np.float32)
    assert (predict(model, edge, "ane") > 10).tolist() == [[True, True, False, False]]


def test_ane_breaks_log_sum_exp_where_the_sum_leaves_fp16():
    """coremltools #2690: over 32 channels the output drops to 0 at log(65504 / 32) = 7.63."""
    model = one_op("reduce_log_sum_exp", (1, 32), axes=[1])
    for value, works in ((7.61, True), (7.64, False)):
        x = np.full((1, 32), value, np.float32)
        np.testing.assert_allclose(predict(model, x), value + np.log(32), rtol=2e-3)
        assert (predict(model, x, "ane") > 11).all() == works


def test_ane_breaks_a_product_of_40000():
    """ane-guide.readthedocs.io, part 1: results of matmul from 32768 on become infinite, while
    sums keep FP16's whole range."""
    x = np.full((1, 4), 100.0, np.float32)
    model = one_op("linear", (1, 4), weight=np.full((1, 4), 100.0, np.float32))
    assert predict(model, x) == 40000.0
    assert np.isinf(predict(model, x, "ane"))
    total = one_op("reduce_sum", (1, 4), axes=[1])
    assert predict(total, 100 * x, "ane") == 40000.0


def test_ane_turns_nan_into_zero():
    """ane-guide.readthedocs.io, part 1: sqrt(-1) is 0."""
    x = np.full((1, 4), -1.0, np.float32)
    assert np.isnan(predict(one_op("sqrt", (1, 4)), x)).all()
    assert (predict(one_op("sqrt", (1, 4)), x, "ane") == 0).all()


def test_profiles_agree_on_a_benign_network():
    """All three are FP16: on values of order one they differ by FP16's own error."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.GELU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 64, 16),
        torch.nn.LayerNorm(16),
        torch.nn.Softmax(-1),
    ).eval()
    data = [torch.randn(1, 3, 8, 8) for _ in range(2)]
    for numerics in ("ieee", "ane", "strict"):
        result = mpsearch.optimize(model, data, 2e-2, numerics=numerics)
        assert result.status == "fp16_suffices", numerics


def test_profile_names_are_checked():
    with pytest.raises(ValueError, match="ieee, ane, strict"):
        mpsearch.Executor(one_op("sqrt", (1, 4)), numerics="bf16")
    with pytest.raises(mpsearch.InputError, match="several profiles"):
        mpsearch.Executor(one_op("sqrt", (1, 4)), numerics="ieee,ane")


# --- states and control flow -----------------------------------------------------------------


def test_stateful_model_runs_and_is_searched():
    torch.manual_seed(0)
    model, data = Cache(), [torch.randn(1, 1, 8) for _ in range(4)]
    before = model.keys.clone()
    result = mpsearch.optimize(
        model, data, 1e-2, conversion=mpsearch.Conversion(target="iOS18", states=["keys"])
    )
    assert result.met and result.fp32_ops and not result.error_fp16 <= 1e-2
    assert torch.equal(model.keys, before)
    executor = mpsearch.Executor(result.mlmodel)
    state = executor.make_state()
    (first,) = executor.predict({"x": data[0].numpy()}, state).values()
    with torch.no_grad():
        wanted = model(data[0])
    np.testing.assert_allclose(first, wanted.numpy(), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(state.read_state("keys"), model.keys.numpy(), rtol=1e-2, atol=1e-2)
    with pytest.raises(mpsearch.InputError, match="make_state"):
        executor.predict({"x": data[0].numpy()})


def loop_package():
    """x -> sqrt((300 x)^2) / 300, three times over, in a while_loop with a cond inside."""

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))], opset_version=ct.target.iOS17)
    def program(x):
        def condition(i, v):
            return mb.less(x=i, y=3)

        def body(i, v):
            large = mb.mul(x=v, y=300.0, name="large")
            squared = mb.mul(x=large, y=large, name="squared")
            root = mb.sqrt(x=squared, name="root")
            positive = mb.greater(x=mb.reduce_sum(x=root), y=0.0)
            scaled = mb.cond(
                pred=positive,
                _true_fn=lambda: mb.mul(x=root, y=1 / 300, name="scaled"),
                _false_fn=lambda: mb.mul(x=root, y=1.0, name="unscaled"),
            )
            return mb.add(x=i, y=1), scaled

        _, out = mb.while_loop(_cond=condition, _body=body, loop_vars=(0, x))
        return mb.identity(x=out, name="y")

    return package(program, "fp32")


def test_ops_in_loops_and_branches_are_searched():
    model = loop_package()
    data = [torch.rand(1, 4) + 1 for _ in range(4)]
    (got,) = mpsearch.Executor(model).predict({"x": data[0].numpy()}).values()
    np.testing.assert_allclose(got, data[0].numpy(), rtol=1e-5)
    result = mpsearch.optimize(model, [{"x": d} for d in data], 1e-2)
    assert result.met and result.error_fp16 > 1e-2
    assert {"squared", "root"} <= set(result.fp32_ops)
    assert "scaled" not in result.fp32_ops
    assert result.error <= result.budget


# --- recurrent layers ------------------------------------------------------------------------


def recurrent_op(name, direction, activation="tanh", precision="fp32", **options):
    """A recurrent op with random weights, and what torch's module of the same weights gives."""
    generator = torch.Generator().manual_seed(0)
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[name]
    both = direction == "bidirectional"

    def random(*shape):
        return torch.randn(*shape, generator=generator) / 2

    sides = [
        [random(gates * 6, 5), random(gates * 6, 6), random(gates * 6), random(gates * 6)]
        for _ in range(1 + both)
    ]
    x, h, c = random(7, 2, 5), random(1 + both, 2, 6), random(1 + both, 2, 6)
    order = {"rnn": [0], "gru": [0, 2, 1], "lstm": [0, 1, 3, 2]}[name]  # MIL's gates, of torch's

    def mil(value):
        return np.concatenate([value.chunk(gates)[i].numpy() for i in order])

    given = {"direction": direction, "output_sequence": True, "activation": activation}
    given |= {"initial_h": np.concatenate(list(h.numpy()), -1)}
    if name == "lstm":
        given |= {"initial_c": np.concatenate(list(c.numpy()), -1)}
    for (w_i, w_h, b_i, b_h), back in zip(sides, ("", "_back"), strict=False):
        given |= {f"weight_ih{back}": mil(w_i), f"weight_hh{back}": mil(w_h)}
        given |= {f"bias{back}": mil(b_h if name == "gru" else b_i + b_h)}
    if name == "gru":
        given |= {"reset_after": True, "input_bias": mil(sides[0][2])}
    options = {**given, **options}
    target = "iOS18" if name == "gru" else "iOS17"

    @mb.program(
        input_specs=[mb.TensorSpec(shape=(7, 2, 5))], opset_version=getattr(ct.target, target)
    )
    def program(x):
        return mb.identity(x=getattr(mb, name)(x=x, **options)[0], name="y")

    kind = getattr(torch.nn, name.upper())
    extra = {"nonlinearity": activation} if name == "rnn" else {}
    layer = kind(5, 6, bidirectional=both, **extra)
    values = [v for side in sides for v in side]
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), values, strict=True):
            parameter.copy_(value)
        taken = x.flip(0) if direction == "reverse" else x
        wanted = layer(taken, (h, c) if name == "lstm" else h)[0]
    return package(program, precision, target), x.numpy(), wanted.numpy()


RECURRENT = [
    *(("lstm", way, "tanh") for way in ("forward", "reverse", "bidirectional")),
    *(("gru", way, "tanh") for way in ("forward", "reverse")),
    *(("rnn", way, act) for way in ("forward", "reverse") for act in ("tanh", "relu")),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "direction", "activation"), RECURRENT)
@pytest.mark.parametrize("numerics", ["ieee", "ane", "strict", "wide"])
def test_recurrent_ops_are_torch_layers(name, direction, activation, numerics):
    model, x, wanted = recurrent_op(name, direction, activation)
    np.testing.assert_allclose(predict(model, x, numerics), wanted, atol=1e-5)
    model, x, wanted = recurrent_op(name, direction, activation, "fp16")
    np.testing.assert_allclose(predict(model, x, numerics), wanted, atol=2e-2)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "linear"])
def test_a_recurrent_op_is_the_same_whole_and_step_by_step(name, direction, activation):
    """An op whose inner steps are watched runs them one by one; both give the same."""
    from mpsearch.executor.ops import OPS
    from mpsearch.numerics.steps import Replaced

    generator = torch.Generator().manual_seed(0)
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[name]
    shapes = {"x": (5, 2, 4), "initial_h": (2, 3), "weight_ih": (3 * gates, 4)}
    shapes |= {"weight_hh": (3 * gates, 3), "bias": (3 * gates,)}
    shapes |= {"initial_c": (2, 3)} if name == "lstm" else {}
    given = {k: torch.randn(shape, generator=generator) / 3 for k, shape in shapes.items()}
    given |= {"direction": direction, "activation": activation}
    variants = [{"clip": 0.1}, {"peephole": torch.ones(9)}] if name == "lstm" else []
    variants += [{"reset_after": True}] if name == "gru" else []
    for variant in [{}, {"output_sequence": True}, *variants]:
        whole = OPS[name].function(**given, **variant)
        with Replaced({}, after=lambda x: x):
            steps = OPS[name].function(**given, **variant)
        for a, b in zip(whole, steps, strict=True):
            torch.testing.assert_close(a, b)
        batched = torch.func.vmap(
            lambda x, variant=variant: OPS[name].function(**{**given, "x": x}, **variant)
        )(given["x"].expand(2, 5, 2, 4))
        for a, b in zip(whole, batched, strict=True):
            torch.testing.assert_close(a, b[1])


def test_nan_goes_through_a_recurrent_op_from_where_it_is():
    model, x, _ = recurrent_op("lstm", "forward")
    x[3, 0, 2] = np.nan
    found = np.isnan(predict(model, x)).all(-1)
    assert found[:, 0].tolist() == [False] * 3 + [True] * 4 and not found[:, 1].any()


# --- loops as traces -------------------------------------------------------------------------


def runner(model, numerics, **options):
    """Runs a package: one input, its outputs and the number of executions."""
    function = lower(model._mil_program)
    runtime = Runtime(PROFILES[numerics], **options)

    def run(x):
        env, before = dict.fromkeys(function.inputs.values(), x), runtime.executions
        Schedule.of_function(function).run(env, lambda step, values: runtime.run(step.node, values))
        out = [runtime.source(source, env) for source in function.outputs.values()]
        return out, runtime.executions - before

    return run


@functools.cache
def gru(steps, precision):
    """A converted GRU of two layers and both directions."""
    torch.manual_seed(0)
    layer = torch.nn.GRU(6, 8, num_layers=2, bidirectional=True, batch_first=True).eval()
    with torch.no_grad(), quiet():
        traced = torch.jit.trace(layer, torch.zeros(1, steps, 6))
        return ct.convert(
            traced,
            inputs=[ct.TensorType("x", (1, steps, 6))],
            compute_precision=getattr(ct.precision, precision),
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )


@pytest.mark.thorough
@pytest.mark.parametrize("precision", ["FLOAT32", "FLOAT16"])
@pytest.mark.parametrize(
    ("steps", "numerics"),
    [*product([1, 20, 258], ["ieee", "ane", "wide"]), (1, "strict"), (20, "strict")],
)
def test_a_traced_loop_gives_the_bits_of_its_ops(steps, precision, numerics):
    traced = runner(gru(steps, precision), numerics, traced_after=2)
    op_by_op = runner(gru(steps, precision), numerics, traced_after=sys.maxsize)
    x = torch.randn(1, steps, 6, generator=torch.Generator().manual_seed(1))
    bad = x.clone()
    bad[0, steps // 2, :3] = torch.tensor([np.nan, np.inf, -np.inf])
    with torch.no_grad():
        wanted = [op_by_op(x), op_by_op(bad)]
    with torch.inference_mode():
        assert same([traced(x), traced(bad)], wanted)  # the second time from the beginning
    with torch.no_grad():
        assert same([traced(bad), traced(x)], wanted[::-1])


class Counted(TorchFunctionMode):
    """Counts calls of torch from Python."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def calls(run, x):
    with torch.inference_mode(), Counted() as counted:
        run(x)
    return counted.calls


@pytest.mark.thorough
def test_a_loop_is_traced_where_it_is_long():
    run, x = runner(gru(258, "FLOAT16"), "ieee"), torch.zeros(1, 258, 6)
    ops = calls(runner(gru(258, "FLOAT16"), "ieee", traced_after=sys.maxsize), x)
    first, second = calls(run, x), calls(run, x)
    assert second < first / 2 and first < ops / 2
    with torch.enable_grad():  # of which a trace knows nothing
        assert same(run(x), run(x))
    batch = torch.randn(3, 1, 20, 6)
    run = runner(gru(20, "FLOAT32"), "ieee", traced_after=2)
    with torch.no_grad():
        apart = torch.stack([run(row)[0][0] for row in batch])
        torch.testing.assert_close(torch.func.vmap(lambda row: run(row)[0][0])(batch), apart)


def counting_loop(body):
    """x -> what 20 iterations of ``body(i, x)`` make of it."""

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 24))])
    def program(x):
        def step(i, value):
            return mb.add(x=i, y=1), body(i, value)

        return mb.while_loop(_cond=lambda i, _: mb.less(x=i, y=20), _body=step, loop_vars=(0, x))[1]

    return package(program, precision="fp32")


def rolled(i, value):
    """An op takes the counter as a Python value."""
    begin = mb.stack(values=[0, i], axis=0)
    cut = mb.slice_by_size(x=value, begin=begin, size=[1, 1])
    return mb.add(x=value, y=cut)


def branched(i, value):
    return mb.cond(
        pred=mb.greater(x=i, y=9),
        _true_fn=lambda: mb.mul(x=value, y=2.0),
        _false_fn=lambda: mb.add(x=value, y=mb.cast(x=i, dtype="fp32")),
    )


def negated(i, value):
    """As many values as are positive are looked at."""
    picked = mb.non_zero(x=mb.cast(x=mb.greater(x=value, y=0.0), dtype="fp32"))
    total = mb.reduce_sum(x=mb.cast(x=picked, dtype="fp32"), keep_dims=False)
    return mb.sub(x=mb.sin(x=total), y=value)


@pytest.mark.parametrize("body", [rolled, branched, negated])
def test_a_loop_that_looks_at_values_runs_op_by_op(body):
    model = counting_loop(body)
    run = runner(model, "ieee", traced_after=2)
    op_by_op = runner(model, "ieee", traced_after=sys.maxsize)
    with torch.inference_mode():
        for seed in range(3):
            x = torch.randn(1, 24, generator=torch.Generator().manual_seed(seed))
            assert same(run(x), op_by_op(x))
            assert calls(run, x) > calls(op_by_op, x) / 2


# --- MLModel's conventions -------------------------------------------------------------------


def test_images_in_and_out():
    from PIL import Image

    class Negative(torch.nn.Module):
        def forward(self, x):
            return 255.0 - x

    with quiet():
        model = ct.convert(
            torch.jit.trace(Negative(), torch.zeros(1, 3, 4, 6)),
            inputs=[ct.ImageType("x", (1, 3, 4, 6), color_layout=ct.colorlayout.BGR)],
            outputs=[ct.ImageType("y", color_layout=ct.colorlayout.RGB)],
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    out = mpsearch.Executor(model).predict({"x": Image.fromarray(pixels)})["y"]
    # Blue comes first on the way in and red on the way out, so the colors change places; Core ML
    # adds an alpha channel.
    assert out.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(out)[..., :3], 255 - pixels[..., ::-1])
    assert (np.asarray(out)[..., 3] == 255).all()
    with pytest.raises(mpsearch.InputError, match="6x4"):
        mpsearch.Executor(model).predict({"x": Image.new("RGB", (3, 3))})
    with pytest.raises(mpsearch.InputError, match=r"PIL\.Image"):
        mpsearch.Executor(model).predict({"x": np.zeros((1, 3, 4, 6))})


def test_classifier():
    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3))], opset_version=ct.target.iOS17)
    def program(x):
        return mb.softmax(x=x, axis=-1, name="p")

    model = package(program, classifier_config=ct.ClassifierConfig(["a", "b", "c"]))
    out = mpsearch.Executor(model).predict({"x": np.array([[0.0, 2.0, 1.0]])})
    assert out["classLabel"] == "b"
    (probabilities,) = (v for v in out.values() if isinstance(v, dict))
    assert probabilities["b"] == max(probabilities.values())


def test_flexible_shapes():
    traced = torch.jit.trace(net().eval(), torch.zeros(1, 4, 8))
    with quiet():
        model = ct.convert(
            traced,
            inputs=[ct.TensorType("x", (1, ct.RangeDim(1, 6), 8))],
            outputs=[ct.TensorType("y")],
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    executor = mpsearch.Executor(model)
    for length in (1, 6):
        x = torch.randn(1, length, 8)
        np.testing.assert_allclose(
            executor.predict({"x": x})["y"], net().eval()(x).detach().numpy(), rtol=1e-4, atol=1e-5
        )


def test_multifunction_package(tmp_path):
    def scaled(factor):
        @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))], opset_version=ct.target.iOS18)
        def program(x):
            return mb.mul(x=x, y=factor, name="y")

        return package(program, "fp32", "iOS18")

    scaled(1.5).save(str(tmp_path / "one.mlpackage"))
    scaled(2.5).save(str(tmp_path / "two.mlpackage"))
    descriptor = ct.utils.MultiFunctionDescriptor()
    descriptor.add_function(str(tmp_path / "one.mlpackage"), "main", "one")
    descriptor.add_function(str(tmp_path / "two.mlpackage"), "main", "two")
    descriptor.default_function_name = "one"
    with quiet():
        ct.utils.save_multifunction(descriptor, str(tmp_path / "both.mlpackage"))
    x = np.ones((1, 4), np.float32)
    path = str(tmp_path / "both.mlpackage")
    assert mpsearch.Executor(path).predict({"x": x})["y"][0, 0] == 1.5
    assert mpsearch.Executor(path, function_name="two").predict({"x": x})["y"][0, 0] == 2.5
    with pytest.raises(mpsearch.InputError, match="one, two"):
        mpsearch.Executor(path, function_name="three")


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ({}, "'x' is missing; expected fp32 of shape"),
        ({"z": np.zeros((1, 4))}, "'z' is not known"),
        ({"x": np.zeros((1, 5))}, r"has shape \(1, 5\), expected fp32 of shape \(1, 4\)"),
        ({"x": np.array([["a"] * 4])}, "is of type"),
        (3, "takes a dict"),
    ],
)
def test_wrong_inputs_say_which_and_what_was_expected(data, hint):
    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))], opset_version=ct.target.iOS17)
    def program(x):
        return mb.sqrt(x=x, name="y")

    model = package(program, "fp32")
    with pytest.raises(mpsearch.InputError, match=hint):
        mpsearch.Executor(model).predict(data)


def test_neural_networks_are_refused(tmp_path):
    with quiet():
        model = ct.convert(
            torch.jit.trace(torch.nn.Linear(4, 2), torch.zeros(1, 4)),
            inputs=[ct.TensorType("x", (1, 4))],
            convert_to="neuralnetwork",
        )
    model.save(str(tmp_path / "old.mlmodel"))
    with pytest.raises(mpsearch.InputError, match="expected an ML Program"):
        mpsearch.Executor(str(tmp_path / "old.mlmodel"))


def test_an_op_outside_the_set_names_itself_and_where_it_is():
    from mpsearch.executor.ops import OPS

    held = OPS.pop("rsqrt")
    try:
        with pytest.raises(mpsearch.UnsupportedOpError, match=r"rsqrt from layer blocks\.0"):
            mpsearch.optimize(net(), [torch.ones(1, 4, 8)], 1e-2)
    finally:
        OPS["rsqrt"] = held


def test_every_op_of_coremltools_is_there():
    from mpsearch.executor.ops import OPS, STRUCTURAL

    with quiet():
        from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry
    known = set(SSAOpRegistry.core_ops)
    constants = {name for name in known if name.startswith("constexpr_")}
    missing = known - set(OPS) - STRUCTURAL - constants
    assert missing == set(), "add them to mpsearch/executor (docs/development.md)"
    assert types.fp16 is not None
