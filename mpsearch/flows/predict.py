"""``mpsearch run``: predictions from an .npz to an .npz."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..executor.predict import Executor
from ..files import check_archive, check_writable, first_line, regular, written
from ..isolated import tried


def predict_file(
    model: str,
    inputs: str,
    out: Path,
    numerics: str = "ieee",
    device: str = "cpu",
    function_name: str | None = None,
) -> list[str]:
    """Predict for the arrays in ``inputs`` and write the outputs; returns their names.

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
    arrays = _read(inputs)
    ranks = executor.input_ranks()
    extra = {k: v.ndim - ranks[k] for k, v in arrays.items() if k in ranks}
    if extra and all(n == 1 for n in extra.values()):
        counts = {len(v) for v in arrays.values()}
        if len(counts) != 1 or counts == {0}:
            raise InputError(
                f"{inputs}: the inputs have {', '.join(map(str, sorted(counts)))} rows, expected "
                "the same number of each, 1 or more"
            )
        rows = [{k: v[i] for k, v in arrays.items()} for i in range(counts.pop())]
        results = executor.predict(rows)
        outputs = {k: np.stack([r[k] for r in results]) for k in results[0]} if results else {}
    else:
        outputs = executor.predict(arrays)
    plain = {k: np.asarray(v) for k, v in outputs.items() if not isinstance(v, dict)}
    _write(out, plain)
    return list(plain)


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
