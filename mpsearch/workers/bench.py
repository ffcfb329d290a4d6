"""All that a process needs to evaluate sets of a search: the program, its samples, the references.

As an object it goes to a Dask cluster. As a folder of data (JSON and safetensors) it goes to
machines that share nothing; reading one runs no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from ..ending import Ending
from ..errors import InputError
from ..evaluation.evaluator import Evaluator
from ..evaluation.incremental import Incremental
from ..evaluation.metrics import NAMES, Metric, Outputs, resolve
from ..files import read_json, regular, written
from ..numerics.profiles import PROFILES, Profile
from ..program import stored
from ..program.graph import Function
from ..program.precision import Precision
from ..search.answering import Answerer
from ..search.response import Sketch

_STRUCTURE, _ARRAYS = "bench.json", "arrays.safetensors"
#: Of the layout of a folder.
_VERSION = 2
#: Bytes to which the fastest kernels align.
_LINE = 64


@dataclass(frozen=True)
class Bench:
    """What answers calls, apart from the memory of results.

    Attributes
    ----------
    candidates
        How many ops can be chosen.
    samples, references
        Per sample, name to tensor.
    metric, targets, chance, drawn
        Those of :class:`mpsearch.evaluation.evaluator.Evaluator`.
    harmless, seed
        Those of :class:`mpsearch.search.answering.Answerer` and its sketch.
    canary
        Digest of what all-FP16 gives for the first sample where the search runs: a machine that
        computes otherwise is of no use to it.
    """

    function: Function
    candidates: int
    samples: Sequence[Mapping[str, Tensor]]
    references: Sequence[Outputs]
    metric: Metric
    targets: Sequence[Any]
    profiles: Sequence[Profile]
    chance: float | None
    drawn: int
    harmless: frozenset[str] | None
    seed: int
    canary: str

    @classmethod
    def of(cls, answerer: Answerer) -> Bench:
        """What this one works with."""
        evaluator = answerer.evaluator
        engine = evaluator.backend
        return cls(
            engine.function,
            engine.candidates,
            [engine.sample(i) for i in range(engine.samples)],
            list(evaluator.references),
            evaluator.metric,
            list(evaluator.targets),
            [runtime.profile for runtime in engine.runtimes],
            evaluator.chance,
            evaluator.drawn,
            answerer.harmless,
            answerer.sketch.seed,
            _canary(engine),
        )

    def answerer(
        self, device: str = "cpu", cache_bytes: int | None = None, ending: Ending | None = None
    ) -> Answerer:
        """One that answers as that of the search does.

        Raises
        ------
        InputError
            Where this machine computes otherwise.
        """
        engine = Incremental(
            self.function, self.candidates, self.samples, self.profiles, device, cache_bytes, ending
        )
        evaluator = Evaluator(engine, self.references, self.metric, self.targets, self.chance)
        evaluator.drawn = self.drawn
        # Before the first run, so that what is lost is seen from then on.
        made = Answerer(evaluator, Sketch(evaluator.references, self.seed), self.harmless)
        if _canary(engine) != self.canary:
            raise InputError(
                "this machine computes other results than the one that searches; use machines of "
                "one kind, with the same versions"
            )
        return made

    # -- as data -----------------------------------------------------------------------------------

    @cached_property
    def _parts(self) -> tuple[Any, dict[str, Tensor]]:
        """Its structure as JSON has it, and its arrays; metric, targets and profiles by name."""
        program, arrays = stored.dump(self.function)
        tensors = {f"constant {i}": _tensor(array) for i, array in enumerate(arrays)}
        for kind, rows in (("sample", self.samples), ("reference", self.references)):
            for i, row in enumerate(rows):
                tensors |= {f"{kind} {i} {name}": v.detach().cpu() for name, v in row.items()}
        structure = {
            "version": _VERSION,
            "program": program,
            "candidates": self.candidates,
            "samples": [list(row) for row in self.samples],
            "references": [list(row) for row in self.references],
            "offsets": {name: value.data_ptr() % _LINE for name, value in tensors.items()},
            "metric": self.metric.name,
            "numerics": [profile.name for profile in self.profiles],
            "chance": self.chance,
            "drawn": self.drawn,
            "harmless": None if self.harmless is None else sorted(self.harmless),
            "seed": self.seed,
            "canary": self.canary,
        }
        return structure, tensors

    @classmethod
    def _of_parts(
        cls,
        structure: Any,
        tensors: Mapping[str, Tensor],
        metric: Metric,
        targets: Sequence[Any],
        profiles: Sequence[Profile],
    ) -> Bench:
        if structure["version"] != _VERSION:
            raise ValueError(f"version {structure['version']}")
        offsets, harmless = structure["offsets"], structure["harmless"]
        placed = {name: _placed(v, int(offsets[name]) % _LINE) for name, v in tensors.items()}
        count = sum(name.startswith("constant ") for name in placed)
        return cls(
            stored.load(
                structure["program"], [placed[f"constant {i}"].numpy() for i in range(count)]
            ),
            int(structure["candidates"]),
            _rows(placed, "sample", structure["samples"]),
            _rows(placed, "reference", structure["references"]),
            metric,
            targets,
            profiles,
            None if structure["chance"] is None else float(structure["chance"]),
            int(structure["drawn"]),
            None if harmless is None else frozenset(str(name) for name in harmless),
            int(structure["seed"]),
            str(structure["canary"]),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        structure, tensors = self._parts
        arrays = {name: value.contiguous().numpy() for name, value in tensors.items()}
        metric = self.metric.name if self.metric.name in NAMES else self.metric
        return _unpickled, (structure, arrays, metric, self.targets, self.profiles)

    @cached_property
    def digest(self) -> str:
        """What tells it apart from others: its samples may grow while a search goes on."""
        structure, tensors = self._parts
        found = xxhash.xxh3_128(json.dumps(structure, sort_keys=True).encode())
        for name in sorted(tensors):
            found.update(_bytes(tensors[name]))
        return str(found.hexdigest())

    def write(self, folder: Path) -> Path:
        """Write it into ``folder``, under its digest.

        Raises
        ------
        InputError
            If a numerics profile is no built-in one, a target is no number or array, or the folder
            cannot be written.
        """
        for profile in self.profiles:
            if PROFILES.get(profile.name) is not profile:
                raise InputError(
                    f"numerics {profile.name!r} is of your own, which workers that share a storage "
                    "do not have; search on a Dask cluster"
                )
        structure, tensors = self._parts
        structure = {**structure, "targets": [_target(target) for target in self.targets]}
        target = folder / self.digest
        if target.exists():
            return target
        from safetensors.numpy import save_file

        with written(target, lambda _: None) as scratch:
            scratch.mkdir()
            arrays = {name: value.contiguous().numpy() for name, value in tensors.items()}
            save_file(arrays, scratch / _ARRAYS)
            (scratch / _STRUCTURE).write_text(json.dumps(structure), encoding="utf-8")
        return target

    @classmethod
    def read(cls, folder: Path, metric: str | None = None) -> Bench:
        """The bench in a folder that :meth:`write` made.

        ``metric`` is ``package.module:callable`` where the search has a metric of its own: code is
        run that the user names here, never what a file names.

        Raises
        ------
        InputError
            If there is something else, or its metric is not the one given.
        """
        structure = read_json(folder / _STRUCTURE, "a folder that mpsearch optimize wrote")
        file = regular(folder / _ARRAYS, "a folder that mpsearch optimize wrote")
        try:
            from safetensors import safe_open

            with safe_open(file, framework="pt") as opened:
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            name = str(structure["metric"])
            if name not in NAMES and metric != name:
                raise InputError(f"the search has the metric {name!r}; give --metric {name}")
            targets = [_from_target(target) for target in structure["targets"]]
            profiles = [PROFILES[name] for name in structure["numerics"]]
            return cls._of_parts(structure, found, resolve(name, bool(targets)), targets, profiles)
        except InputError:
            raise
        except Exception as error:  # whatever safetensors raises, and what the structure lacks
            raise InputError(
                f"{folder} holds no search that this mpsearch can work on; run mpsearch optimize "
                "and mpsearch worker of one version"
            ) from error


def _unpickled(
    structure: Any,
    arrays: Mapping[str, np.ndarray],
    metric: str | Metric,
    targets: Sequence[Any],
    profiles: Sequence[Profile],
) -> Bench:
    tensors = {name: _tensor(array) for name, array in arrays.items()}
    named = resolve(metric, bool(targets)) if isinstance(metric, str) else metric
    return Bench._of_parts(structure, tensors, named, targets, profiles)


def benches(folder: Path) -> dict[str, Path]:
    """The benches in a folder, by digest."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    return {n: folder / n for n in names if (folder / n / _STRUCTURE).is_file()}


