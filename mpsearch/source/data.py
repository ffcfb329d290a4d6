"""Calibration data: from files and Python objects to samples."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from ..files import SAMPLE_FILE, check_archive, first_line, is_archive, regular
from ..isolated import LoadLimits, contained, kept_state, tried
from ..memory import check_held
from ..program.names import by_known_names
from ..spool import Spool
from ..usercode import guarded, import_callable

#: By input name, shape and dtype.
Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
#: ``targets`` where every item of the inputs is (sample, target).
PAIRS = "pairs"
#: More samples than these are taken for data without an end.
MOST_SAMPLES = 1 << 16


@dataclass(slots=True)
class Data:
    """Samples, each what one call of the model takes.

    Attributes
    ----------
    samples
        Per sample, input name to tensor, with other arguments (None, numbers, flags) as they are.
    targets
        Per sample, what a task metric compares with; empty where there is none.
    noise
        Whether the samples were drawn at random.
    spool
        Where tensors that are made of the samples are kept.
    places
        Of a share of some data, where its samples stand in the whole.
    declared
        The shapes that the model's file declares, where the samples were read for a model.
    """

    samples: list[dict[str, Any]]
    targets: list[Any] = field(default_factory=list)
    noise: bool = False
    spool: Spool = field(default_factory=Spool)
    places: list[int] = field(default_factory=list)
    declared: Shapes = field(default_factory=dict)

    def split(self, heldout: float) -> tuple[Data, Data]:
        """The calibration share and the held-out share.

        Held-out samples are spread over the data, the last one among them: samples that lie beside
        each other are often alike. Of two or more samples at least one is held out, unless
        ``heldout`` is 0.

        Raises
        ------
        InputError
            If ``heldout`` is not in [0, 1).
        """
        if not 0 <= heldout < 1:
            raise InputError(f"heldout is {heldout}, expected a share from 0 to below 1")
        count = len(self.samples)
        held = min(count - 1, max(1, round(count * heldout))) if count > 1 and heldout else 0
        apart = {(place + 1) * count // held - 1 for place in range(held)}
        return (
            self._of([place for place in range(count) if place not in apart]),
            self._of(sorted(apart)),
        )

    def _of(self, places: list[int]) -> Data:
        """Some of the samples."""
        targets = [self.targets[place] for place in places] if self.targets else []
        return replace(
            self, samples=[self.samples[p] for p in places], targets=targets, places=places
        )

    @property
    def understood(self) -> str:
        """What the samples were taken for, in words: inputs by name, shape and kind."""
        inputs = ", ".join(
            f"{name} {self._sizes(name)}" if isinstance(v, Tensor) else f"{name}={v!r}"
            for name, v in self.samples[0].items()
        )
        count = len(self.samples)
        targets = ", each with a target" if self.targets else ""
        return f"{count} sample{'' if count == 1 else 's'} of {inputs}{targets}"

    def _sizes(self, name: str) -> str:
        """The shape of an input, with least and most where it differs between samples."""
        values = (sample.get(name) for sample in self.samples)
        shapes = {tuple(v.shape) for v in values if isinstance(v, Tensor)}
        if len({len(shape) for shape in shapes}) > 1:
            return " or ".join(map(str, sorted(shapes)))
        axes = [(min(sizes), max(sizes)) for sizes in zip(*shapes, strict=True)]
        said = [str(low) if low == high else f"{low} to {high}" for low, high in axes]
        return f"({', '.join(said)}{',' if len(said) == 1 else ''})"


def other_shapes(sample: Mapping[str, Any], declared: Shapes) -> list[str]:
    """The shapes that a model's file declares where a sample has others, by input, in words."""
    return [
        f"{name} {shape}"
        for name, (shape, _) in declared.items()
        if getattr(sample.get(name), "shape", shape) != shape
    ]


def argument_names(model: Any) -> list[str] | None:
    """The names of a model's arguments in order, None where any are accepted."""
    if isinstance(model, torch.jit.ScriptModule):
        schema: Any = model.forward.schema  # type: ignore[attr-defined]
        return [a.name for a in schema.arguments][1:]
    if isinstance(model, torch.export.ExportedProgram):
        return list(model.graph_signature.user_inputs)
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return names or None


