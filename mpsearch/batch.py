"""``mpsearch run``: predictions from an .npz to an .npz."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from .errors import InputError
from .predict import Executor


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
    try:
        executor = Executor(model, numerics, device, function_name)
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from error
    arrays = _read(inputs)
    ranks = executor.input_ranks()
    extra = {k: v.ndim - ranks[k] for k, v in arrays.items() if k in ranks}
    if extra and all(n == 1 for n in extra.values()):
        counts = {len(v) for v in arrays.values()}
        if len(counts) != 1:
            raise InputError(f"{inputs}: the inputs have different numbers of rows")
        rows = [{k: v[i] for k, v in arrays.items()} for i in range(counts.pop())]
        results = executor.predict(rows)
        outputs = {k: np.stack([r[k] for r in results]) for k in results[0]} if results else {}
    else:
        outputs = executor.predict(arrays)
    plain = {k: np.asarray(v) for k, v in outputs.items() if not isinstance(v, dict)}
    _write(out, plain)
    return list(plain)


def _read(path: str) -> dict[str, np.ndarray]:
    if not Path(path).exists():
        raise InputError(f"{path} does not exist; give an .npz keyed by input name")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {k: archive[k] for k in archive.files}
    except Exception as error:
        raise InputError(f"{path} is no .npz: {str(error).splitlines()[0]}") from error


def _write(out: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        handle, name = tempfile.mkstemp(suffix=".npz", prefix=f".{out.name}-", dir=out.parent)
    except OSError as error:
        raise InputError(
            f"cannot write to {out.parent}: {error.strerror}; give another --out"
        ) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        os.replace(name, out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