def _canary(engine: Incremental) -> str:
    executions = engine.executions
    found = engine.outputs(Precision.all_fp16(engine.candidates), 0)
    engine.executions = executions
    digest = xxhash.xxh3_64()
    for name in sorted(found):
        digest.update(_bytes(found[name]))
    return str(digest.hexdigest())


def _bytes(value: Tensor) -> memoryview:
    return np.ascontiguousarray(value.cpu().numpy()).reshape(-1).view(np.uint8).data


def _tensor(array: np.ndarray) -> Tensor:
    """``array`` as a tensor of its memory, where that is in order and may be written."""
    if array.flags.c_contiguous and array.flags.writeable:
        return torch.from_numpy(array)
    return torch.empty(array.shape, dtype=_dtype(array)).copy_(torch.from_numpy(array.copy()))


def _dtype(array: np.ndarray) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


def _placed(value: Tensor, offset: int) -> Tensor:
    """``value`` at an address so many bytes beyond a multiple of 64, in memory of its own if not.

    BLAS sums in another order where data is aligned otherwise.
    """
    if value.data_ptr() % _LINE == offset or not value.numel():
        return value
    size = value.numel() * value.element_size()
    room = torch.empty(size + _LINE, dtype=torch.uint8)
    start = (offset - room.data_ptr()) % _LINE
    return room[start : start + size].view(value.dtype).view(value.shape).copy_(value)