def required_arguments(model: Any) -> int:
    """How many arguments of a module have no default."""
    if isinstance(model, torch.nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        parameters = inspect.signature(model.forward).parameters.values()
        return sum(
            p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            for p in parameters
        )
    return len(argument_names(model) or [])


def as_tensor(value: Any, name: str) -> Tensor:
    """An array, list or tensor as a detached tensor on the CPU, free of inference mode.

    Raises
    ------
    InputError
        If it holds anything but numbers.
    """
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        tensor = tensor.detach().cpu()
        if tensor.is_complex() or tensor.is_quantized:
            raise TypeError(f"it holds {tensor.dtype}, and Core ML takes real numbers")
        return tensor.clone() if tensor.is_inference() else tensor
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"input {name!r} is no array of numbers: {first_line(error)}") from error


def collect(inputs: Any, names: Sequence[str] | None, targets: Any = None) -> Data:
    """Samples from what a Python caller gives.

    Parameters
    ----------
    inputs
        One sample (a tensor, a tuple of arguments, a dict by argument name), a list of samples,
        an iterable of batches such as a DataLoader, or a Dataset, whose items have no batch axis.
        Batches are taken apart later (:mod:`mpsearch.source.items`).
    names
        The model's argument names, in order.
    targets
        What a task metric compares with: one for each sample, or ``"pairs"`` where every item of
        ``inputs`` is (sample, target). Never guessed from the data.

    What an iterable gives and the caller does not hold is taken in item by item, and need not fit
    the memory (:class:`mpsearch.spool.Spool`).

    Raises
    ------
    InputError
        If there are no samples, no end to them, or a sample does not fit the model's arguments.
    """
    if isinstance(inputs, (Tensor, np.ndarray, tuple, Mapping)):
        items: Iterable[Any] = [inputs]
    elif isinstance(inputs, Dataset):
        items = DataLoader(inputs, batch_size=1)
    elif isinstance(inputs, Iterable) and not isinstance(inputs, (str, bytes)):
        items = inputs
    else:
        raise InputError(
            f"inputs is a {type(inputs).__name__}; expected a tensor, a tuple, a dict, a list of "
            "those, or a DataLoader"
        )
    data = Data([])
    held = isinstance(items, Sequence)  # in the caller's own memory
    left = bytes_for_samples()
    for item in _items(items):
        if targets is PAIRS or targets == PAIRS:
            if not (isinstance(item, (tuple, list)) and len(item) == 2):
                raise InputError(
                    f"item {len(data.samples)} of the inputs is a {type(item).__name__}, expected "
                    '(sample, target), as targets="pairs" says'
                )
            item, target = item
            data.targets.append(target)
        sample = _sample(item, names, len(data.samples))
        if not held:
            sample = {name: data.spool.keep(value) for name, value in sample.items()}
        data.samples.append(sample)
        left -= sum(v.nbytes for v in sample.values() if isinstance(v, Tensor))
        if left < 0 or len(data.samples) > MOST_SAMPLES:
            raise InputError(
                f"the data does not end: {len(data.samples):,} samples so far; give at most "
                f"{MOST_SAMPLES:,}, and no more than half of what {tempfile.gettempdir()} has free"
            )
    if not data.samples:
        raise InputError("the data holds no samples; give at least one")
    if targets is not None and not (isinstance(targets, str) and targets == PAIRS):
        data.targets = _targets(targets, len(data.samples))
    return data


def _targets(targets: Any, count: int) -> list[Any]:
    with guarded("targets: reading them"):
        found = list(targets)
    if len(found) != count:
        raise InputError(f"targets hold {len(found)} rows, expected {count}, one for each sample")
    return found


def _items(items: Iterable[Any]) -> Iterator[Any]:
    """The items of the user's own iterable, whose errors are one line.

    A DataLoader draws from torch's random state, and a dataset may as well: one item after the
    other, so that they differ, and at the end the state is as before.
    """
    with kept_state():
        with guarded("inputs: reading them"):
            iterator = iter(items)
        while True:
            with guarded("inputs: reading them"):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


