"""A model as every kind of source that mpsearch takes, and its samples in every form."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import mpsearch

from . import models
from .draw import Run
from .models import ARCHITECTURES, Sample

Predict = Callable[[Sample], list[Tensor]]


@dataclass(frozen=True)
class Source:
    """A model as a run gives it.

    Attributes
    ----------
    given
        What Python gets.
    arguments
        What the shell gets.
    predict
        What the model gives in FP32, by PyTorch; of a package, by itself.
    module
        The module in FP32 on its own, to convert by coremltools alone.
    """

    given: Any
    arguments: list[str]
    predict: Predict
    module: torch.nn.Module


def source(run: Run, folder: Path) -> Source:
    """The source of a run, in files in ``folder``."""
    architecture = ARCHITECTURES[run.architecture]
    module = architecture.build(run.weights)
    sample = architecture.samples(run.seed, 1)[0]
    return _MAKERS[run.source](run, module, sample, folder)


def in_torch(module: Any, states: tuple[str, ...] = ()) -> Predict:
    """What a module gives for a sample, from states of zeros."""

    def predict(sample: Sample) -> list[Tensor]:
        buffers = dict(module.named_buffers())
        with torch.no_grad():
            for name in states:
                buffers[name].zero_()
            out = module(*(v.clone() for v in sample.values()))
        return [v.clone() for v in (out if isinstance(out, tuple) else (out,))]

    return predict


def _source(run: Run, module: torch.nn.Module, given: Any, arguments: list[str]) -> Source:
    own = copy.deepcopy(module).float().eval()
    predict = in_torch(own, ARCHITECTURES[run.architecture].states)
    return Source(given, arguments, predict, own)


def _factory_name(run: Run) -> str:
    return f"{models.__name__}:{run.architecture}_{run.weights}"


def _module(run: Run, module: torch.nn.Module, sample: Sample, folder: Path) -> Source:
    given = module.train() if run.variant % 3 == 0 else module
    return _source(run, module, given, [_factory_name(run)])


def _half(dtype: torch.dtype) -> Callable[..., Source]:
    def make(run: Run, module: torch.nn.Module, sample: Sample, folder: Path) -> Source:
        half = module.to(dtype)
        weights = _weights(half, folder / "weights", run.variant)
        # In the shell, a factory's module takes the weights in, and stays FP32.
        given = copy.deepcopy(half).float() if run.shell else half
        return _source(run, half, given, [_factory_name(run), "--weights", weights])

    return make


def _factory(run: Run, module: torch.nn.Module, sample: Sample, folder: Path) -> Source:
    if not run.shell:
        return _source(run, module, _factory_name(run), [])
    # Weights of another seed with the same factor: they have to arrive.
    other = ARCHITECTURES[run.architecture].build(run.weights + 2)
    weights = _weights(other, folder / "weights", run.variant)
    return _source(run, other, other, [_factory_name(run), "--weights", weights])


def _weights(module: torch.nn.Module, path: Path, variant: int) -> str:
    state = {k: v.contiguous() for k, v in module.state_dict().items()}
    if variant % 2:
        save_file(state, path.with_suffix(".safetensors"))
        return str(path.with_suffix(".safetensors"))
    torch.save(state, path.with_suffix(".pt"))
    return str(path.with_suffix(".pt"))


def _traced(module: torch.nn.Module, sample: Sample) -> Any:
    with torch.no_grad():  # a state that is written to keeps no graph
        return torch.jit.trace(copy.deepcopy(module), tuple(sample.values()), check_trace=False)


def _pt(run: Run, module: torch.nn.Module, sample: Sample, folder: Path) -> Source:
    path = folder / "model.pt"
    _traced(module, sample).save(str(path))
    written = scripted_format(path)
    wanted = 3 + run.variant
    if wanted > written:
        _as_format(path, wanted)
    loaded = torch.jit.load(str(path))
    given = torch.jit.load(str(path)) if run.seed % 3 == 0 else str(path)
    predict = in_torch(loaded, ARCHITECTURES[run.architecture].states)
    return Source(given, [str(path)], predict, module)


def scripted_format(path: Path) -> int:
    """The format of a TorchScript file, as torch writes it."""
    with zipfile.ZipFile(path) as archive:
        (entry,) = (n for n in archive.namelist() if n.endswith(("/version", ".data/version")))
        return int(archive.read(entry))


def _as_format(path: Path, wanted: int) -> None:
    """Say a later format, in the record that torch writes it to: it changes no op."""
    with zipfile.ZipFile(path) as archive:
        entries = {n: archive.read(n) for n in archive.namelist() if not n.endswith("version")}
    root = next(iter(entries)).partition("/")[0]
    entries[f"{root}/{'.data/version' if wanted >= 6 else 'version'}"] = f"{wanted}\n".encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in entries.items():
            archive.writestr(name, body)


def _pt2(run: Run, module: torch.nn.Module, sample: Sample, folder: Path) -> Source:
    program = torch.export.export(copy.deepcopy(module), tuple(sample.values()))
    path = folder / "model.pt2"
    torch.export.save(program, path)
    return _source(run, module, program if run.variant % 2 else str(path), [str(path)])


def _package(run: Run, module: torch.nn.Module, sample: Sample, folder: Path) -> Source:
    path = folder / "model.mlpackage"
    own = copy.deepcopy(module)
    if run.has_layers:
        made = mpsearch.convert(module, sample)
    else:
        made = plain(own, sample, "iOS17", "fp32", ct.precision.FLOAT32)
    made.save(str(path))
    executor = mpsearch.Executor(str(path))

    def predict(sample: Sample) -> list[Tensor]:
        out = executor.predict({k: v.numpy() for k, v in sample.items()})
        return [torch.as_tensor(v) for v in out.values()]

    return Source(str(path) if run.seed % 2 else made, [str(path)], predict, own)


_MAKERS: dict[str, Callable[..., Source]] = {
    "module": _module,
    "pt": _pt,
    "pt2": _pt2,
    "package": _package,
    "factory": _factory,
    "bf16": _half(torch.bfloat16),
    "fp16": _half(torch.float16),
}


def plain(
    module: torch.nn.Module, sample: Sample, target: str, io_dtype: str, precision: Any
) -> Any:
    """The package that coremltools makes, without mpsearch."""
    floats = np.float16 if io_dtype == "fp16" else np.float32
    given = in_torch(module)(sample)
    outputs = [
        ct.TensorType(dtype=floats if value.is_floating_point() else np.int32) for value in given
    ]
    inputs = [
        ct.TensorType(
            name=name, shape=value.shape, dtype=floats if value.is_floating_point() else np.int32
        )
        for name, value in sample.items()
    ]
    # States are FP16 in Core ML.
    states = [
        ct.StateType(ct.TensorType(shape=b.shape, dtype=np.float16), name)
        for name, b in module.named_buffers()
        if name in ARCHITECTURES["states"].states
    ]
    return ct.convert(
        _traced(module, sample),
        inputs=inputs,
        outputs=outputs,
        states=states or None,
        minimum_deployment_target=getattr(ct.target, target),
        compute_precision=precision,
        skip_model_load=True,
    )


# --- samples ---------------------------------------------------------------------------------


def batched(samples: list[Sample]) -> Sample:
    """All samples in one, along the first axis."""
    return {name: torch.cat([s[name] for s in samples]) for name in samples[0]}


def in_python(run: Run, samples: list[Sample]) -> Any:
    """The samples in the form that a run gives them in."""
    if run.form == "tuples":
        return [tuple(sample.values()) for sample in samples]
    if run.form == "batch":
        return batched(samples)
    if run.form == "loader":
        rows = [{k: v[0] for k, v in sample.items()} for sample in samples]
        # Whole batches of one size: coremltools does not convert every model for several.
        size = 1 if run.get("batches") == "whole" and len(rows) % 2 else 2
        return torch.utils.data.DataLoader(rows, batch_size=size)  # type: ignore[arg-type]
    return samples


def on_disk(run: Run, samples: list[Sample], folder: Path) -> list[str]:
    """The arguments that give the samples in the shell."""
    if run.form == "callable":
        kind = "pairs" if run.get("pairs") else "samples"
        name = f"{run.architecture}_{kind}_{run.seed}_{len(samples)}"
        return ["--inputs", f"{models.__name__}:{name}"]
    arrays = batched(samples)
    path = folder / f"samples.{run.form}"
    if run.form == "npz":
        np.savez(path, **{k: v.numpy() for k, v in arrays.items()})
    elif run.form == "pt":
        torch.save(arrays, path)
    else:
        save_file(arrays, path)
    return ["--inputs", str(path)]
