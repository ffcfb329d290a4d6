"""Packages as a source: what they say of themselves is kept, here and by op_selector.py."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mpsearch
from mpsearch._ct import ct, quiet
from mpsearch.program.lowering import all_ops, load_program

SHAPE = (1, 3, 32, 32)
FP32 = {"compute_precision": ct.precision.FLOAT32, "skip_model_load": True}


class Labels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x):
        return torch.softmax(self.fc(torch.relu(self.conv(x)).mean((2, 3))), -1)


class Picture(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return 100 * torch.relu(self.conv(x))


def converted(model, target="iOS17", size=SHAPE, **options):
    torch.manual_seed(0)
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(model().eval(), torch.rand(SHAPE))
        options.setdefault("inputs", [ct.TensorType(name="x", shape=size)])
        goal = getattr(ct.target, target)
        return ct.convert(traced, minimum_deployment_target=goal, **options, **FP32)


def image(**options):
    return ct.ImageType(name="x", shape=SHAPE, scale=1 / 127.5, bias=[-1, -1, -1], **options)


def described():
    made = converted(Picture)
    made.author, made.version, made.license = "someone", "3", "MIT"
    made.short_description = "sharpens"
    made.user_defined_metadata["trained"] = "on photographs"
    made.input_description["x"] = "a photograph"
    return made


def compressed(how, **options):
    from coremltools.optimize import coreml

    config = getattr(coreml, f"Op{how}Config")(weight_threshold=1, **options)
    work = {
        "Palettizer": coreml.palettize_weights,
        "LinearQuantizer": coreml.linear_quantize_weights,
    }
    with quiet():
        return work[how](converted(Picture), coreml.OptimizationConfig(config))


RANGE = ct.RangeDim(16, 64, 32)
ENUMERATED = ct.EnumeratedShapes([SHAPE, (1, 3, 48, 48)], default=SHAPE)
HALF = {
    "inputs": [ct.TensorType(name="x", shape=SHAPE, dtype=np.float16)],
    "outputs": [ct.TensorType(name="y", dtype=np.float16)],
}
BGR = {
    "inputs": [image(color_layout=ct.colorlayout.BGR)],
    "outputs": [ct.ImageType(name="y", color_layout=ct.colorlayout.RGB)],
}
CONVERSIONS = {
    "image": lambda: converted(Labels, "iOS16", inputs=[image()]),
    "classifier": lambda: converted(
        Labels, inputs=[image()], classifier_config=ct.ClassifierConfig(["a", "b", "c", "d"])
    ),
    "numbered classes": lambda: converted(
        Labels, classifier_config=ct.ClassifierConfig([3, 5, 7, 9], "digit")
    ),
    "image out": lambda: converted(Picture, "iOS16", **BGR),
    "ranges": lambda: converted(Picture, size=(1, 3, RANGE, RANGE)),
    "enumerated": lambda: converted(Picture, size=ENUMERATED),
    "fp16 arrays": lambda: converted(Picture, **HALF),
    "iOS15": lambda: converted(Picture, "iOS15"),
    "macOS13": lambda: converted(Picture, "macOS13"),
    "iOS26": lambda: converted(Picture, "iOS26"),
    "metadata": described,
    "palettized": lambda: compressed("Palettizer", nbits=4),
    "quantized": lambda: compressed("LinearQuantizer"),
}


def samples(model):
    (feature,) = model.get_spec().description.input
    draw = np.random.default_rng(0)
    if feature.type.WhichOneof("Type") == "imageType":
        drawn = draw.integers(0, 256, (8, *SHAPE[2:], 3), dtype=np.uint8)
        return [{"x": Image.fromarray(pixels)} for pixels in drawn]
    return [{"x": draw.random(SHAPE, np.float32)} for _ in range(8)]


def asked_for(spec):
    """What a package says of itself, but for who made it."""
    ours = ("mpsearch.", "com.github")
    for key in [k for k in spec.description.metadata.userDefined if k.startswith(ours)]:
        del spec.description.metadata.userDefined[key]
    return spec.specificationVersion, spec.description


def ops(made):
    """The ops in order, and the constants in any: dtype, shape and value; free sizes are -1."""
    program = load_program(made.get_spec(), made.weights_dir)
    found, constants = [], []
    for op in all_ops(program.functions["main"]):
        (var, *_) = op.outputs
        value = getattr(var.val, "ls", var.val) if op.op_type == "const" else None
        if value is None:
            found.append((op.op_type, var.name))
        elif isinstance(value, list):
            constants.append(str([str(v) for v in value]))
        else:
            array = np.asarray(value)
            shape = [n if isinstance(n, int) else -1 for n in array.shape]
            constants.append(f"{array.dtype} {shape} {array.tobytes()!r}")
    return found, sorted(constants)


def by_op_selector(found, source, path, monkeypatch):
    """What op_selector.py alone makes of the source."""
    source.save(str(path / "source.mlpackage"))
    found.save(path / "out")
    monkeypatch.setattr(sys, "path", [str(path / "out"), *sys.path])
    alone = runpy.run_path(str(path / "out" / "op_selector.py"))
    with quiet():
        return alone["convert"](str(path / "source.mlpackage"))


@pytest.mark.thorough
@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_package_keeps_what_was_asked_for(name, tmp_path, monkeypatch):
    source = CONVERSIONS[name]()
    found = mpsearch.optimize(source, samples(source), 3e-4)
    assert found.met
    assert asked_for(found.mlmodel.get_spec()) == asked_for(source.get_spec())
    made = by_op_selector(found, source, tmp_path, monkeypatch)
    assert asked_for(made.get_spec()) == asked_for(source.get_spec())
    assert ops(made) == ops(found.mlmodel)


ASKED = {
    "image, classifier": {
        "inputs": [image()],
        "classifier_config": ct.ClassifierConfig(["a", "b", "c", "d"]),
        "minimum_deployment_target": ct.target.iOS16,
    },
    "ranges": {"inputs": [ct.TensorType(name="x", shape=(1, 3, RANGE, RANGE))]},
    "names and types": {**HALF, "minimum_deployment_target": ct.target.macOS14},
    "passes and units": {
        "inputs": [ct.TensorType(name="x", shape=SHAPE)],
        "outputs": [ct.TensorType(name="y")],
        "pass_pipeline": ct.PassPipeline.CLEANUP,
        "compute_units": ct.ComputeUnit.CPU_AND_NE,
    },
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ASKED)
def test_a_conversion_of_ones_own(name, tmp_path):
    """mpsearch.convert gives what ct.convert gives, and knows the layers beside."""
    torch.manual_seed(0)
    model, wanted = Labels().eval(), ASKED[name]
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(model, torch.rand(SHAPE))
        ours = {"minimum_deployment_target": ct.target.iOS17, **wanted}
        theirs = ct.convert(traced, **ours, **FP32)
    passes = list(getattr(wanted.get("pass_pipeline"), "passes", []))
    made = mpsearch.convert(model, torch.rand(SHAPE), **wanted)
    assert passes == list(getattr(wanted.get("pass_pipeline"), "passes", []))
    assert asked_for(made.get_spec()) == asked_for(theirs.get_spec())
    assert ops(made) == ops(theirs)
    found = mpsearch.optimize(
        made, samples(made), 3e-4, constraints=mpsearch.Constraints(keep_fp32=("layer:conv",))
    )
    assert {row.layer for row in found.kept} >= {"conv"}
    assert "mpsearch.origins" not in found.mlmodel.user_defined_metadata


def test_a_conversion_with_states(tmp_path, monkeypatch):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(1, 4))
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            self.total.add_(self.fc(x))
            return self.total * 2

    state = ct.StateType(ct.TensorType(shape=(1, 4), dtype=np.float16), "total")
    with pytest.raises(mpsearch.InputError, match="iOS18"):
        mpsearch.convert(Sum(), torch.rand(1, 4), states=[state])
    made = mpsearch.convert(
        Sum(), torch.rand(1, 4), states=[state], minimum_deployment_target=ct.target.iOS18
    )
    assert [s.name for s in made.get_spec().description.state] == ["total"]
    (feature,) = made.get_spec().description.input
    found = mpsearch.optimize(made, [{feature.name: torch.rand(1, 4)} for _ in range(4)], 1e-2)
    again = by_op_selector(found, made, tmp_path, monkeypatch)
    for package in (found.mlmodel, again):
        assert asked_for(package.get_spec()) == asked_for(made.get_spec())
    (these, constants), (those, same) = ops(again), ops(found.mlmodel)
    assert [kind for kind, _ in these] == [kind for kind, _ in those]
    assert constants == same


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"compute_precision": None}, "compute_precision is not to be given"),
        ({"input": []}, "ct.convert has no argument 'input'"),
        ({"inputs": [ct.TensorType(name="x", shape=(1, 4))]}, "cannot convert the model"),
    ],
)
def test_a_conversion_that_cannot_be(given, words):
    with pytest.raises(mpsearch.InputError, match=words):
        mpsearch.convert(Labels(), torch.rand(SHAPE), **given)


def test_a_picture_for_a_pytorch_model_is_refused():
    drawn = samples(CONVERSIONS["image"]())
    with pytest.raises(mpsearch.InputError, match="is a PIL image"):
        mpsearch.optimize(Picture(), drawn, 1e-2)