def bytes_for_samples() -> int:
    """Bytes that samples may take: half of what the temporary folder has free, and the memory."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    return (free + int(psutil.virtual_memory().total)) // 2


def _sample(item: Any, names: Sequence[str] | None, place: int) -> dict[str, Any]:
    if isinstance(item, Mapping):
        item = item if names is None else by_known_names(item, names)
        unknown = [k for k in item if names is not None and k not in names]
        if unknown:
            assert names is not None
            raise InputError(
                f"input {unknown[0]!r} is not known; the model takes {', '.join(names)}"
            )
        given = {str(k): v for k, v in item.items()}
    else:
        values = list(item) if isinstance(item, (tuple, list)) else [item]
        known = list(names) if names is not None else [f"input_{i}" for i in range(len(values))]
        if len(values) > len(known):
            hint = '; if each item is (sample, target), say targets="pairs"'
            raise InputError(
                f"a sample has {len(values)} inputs, the model takes {len(known)}: "
                + ", ".join(known)
                + (hint if len(values) == len(known) + 1 else "")
            )
        given = dict(zip(known, values, strict=False))
    return {k: _argument(k, v, place) for k, v in given.items() if v is not None}


def _argument(name: str, value: Any, place: int) -> Any:
    """A tensor, or a constant that can be written into Python code as it is."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        if isinstance(value, Tensor) and (value.is_nested or value.layout is not torch.strided):
            kind = "nested" if value.is_nested else "sparse"
            raise InputError(
                f"sample {place}: input {name!r} is a {kind} tensor, which Core ML does not take; "
                "give a dense one (to_dense, to_padded_tensor)"
            )
        tensor = as_tensor(value, name)
        if not tensor.numel():
            raise InputError(
                f"sample {place}: input {name!r} has shape {tuple(tensor.shape)} and holds no "
                "values; give samples with at least one"
            )
        return tensor
    if is_picture(value):
        return value
    if not _literal(value):
        raise InputError(
            f"sample {place}: input {name!r} is a {type(value).__name__}; expected a tensor, an "
            "array, a number, a text, a truth value, or a list of these"
        )
    return value


def is_picture(value: Any) -> bool:
    """Whether a value is a PIL image, which is not loaded to find out."""
    return any(kind.__module__ == "PIL.Image" for kind in type(value).__mro__)


def _literal(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(_literal, value))
    return type(value) in (bool, int, float, str, type(None))


def read(
    path: str,
    names: Sequence[str] | None,
    required: int,
    targets: Any = None,
    shapes: Shapes | None = None,
    limits: LoadLimits = LoadLimits(),
) -> Data:
    """Samples from a file keyed by input name (first axis = samples), or from a callable.

    A row keeps the first axis, with size 1, which is the batch axis that most models have; where
    the model declares an input of one axis less than the array (``shapes``), the row drops it.
    ``targets`` is another such file, whose first array counts, one target for each sample, or
    ``pairs`` where a callable gives (sample, target).

    Raises
    ------
    InputError
        If the file is missing, unreadable, empty, or its keys are not the model's inputs.
    """
    shapes = shapes or {}
    file = str(targets) if isinstance(targets, (str, Path)) else None
    paired = PAIRS if file == PAIRS and not Path(PAIRS).exists() else None
    if ":" in path and not Path(path).exists():
        made = import_callable(path, "inputs")
        with guarded(f"inputs {path!r}: the callable"):
            items = made()
        data = collect([items] if isinstance(items, (Tensor, Mapping)) else items, names, paired)
    else:
        if paired is not None:
            raise InputError(
                "--targets pairs goes with --inputs package.module:callable; with a file give the "
                "targets as another file"
            )
        spool = Spool()
        arrays = _read_arrays(path, spool, limits)
        arrays = arrays if names is None else by_known_names(arrays, names)
        data = Data(_rows(arrays, path, names, required, shapes), spool=spool)
    data.declared = shapes
    if file is not None and paired is None:
        first = next(iter(_read_arrays(file, data.spool, limits).values()), torch.empty(0))
        targets = first if first.dim() else first[None]
    if targets is not None and paired is None:
        data.targets = _targets(targets, len(data.samples))
    return data


def _read_arrays(path: str, spool: Spool, limits: LoadLimits) -> dict[str, Tensor]:
    file = regular(path, SAMPLE_FILE)
    if file.suffix not in (".npz", ".safetensors", ".pt", ".pth"):
        raise InputError(f"{path} is of no known kind; expected .npz, .pt or .safetensors")
    if is_archive(file):
        check_archive(file)
    tried(_check_arrays, [path], file, limits)
    with contained():
        return _checked_arrays(path, spool)


def _check_arrays(path: str) -> None:
    _checked_arrays(path, Spool())


def _checked_arrays(path: str, spool: Spool) -> dict[str, Tensor]:
    try:
        found = _arrays(Path(path), spool)
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(found, Mapping):
        raise InputError(
            f"{path} holds a {type(found).__name__}, expected a dict from input name to tensor"
        )
    try:
        arrays = {str(k): as_tensor(v, str(k)) for k, v in found.items()}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    check_held(arrays, path)
    return arrays


def _arrays(file: Path, spool: Spool) -> Any:
    """The arrays of a file, mapped where its kind allows it."""
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as archive:
            return {k: spool.keep(as_tensor(archive[k], k)) for k in archive.files}
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive(file))


