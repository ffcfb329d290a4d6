"""Calibration data: from files and Python objects to samples."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .metrics import import_callable


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
    """

    samples: list[dict[str, Any]]
    targets: list[Any] = field(default_factory=list)
    noise: bool = False

    def split(self, heldout: float) -> tuple[Data, Data]:
        """The calibration share and the held-out share (the samples at the end).

        Of two or more samples at least one is held out, unless ``heldout`` is 0.

        Raises
        ------
        InputError
            If ``heldout`` is not in [0, 1).
        """
        if not 0 <= heldout < 1:
            raise InputError(f"heldout is {heldout}, expected a share from 0 to below 1")
        count = len(self.samples)
        held = min(count - 1, max(1, round(count * heldout))) if count > 1 and heldout else 0
        cut = count - held
        return (
            Data(self.samples[:cut], self.targets[:cut], self.noise),
            Data(self.samples[cut:], self.targets[cut:], self.noise),
        )


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


def as_tensor(value: Any) -> Tensor:
    """An array, list or tensor as a detached tensor on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    return torch.as_tensor(np.asarray(value))


def collect(inputs: Any, names: Sequence[str] | None, required: int) -> Data:
    """Samples from what a Python caller gives.

    Parameters
    ----------
    inputs
        One sample (a tensor, a tuple of arguments, a dict by argument name), a list of samples,
        or an iterable of batches such as a DataLoader. A pair whose second part is one argument
        more than the model requires is (sample, target).
    names
        The model's argument names, in order.
    required
        How many arguments the model cannot do without.

    Raises
    ------
    InputError
        If there are no samples, or a sample does not fit the model's arguments.
    """
    if isinstance(inputs, (Tensor, np.ndarray, tuple, Mapping)):
        items: Iterable[Any] = [inputs]
    elif isinstance(inputs, Iterable):
        items = inputs
    else:
        raise InputError(
            f"inputs is a {type(inputs).__name__}; expected a tensor, a tuple, a dict, a list of "
            "those, or a DataLoader"
        )
    from_loader = not isinstance(inputs, (list, tuple, Mapping, Tensor, np.ndarray))
    samples, targets = [], []
    for item in items:
        target: Any = None
        pair = isinstance(item, (tuple, list)) and len(item) == 2
        if pair and (isinstance(item[0], (tuple, Mapping)) or (from_loader and required <= 1)):
            item, target = item[0], item[1]
            targets.append(target)
        samples.append(_sample(item, names))
    if not samples:
        raise InputError("the data holds no samples; give at least one")
    if targets and len(targets) != len(samples):
        raise InputError("some samples come with a target and some without; give all or none")
    return Data(samples, targets)


def _sample(item: Any, names: Sequence[str] | None) -> dict[str, Any]:
    if isinstance(item, Mapping):
        unknown = [k for k in item if names is not None and k not in names]
        if unknown:
            assert names is not None
            raise InputError(
                f"input {unknown[0]!r} is not known; the model takes {', '.join(names)}"
            )
        given = dict(item)
    else:
        values = list(item) if isinstance(item, (tuple, list)) else [item]
        known = list(names) if names is not None else [f"input_{i}" for i in range(len(values))]
        if len(values) > len(known):
            raise InputError(
                f"a sample has {len(values)} inputs, the model takes {len(known)}: "
                + ", ".join(known)
            )
        given = dict(zip(known, values, strict=False))
    return {
        k: as_tensor(v) if isinstance(v, (Tensor, np.ndarray)) else v
        for k, v in given.items()
        if v is not None
    }


Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def read(
    path: str,
    names: Sequence[str] | None,
    required: int,
    targets: str | None = None,
    shapes: Shapes | None = None,
) -> Data:
    """Samples from a file keyed by input name (first axis = samples), or from a callable.

    A row keeps the first axis, with size 1, which is the batch axis that most models have; where
    the model declares an input of one axis less than the array (``shapes``), the row drops it.

    Raises
    ------
    InputError
        If the file is missing, unreadable, empty, or its keys are not the model's inputs.
    """
    if ":" in path and not Path(path).exists():
        made = import_callable(path, "inputs")()
        data = collect(made if not isinstance(made, (Tensor, Mapping)) else [made], names, required)
    else:
        arrays = _read_arrays(path)
        data = Data(_rows(arrays, path, names, required, shapes or {}))
    if targets is not None:
        arrays = _read_arrays(targets)
        first = next(iter(arrays.values()), torch.empty(0))
        if len(first) != len(data.samples):
            raise InputError(
                f"targets {targets} hold {len(first)} rows, expected "
                f"{len(data.samples)}, one for each sample"
            )
        data.targets = [first[i] for i in range(len(first))]
    return data


def _read_arrays(path: str) -> dict[str, Tensor]:
    file = Path(path)
    if not file.exists():
        raise InputError(
            f"{path} does not exist; give a .npz, .pt or .safetensors file keyed by input name, or "
            "package.module:callable"
        )
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                return {k: torch.as_tensor(archive[k]) for k in archive.files}
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        if file.suffix in (".pt", ".pth"):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
            if isinstance(loaded, dict):
                return {str(k): as_tensor(v) for k, v in loaded.items()}
            raise InputError(
                f"{path} holds a {type(loaded).__name__}, expected a dict from input name to tensor"
            )
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    raise InputError(f"{path} is of no known kind; expected .npz, .pt or .safetensors")


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
    bare = {k for k, v in arrays.items() if k in shapes and len(shapes[k][0]) == v.dim() - 1}
    order = [k for k in names or arrays if k in arrays]
    return [
        {k: arrays[k][i] if k in bare else arrays[k][i : i + 1] for k in order}
        for i in range(count)
    ]


def drawn(
    shapes: Shapes, names: Sequence[str] | None, required: int, count: int, seed: int
) -> Data:
    """Random samples: standard normal floats, zeros and ones for integers.

    Raises
    ------
    InputError
        If ``count`` is below 1, or the shape of a required input is not known.
    """
    unknown = [k for k in (names or [])[:required] if k not in shapes]
    if unknown:
        raise InputError(
            f"--random needs the shape of input {unknown[0]!r}, which the model does not say; "
            f"give --shape {unknown[0]}=1,3,224,224"
        )
    if count < 1:
        raise InputError(f"--random {count}: give the number of samples, 1 or more")
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        sample: dict[str, Any] = {}
        for name, (shape, dtype) in shapes.items():
            if dtype.is_floating_point:
                sample[name] = torch.randn(shape, generator=generator).to(dtype)
            else:
                sample[name] = torch.randint(0, 2, shape, generator=generator).to(dtype)
        samples.append(sample)
    return Data(samples, noise=True)
