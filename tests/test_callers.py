"""What stands around a call from Python changes no result, and is left as it was."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import optuna
import pytest
import torch

import mpsearch
from mpsearch._ct import ct, quiet
from mpsearch.program.lowering import copy_program
from tests.models import batches, net


@pytest.fixture(scope="module")
def plain():
    return mpsearch.optimize(net(), batches(), 1e-2, execution=mpsearch.Execution(progress=False))


@contextlib.contextmanager
def _raising():
    with np.errstate(all="raise"):
        yield


AROUND = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "errstate": _raising,
    "anomalies": torch.autograd.detect_anomaly,
    "forward_ad": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", AROUND)
@pytest.mark.filterwarnings("ignore:Anomaly")
def test_modes_around_a_call_change_nothing(name, plain):
    with AROUND[name]():
        before = np.geterr(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        model, data = net(), batches()
        found = mpsearch.optimize(model, data, 1e-2, execution=mpsearch.Execution(progress=False))
        mpsearch.analyze(model, data)
        after = np.geterr(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    assert found.fp32_ops == plain.fp32_ops and found.error == plain.error
    assert after == before


def test_samples_made_in_inference_mode(plain):
    with torch.inference_mode():
        data = batches()
    found = mpsearch.optimize(net(), data, 1e-2, execution=mpsearch.Execution(progress=False))
    assert found.fp32_ops == plain.fp32_ops


def test_wrapped_modules_are_the_modules_inside(plain):
    for wrap in (torch.nn.DataParallel, torch.compile):
        found = mpsearch.optimize(
            wrap(net()), batches(), 1e-2, execution=mpsearch.Execution(progress=False)
        )
        assert found.fp32_ops == plain.fp32_ops


def test_a_module_wrapped_for_many_processes(plain, tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(net())
        found = mpsearch.optimize(
            wrapped, batches(), 1e-2, execution=mpsearch.Execution(progress=False)
        )
    finally:
        torch.distributed.destroy_process_group()
    assert found.fp32_ops == plain.fp32_ops


def test_a_users_hooks_fire_twice_at_most_for_a_look_and_are_left_on():
    model, calls = net(), []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    mpsearch.optimize(model, batches(), 1e-2, execution=mpsearch.Execution(progress=False))
    assert len(calls) <= 2
    model.eval()(batches()[0])
    assert len(calls) <= 3 and calls


def test_a_hook_that_collects_what_the_model_returns_stays():
    """transformers gathers hidden states by hooks, without which there is nothing to return."""

    class Gathering(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
            self.first.register_forward_hook(gather)

        def forward(self, x):
            seen.clear()
            self.first(x)
            return self.last(seen[0])

    def gather(module, args, out):
        seen.append(out)

    seen = []

    samples = [torch.randn(1, 4) for _ in range(6)]
    assert mpsearch.optimize(Gathering(), samples, 1e-2).met


def test_a_hook_that_is_part_of_the_function_counts():
    """What a hook returns takes the place of the output: it is searched as well."""
    model = net()
    model.head.register_forward_hook(lambda _module, _args, out: out * 1e5 / 1e5 + 1e5 - 1e5)
    found = mpsearch.optimize(model, batches(), 1e-2, execution=mpsearch.Execution(progress=False))
    plain = mpsearch.optimize(net(), batches(), 1e-2, execution=mpsearch.Execution(progress=False))
    assert found.candidate_ops > plain.candidate_ops


@pytest.mark.filterwarnings("ignore")
def test_weight_norm_is_left_as_it_is():
    model = net()
    torch.nn.utils.weight_norm(model.head)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = mpsearch.optimize(model, batches(), 1e-2, execution=mpsearch.Execution(progress=False))
    assert found.status == "met"
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {
        k: v.tolist() for k, v in before.items()
    }


def test_optunas_log_level_is_put_back():
    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.DEBUG)
        mpsearch.optimize(net(), batches(), 1e-2, execution=mpsearch.Execution(progress=False))
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
        with pytest.raises(mpsearch.InputError):
            mpsearch.optimize(net(), [], 1e-2)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)


def test_several_threads_are_refused_in_words_and_one_is_served(plain):
    gate, outcomes = threading.Barrier(3), []

    def work():
        gate.wait()
        try:
            found = mpsearch.optimize(
                net(), batches(), 1e-2, execution=mpsearch.Execution(progress=False)
            )
            outcomes.append(found.fp32_ops)
        except mpsearch.InputError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    served = [o for o in outcomes if isinstance(o, list)]
    assert len(outcomes) == 3 and served and all(o == plain.fp32_ops for o in served)
    assert all("thread" in o for o in outcomes if isinstance(o, str))


def test_a_copy_of_a_program_that_fails_says_so():
    with pytest.raises(Exception, match=r"copy|NoneType|functions"):
        copy_program(None)


# --- what converts plainly is taken ----------------------------------------------------------


class Passes(torch.nn.Module):
    def forward(self, x):
        return x


class PassesAndDoubles(torch.nn.Module):
    def forward(self, x):
        return x, x * 2


class Constant(torch.nn.Module):
    def forward(self, x):
        return torch.ones(3), x * 2


@pytest.mark.parametrize(
    "model", [Passes(), PassesAndDoubles(), Constant()], ids=lambda m: type(m).__name__
)
def test_outputs_that_nothing_computes(model, tmp_path):
    data = [torch.randn(1, 4) for _ in range(4)]
    found = mpsearch.optimize(model, data, 1e-2, execution=mpsearch.Execution(progress=False))
    assert found.status == "fp16_suffices"
    found.save(tmp_path / "out")
    got = mpsearch.Executor(tmp_path / "out" / "model.mlpackage").predict({"x": data[0].numpy()})
    expected = model(data[0])
    expected = expected if isinstance(expected, tuple) else (expected,)
    for value, wanted in zip(got.values(), expected, strict=True):
        assert np.allclose(value, wanted.numpy(), atol=1e-2)
    mpsearch.analyze(model, data)


def test_a_front_where_nothing_has_an_error():
    front = mpsearch.pareto(torch.nn.ReLU(), [torch.ones(1, 4)] * 4)
    assert [p.error for p in front.points] == [0.0] * len(front.points) and front.points


def _converted(**options):
    torch.manual_seed(0)

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = torch.nn.Linear(64, 64), torch.nn.Linear(64, 3)

        def forward(self, x):
            x = 600 * x
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            return torch.softmax(self.out(self.hidden(x)), -1)

    traced = torch.jit.trace(Head().eval(), torch.randn(1, 64))
    with quiet():
        return ct.convert(
            traced,
            inputs=[ct.TensorType("x", (1, 64))],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
            **options,
        )


SAMPLES = [{"x": torch.randn(1, 64)} for _ in range(4)]


def test_palettized_and_quantized_packages_stay_so(tmp_path):
    import coremltools.optimize.coreml as cto

    plain = _converted()
    with quiet():
        palettes = cto.OpPalettizerConfig(nbits=4, mode="uniform", weight_threshold=100)
        integers = cto.OpLinearQuantizerConfig(weight_threshold=100)
        made = {
            "palettized": cto.palettize_weights(plain, cto.OptimizationConfig(palettes)),
            "quantized": cto.linear_quantize_weights(plain, cto.OptimizationConfig(integers)),
        }
    for name, model in made.items():
        model.save(str(tmp_path / f"{name}.mlpackage"))
        found = mpsearch.optimize(
            str(tmp_path / f"{name}.mlpackage"),
            SAMPLES,
            1e-2,
            execution=mpsearch.Execution(progress=False),
        )
        assert found.status == "met" and found.error <= 1e-2
        out = found.save(tmp_path / name)
        sizes = [
            sum(p.stat().st_size for p in folder.rglob("weight.bin"))
            for folder in (tmp_path / f"{name}.mlpackage", out / "model.mlpackage")
        ]
        assert sizes[1] <= 1.5 * sizes[0]


def test_a_package_with_a_classifier_keeps_its_labels(tmp_path):
    model = _converted(classifier_config=ct.ClassifierConfig(["a", "b", "c"]))
    model.save(str(tmp_path / "classifier.mlpackage"))
    found = mpsearch.optimize(str(tmp_path / "classifier.mlpackage"), SAMPLES, 1e-2)
    assert found.mlmodel.get_spec().description.predictedFeatureName == "classLabel"
