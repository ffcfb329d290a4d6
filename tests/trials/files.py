"""Files to give to commands: good ones of every kind, and the bad ones made of them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch

import mpsearch
from mpsearch._ct import ct, quiet
from tests.models import Net, batches, net


def make_good(folder: Path) -> None:
    """One good file of every kind that is read."""
    model, x = net().eval(), batches()
    torch.jit.save(torch.jit.trace(model, x[0]), folder / "script.pt")
    torch.export.save(torch.export.export(model, (x[0],)), folder / "exported.pt2")
    torch.save(model, folder / "pickled.pt")
    torch.save(model.state_dict(), folder / "state.pt")
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / "state.safetensors")
    rows = torch.cat(x)
    np.savez(folder / "x.npz", x=rows.numpy())
    np.savez(folder / "one.npz", x=x[0].numpy())
    torch.save({"x": rows}, folder / "x.pt")
    save_file({"x": rows}, folder / "x.safetensors")
    result = mpsearch.optimize(net(), x, 1e-2, execution=mpsearch.Execution(progress=False))
    result.save(folder / "result")
    fp32 = mpsearch.optimize(
        net(),
        x,
        1e-2,
        constraints=mpsearch.Constraints(keep_fp32=["op:*"]),
        execution=mpsearch.Execution(progress=False),
    )
    fp32.save(folder / "all32")
    shutil.copytree(folder / "all32" / "model.mlpackage", folder / "fp32.mlpackage")


def make_bad(folder: Path) -> tuple[list[str], list[str]]:
    """Bad models and bad data made in a folder with good files; their names."""
    models: list[str] = []
    data: list[str] = []

    def model(name: str, body: bytes) -> None:
        (folder / name).write_bytes(body)
        models.append(name)

    def array(name: str, **arrays: np.ndarray) -> None:
        np.savez(folder / name, **arrays)
        data.append(name)

    script, exported = (folder / n for n in ("script.pt", "exported.pt2"))
    for kind, source in (("script", script), ("exported", exported)):
        body, suffix = source.read_bytes(), source.suffix
        model(f"{kind}_empty{suffix}", b"")
        model(f"{kind}_half{suffix}", body[: len(body) // 2])
        model(f"{kind}_head{suffix}", body[:100])
        model(f"{kind}_tail{suffix}", body[-200:])
        middle = len(body) // 3
        model(f"{kind}_middle{suffix}", body[:middle] + bytes(200) + body[middle + 200 :])
    model("text.pt", b"not a model")
    model("text.pt2", b"not a model")
    model("text.mlpackage", b"not a package")
    model("text.mlmodel", b"not a model")
    model("noise.pt", os.urandom(5000))
    model("newlines.pt", b"\n" * 500)
    model("plain_pickle.pt", pickle.dumps({"a": 1}))
    shutil.copy(folder / "pickled.pt", folder / "module.pt")
    models.extend(["module.pt", "state.pt", "x.npz", "x.safetensors", "nowhere.pt", "nowhere.pt2"])
    models.extend(
        ["nowhere.mlpackage", "nowhere:factory", "tests.models:", ":", "", ".", "/dev/null"]
    )
    with zipfile.ZipFile(folder / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "nothing of use")
    models.append("zip.pt")
    for name, entries in {
        "legacy.pt2": {"serialized_exported_program.json": "{}", "version": "8.0"},
        "nojson.pt2": {"m/models/model.json": "{"},
        "wrongjson.pt2": {"m/models/model.json": "[1]"},
        "extra.pt2": {"m/models/model.json": "{}", "m/data/aotinductor/model/x.so": "x"},
        "roots.pt2": {"a/models/model.json": "{}", "b/models/model.json": "{}"},
    }.items():
        with zipfile.ZipFile(folder / name, "w") as archive:
            for entry, text in entries.items():
                archive.writestr(entry, text)
        models.append(name)
    os.mkfifo(folder / "pipe.pt")
    os.mkfifo(folder / "pipe.npz")
    models.append("pipe.pt")
    (folder / "loop.pt").symlink_to("loop.pt")
    models.append("loop.pt")
    (folder / "empty_folder").mkdir()
    models.append("empty_folder")
    models += _packages(folder)

    x = torch.cat(batches()).numpy()
    array("key.npz", y=x)
    array("two.npz", x=x, y=x)
    array("narrow.npz", x=x[..., :5])
    array("rank.npz", x=x[0, 0])
    array("scalar.npz", x=np.float32(3))
    array("rows0.npz", x=x[:0])
    array("columns0.npz", x=x[:, :, :0])
    array("none.npz")
    array("strings.npz", x=np.array(["a", "b"]))
    array("complex.npz", x=x.astype(np.complex64))
    array("dates.npz", x=np.array(["2020-01-01"], dtype="datetime64[D]"))
    np.savez(folder / "objects.npz", x=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(folder / "array.npy", x)
    (folder / "array.npz").write_bytes((folder / "array.npy").read_bytes())
    body = (folder / "x.npz").read_bytes()
    for name, content in {
        "half.npz": body[: len(body) // 2],
        "empty.npz": b"",
        "text.npz": b"text",
        "text.safetensors": b"text",
        "half.safetensors": (folder / "x.safetensors").read_bytes()[:100],
        "half_data.pt": (folder / "x.pt").read_bytes()[:300],
        "x.csv": b"1,2,3",
        "x": b"1",
    }.items():
        (folder / name).write_bytes(content)
        data.append(name)
    torch.save([torch.ones(3)], folder / "list.pt")
    torch.save({"x": "text"}, folder / "texts.pt")
    data += ["objects.npz", "array.npz", "array.npy", "list.pt", "texts.pt", "pickled.pt"]
    data += ["pipe.npz", "nowhere.npz", "empty_folder", "", "/dev/zero", "nowhere:samples"]
    _bomb(folder / "bomb.npz")
    data.append("bomb.npz")
    return models, data


def _bomb(path: Path) -> None:
    """3 GB of zeros in a few MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = np.lib.format.header_data_from_array_1_0(np.zeros((1, 4, 8), np.float32))
        header["shape"] = (100_000_000, 1, 8)
        with archive.open("x.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for _ in range(50):
                stream.write(bytes(64_000_000))


def _packages(folder: Path) -> list[str]:
    """Packages with something wrong in them."""
    source = folder / "fp32.mlpackage"
    inner = Path("Data") / "com.apple.CoreML"
    names = []

    def copy(name: str) -> Path:
        names.append(f"{name}.mlpackage")
        target = folder / f"{name}.mlpackage"
        shutil.copytree(source, target)
        return target

    (copy("no_manifest") / "Manifest.json").unlink()
    (copy("manifest_text") / "Manifest.json").write_text("{")
    (copy("manifest_list") / "Manifest.json").write_text("[]")
    package = copy("manifest_outside")
    manifest = json.loads((package / "Manifest.json").read_text())
    for entry in manifest["itemInfoEntries"].values():
        entry["path"] = "../../.."
    (package / "Manifest.json").write_text(json.dumps(manifest))
    (copy("no_spec") / inner / "model.mlmodel").unlink()
    (copy("spec_empty") / inner / "model.mlmodel").write_bytes(b"")
    (copy("spec_noise") / inner / "model.mlmodel").write_bytes(os.urandom(300))
    weight = inner / "weights" / "weight.bin"
    if (source / weight).exists():
        (copy("no_weights") / weight).unlink()
        package = copy("weights_link")
        (package / weight).unlink()
        (package / weight).symlink_to("/etc/hostname")
        (copy("weights_short") / weight).write_bytes(b"1234")
    package = copy("pipe_inside")
    os.mkfifo(package / inner / "pipe")
    for name, change in {
        "unknown_op": _unknown_op,
        "missing_value": _missing_value,
        "large_fill": _large_fill,
        "no_functions": lambda spec: spec.mlProgram.functions.clear(),
        "version_0": lambda spec: setattr(spec, "specificationVersion", 0),
        "no_program": lambda spec: spec.ClearField("mlProgram"),
    }.items():
        file = copy(name) / inner / "model.mlmodel"
        spec = ct.proto.Model_pb2.Model()
        spec.ParseFromString(file.read_bytes())
        change(spec)
        file.write_bytes(spec.SerializeToString())
    return names


def _block(spec):
    return next(iter(spec.mlProgram.functions["main"].block_specializations.values()))


def _unknown_op(spec) -> None:
    _block(spec).operations[-1].type = "frobnicate"


def _missing_value(spec) -> None:
    del _block(spec).operations[0]


def _large_fill(spec) -> None:
    from coremltools.converters.mil.mil import Builder as mb

    with quiet():

        @mb.program(input_specs=[mb.TensorSpec((1,))], opset_version=ct.target.iOS15)
        def program(x):
            small = mb.fill(shape=[2], value=1.0)
            return mb.add(x=mb.reduce_sum(x=small, axes=[0], keep_dims=True), y=x)

        made = ct.convert(
            program,
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        ).get_spec()
    for op in next(
        iter(made.mlProgram.functions["main"].block_specializations.values())
    ).operations:
        if op.type == "fill":
            shape = op.inputs["shape"].arguments[0]
            if shape.WhichOneof("binding") == "value":
                shape.value.immediateValue.tensor.ints.values[0] = 2**31 - 1
        if op.type == "const":
            ints = op.attributes["val"].immediateValue.tensor.ints.values
            if list(ints) == [2]:
                ints[0] = 2**31 - 1
    spec.CopyFrom(made)


def edited(config: dict, result: dict) -> dict[str, tuple[dict | str, dict | str]]:
    """Configs and results as people and programs leave them; each one wrong."""
    out: dict[str, tuple[dict | str, dict | str]] = {}
    for key in config:
        if key not in ("weights", "custom_metric"):
            out[f"config_without_{key}"] = ({k: v for k, v in config.items() if k != key}, result)
    wrong: dict[str, list[object]] = {
        "version": [1, "2", None],
        "fingerprint": ["x", 3],
        "conversion": [
            {"target": "iOS14"},
            {"target": None},
            {"io_dtype": "fp8"},
            {"states": 3},
            {"surprise": 1},
            3,
        ],
        "scales": [
            3,
            [{"op": "x"}],
            [{"op": "nowhere", "type": "mul", "shape": [1], "inputs": {"x": -4}}],
            [{"op": "nowhere", "type": "mul", "shape": [1], "inputs": {"x": 1 << 40}}],
        ],
        "rewrites": [
            3,
            [{"op": "x", "type": "log", "kind": "softplus"}],
            [{"op": "x", "kind": "y"}],
        ],
        "constraints": [{"by": "block"}, {"keep_fp32": "type:mul"}],
        "limits": [{"trials": 0}, {"timeout": "x"}],
        "execution": [{"seed": -1}, {"seed": 1.5}, {"seed": 2**40}, {"seed": "0"}],
        "metric": [3, None],
        "budget": ["1e-3", None, [1]],
        "numerics": [3],
        "inputs": [3, [{"name": "x"}], [{"name": "x", "dtype": "load", "shape": [1]}]],
        "fp32_ops": [3, ["a"], [{"name": "a"}]],
        "weights": [3, {"dtype": "int4", "names": []}],
        "source": [None],
        "errors": [3],
        "versions": [{"torch": 2}],
        "surprise": [1],
    }
    for key, values in wrong.items():
        for i, value in enumerate(values):
            out[f"config_{key}_{i}"] = ({**config, key: value}, result)
    out["config_text"] = ("{", result)
    out["config_nan"] = ('{"version": NaN}', result)
    out["config_list"] = ("[]", result)
    out["config_deep"] = ("[" * 100_000, result)
    return out


def edited_results(result: dict) -> dict[str, dict | str]:
    """Results that no report can be made of."""
    out: dict[str, dict | str] = {"text": "{", "list": "[]", "number": "3", "deep": "[" * 100_000}
    needed = "status budget metric error fp32_ops explanation costs kept islands front ops trials"
    for key in needed.split():
        if key in ("status", "fp32_ops"):
            continue
        out[f"without_{key}"] = {k: v for k, v in result.items() if k != key}
        out[f"wrong_{key}"] = {**result, key: {"a": object.__name__} if key != "costs" else 3}
    return out


__all__ = ["Net", "edited", "edited_results", "make_bad", "make_good"]
