"""``mpsearch run``: predictions from an .npz to an .npz."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..executor.predict import Executor
from ..files import check_archive, check_writable, first_line, regular, written
from ..isolated import tried
from ..program.names import by_known_names


def predict_file(
    model: str,
    inputs: str,
    out: Path,
    numerics: str = "ieee",
    device: str = "cpu",
    function_name: str | None = None,
) -> list[str]:
    """Predict for the arrays in ``inputs`` and write the outputs; returns their names.

    The arrays are one sample where each has a shape that its input is declared with. Otherwise
    their first axis counts samples (:func:`mpsearch.source.data.read`), and that of the outputs.

    Raises
    ------
    InputError
        If something cannot be read, does not fit the model, or cannot be written.
    """
    if out.suffix != ".npz":
        raise InputError(f"--out {out} is no .npz; give a path that ends in .npz")
    check_writable(out, foreign_arrays)
    try:
        executor = Executor(model, numerics, device, function_name)
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from error
    arrays = by_known_names(_read(inputs), executor.input_ranks())
    bare = _stacked(executor, arrays)
    if bare is None:
        outputs = executor.predict(arrays)
    else:
        results = executor.predict(_rows(arrays, bare, inputs))
        join = np.stack if all(bare.values()) else _joined
        outputs = {
            name: join([one[name] for one in results])
            for name, first in results[0].items()
            if not isinstance(first, dict)
        }
    plain = {k: np.asarray(v) for k, v in outputs.items() if not isinstance(v, dict)}
    _write(out, plain)
    return list(plain)


Arrays = dict[str, np.ndarray]


def _stacked(executor: Executor, arrays: Arrays) -> dict[str, bool] | None:
    """Whether rows of stacked arrays drop the first axis, by input; None where nothing is stacked.

    A row keeps it, with size 1, unless the input is declared with one axis less.
    """
    ranks = executor.input_ranks()
    known = {k: v for k, v in arrays.items() if k in ranks and v.ndim}
    if all(executor.fits(name, value.shape) for name, value in known.items()):
        return None
    bare = {name: value.ndim == ranks[name] + 1 for name, value in known.items()}
    whole = all(bare[name] or executor.fits(name, v[:1].shape) for name, v in known.items())
    return bare if whole else None


def _rows(arrays: Arrays, bare: dict[str, bool], path: str) -> list[Arrays]:
    counts = {len(arrays[name]) for name in bare}
    if len(counts) != 1 or counts == {0}:
        raise InputError(
            f"{path}: the inputs have {', '.join(map(str, sorted(counts)))} rows, expected the "
            "same number of each, 1 or more"
        )
    return [
        {k: v if k not in bare else v[i] if bare[k] else v[i : i + 1] for k, v in arrays.items()}
        for i in range(counts.pop())
    ]


def _joined(rows: list[Any]) -> np.ndarray:
    """The samples of an output behind each other: along its first axis, where that is 1."""
    arrays = [np.asarray(row) for row in rows]
    batches = all(a.ndim and len(a) == 1 for a in arrays)
    return np.concatenate(arrays) if batches else np.stack(arrays)


def _read(path: str) -> dict[str, np.ndarray]:
    file = regular(path, "an .npz keyed by input name")
    check_archive(file)
    tried(_check, [path], file)
    return _arrays(path)


def _check(path: str) -> None:
    _arrays(path)


def _arrays(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {k: archive[k] for k in archive.files}
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(f"{path} is no .npz: {first_line(error)}") from error


def foreign_arrays(path: Path) -> str | None:
    """Why what stands at a path is not to be replaced; None where it is an ``.npz``."""
    if not path.is_file():
        return "it is no file"
    try:
        with zipfile.ZipFile(path) as archive:
            other = [name for name in archive.namelist() if not name.endswith(".npy")]
    except zipfile.BadZipFile:
        return "it is no .npz"
    return f"it is no .npz: it holds {other[0]!r}" if other else None


def _write(out: Path, arrays: dict[str, np.ndarray]) -> None:
    with written(out, foreign_arrays) as scratch, scratch.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