def _rows(found: Mapping[str, Tensor], kind: str, names: Any) -> list[dict[str, Tensor]]:
    return [{str(n): found[f"{kind} {i} {n}"] for n in row} for i, row in enumerate(names)]


def _target(target: Any) -> Any:
    """A target as JSON.

    Raises
    ------
    InputError
        If it is no number, string or array of numbers.
    """
    if isinstance(target, (str, bool, int)) or target is None:
        return target
    if isinstance(target, float):
        return {"kind": "float", "value": str(target)}  # JSON has no infinity
    array = np.asarray(target.cpu() if isinstance(target, Tensor) else target)
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"a target is a {type(target).__name__}, which workers that share a storage cannot "
            "read; give numbers or arrays, or search on a Dask cluster"
        )
    kind = "tensor" if isinstance(target, Tensor) else "array"
    whole = {"dtype": str(array.dtype), "shape": array.shape, "bytes": array.tobytes().hex()}
    return {"kind": kind, **whole}


def _from_target(found: Any) -> Any:
    if not isinstance(found, dict):
        return found
    if found["kind"] == "float":
        return float(found["value"])
    flat = np.frombuffer(bytes.fromhex(found["bytes"]), np.dtype(str(found["dtype"])))
    array = flat.reshape([int(n) for n in found["shape"]]).copy()
    return torch.from_numpy(array) if found["kind"] == "tensor" else array