def _rows(
    arrays: dict[str, Tensor],
    path: str,
    names: Sequence[str] | None,
    required: int,
    shapes: Shapes,
) -> list[dict[str, Any]]:
    if not arrays:
        raise InputError(f"{path} is empty; expected arrays keyed by input name")
    unknown = [k for k in arrays if names is not None and k not in names]
    if unknown:
        assert names is not None
        raise InputError(f"{path} has the key {unknown[0]!r}, the model takes {', '.join(names)}")
    missing = [k for k in (names or [])[:required] if k not in arrays]
    if missing:
        raise InputError(f"{path} lacks the input {missing[0]!r}; it holds {', '.join(arrays)}")
    lengths = {k: len(v) if v.dim() else 0 for k, v in arrays.items()}
    count = min(lengths.values())
    if max(lengths.values()) != count:
        raise InputError(
            f"{path}: the inputs have different numbers of samples: "
            + ", ".join(f"{k} {n}" for k, n in lengths.items())
        )
    if not count:
        raise InputError(f"{path} holds no samples; give at least one")
    if count > MOST_SAMPLES:
        raise InputError(f"{path} holds {count:,} samples; give at most {MOST_SAMPLES:,}")
    bare = {k for k, v in arrays.items() if k in shapes and len(shapes[k][0]) == v.dim() - 1}
    for name, value in arrays.items():
        wanted = shapes[name][0] if name in shapes else value.shape
        if name not in bare and len(wanted) != value.dim():
            rows = ", ".join(map(str, ["samples", *wanted[1:]]))
            raise InputError(
                f"{path}: {name!r} has the shape {tuple(value.shape)}, and the model takes "
                f"{tuple(wanted)}; give an array of shape ({rows})"
            )
    order = [k for k in names or arrays if k in arrays]
    return [
        {k: _argument(k, arrays[k][i] if k in bare else arrays[k][i : i + 1], i) for k in order}
        for i in range(count)
    ]


#: By how much redrawn inputs are moved, in turn: floats relative to each value, or to how much the
#: values of an input differ where that is less; of integers the share that is exchanged. So little
#: that they are inputs like the samples, and enough to come to other roundings and to other near
#: decisions.
_MOVED = (0.01, 0.1)
#: The share of an input's values that FP16 holds from which on that is no chance: of random numbers
#: it holds one in 8,192.
_HELD = 0.01


def redrawn(samples: Sequence[dict[str, Any]], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """``count`` samples like those given, in turn, moved by some 1% or 10%.

    Every float is moved, by a share of itself, or of how much the values of its input differ where
    that is less; of integers a share is taken from the same places of another sample. Rounding
    errors of FP16 then fall otherwise, at the same sizes. Inputs of two values at most, masks for
    instance, stay; without others there are none. Where an input has values that FP16 holds as they
    are (pixels, positions), what they become is so as well: they are not rounded on the way in.
    """
    generator = torch.Generator().manual_seed(seed)
    many = {name for name in samples[0] if _values(samples, name) > 2}
    floats = sorted(name for name in many if samples[0][name].is_floating_point())
    whole = sorted(many.difference(floats)) if len(samples) > 1 else []
    for place in range(count if floats or whole else 0):
        sample = dict(samples[place % len(samples)])
        size = _MOVED[place // len(samples) % len(_MOVED)]
        for name in floats:
            if name in sample:
                sample[name] = _moved(sample[name], size, generator)
        other = samples[int(torch.randint(len(samples), (), generator=generator))] if whole else {}
        for name in whole:
            if name in sample and name in other:
                sample[name] = _exchanged(sample[name], other[name], size, generator)
        yield sample


def _values(samples: Sequence[dict[str, Any]], name: str) -> int:
    """How many values an input has; 0 for what is no tensor. Of floats in the first sample."""
    value = samples[0][name]
    if not isinstance(value, Tensor) or value.is_complex():
        return 0
    if value.is_floating_point():
        return len(value.unique())
    return len(torch.cat([sample[name].flatten() for sample in samples if name in sample]).unique())


def _moved(value: Tensor, size: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(value.shape, generator=generator)
    wide = value.float()
    moved = wide + size * torch.minimum(wide.abs(), wide.std()) * noise
    held = (wide == wide.half().float()) & (wide != 0)
    if held.float().mean() >= _HELD:
        moved = torch.where(held, moved.half().float(), moved)
    return moved.to(value.dtype)


def _exchanged(value: Tensor, other: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """Some of the integers, one at least, from the same places of another sample's."""
    if value.shape != other.shape:
        return value
    taken = torch.rand(value.shape, generator=generator) < size
    taken.flatten()[torch.randint(value.numel(), (), generator=generator)] = True
    return torch.where(taken, other, value)
