"""Fuzzes what mpsearch parses, guided by coverage.

    pip install atheris
    python -m tests.trials.fuzzing [--seconds 300] [target ...]

Each target runs in a process of its own, from a corpus of valid files. What is asked of every
input: it is read, or refused with an ``InputError``; anything else is a crash, as are more than
4 GiB of memory and more than 30 seconds. The inputs that did are kept in ``fuzzing-crashes/``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

TARGETS = (
    *("config", "result", "study", "npz", "safetensors", "exported", "package"),
    "profile",
)


def _seeds(target: str, here: Path) -> list[bytes]:
    """Valid inputs of a target."""
    import numpy as np
    import torch
    from safetensors.torch import save

    import mpsearch
    from tests.models import batches, net

    configs = Path(__file__).parents[1] / "configs"
    if target == "npz":
        stream = io.BytesIO()
        np.save(stream, torch.cat(batches()).numpy())
        return [stream.getvalue()]
    if target == "safetensors":
        return [save({"x": torch.cat(batches())})]
    if target == "exported":
        file = here / "seed.pt2"
        torch.export.save(torch.export.export(net().eval(), (batches()[0],)), file)
        with zipfile.ZipFile(file) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("models/model.json"))
            return [archive.read(name)]
    if target == "profile":
        from tests.trials.probes import planted

        return [planted(seed).to_json().encode() for seed in range(4)]
    if target == "config":
        return [file.read_bytes() for file in configs.glob("*.json")]
    found = mpsearch.optimize(
        net(), batches(), 1e-2, execution=mpsearch.Execution(storage=f"sqlite:///{here / 's.db'}")
    )
    out = found.save(here / "out")
    if target == "result":
        return [(out / "result.json").read_bytes()]
    if target == "package":
        return [(out / "model.mlpackage/Data/com.apple.CoreML/model.mlmodel").read_bytes()]
    import optuna

    storage = f"sqlite:///{here / 's.db'}"
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return [json.dumps(t.user_attrs).encode() for t in trials]


def _reader(target: str, here: Path) -> Callable[[bytes], object]:
    """What is fuzzed: takes the bytes, and may raise ``InputError``."""
    import torch

    from mpsearch.errors import InputError
    from mpsearch.numerics import observed
    from mpsearch.package import config
    from mpsearch.program.packages import open_package
    from mpsearch.results import result
    from mpsearch.search.study import _read
    from mpsearch.source import data
    from mpsearch.source.exported import load_exported
    from mpsearch.source.mlpackage import from_package
    from tests.models import batches, net

    def written(name: str, content: bytes) -> Path:
        (here / name).write_bytes(content)
        return here / name

    if target == "config":
        return lambda content: config.read(written("precision.json", content))
    if target == "result":
        return lambda content: result.read(written("result.json", content))
    if target == "profile":
        return lambda content: observed.read(written("profile.json", content))
    if target == "safetensors":
        return lambda content: data.read(str(written("x.safetensors", content)), ["x"], 1)
    if target == "npz":

        def npz(content: bytes) -> object:
            with zipfile.ZipFile(here / "x.npz", "w") as archive:
                archive.writestr("x.npy", content)
            return data.read(str(here / "x.npz"), ["x"], 1)

        return npz
    if target == "study":

        def study(content: bytes) -> object:
            try:
                found = json.loads(content)
            except (ValueError, RecursionError):
                return None
            if not isinstance(found, dict):
                return None
            try:  # as Store reads a trial
                return _read(found)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise InputError("not of mpsearch") from error

        return study
    if target == "exported":
        whole = here / "whole.pt2"
        torch.export.save(torch.export.export(net().eval(), (batches()[0],)), whole)
        with zipfile.ZipFile(whole) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}

        def exported(content: bytes) -> object:
            with zipfile.ZipFile(here / "x.pt2", "w") as archive:
                for name, entry in entries.items():
                    archive.writestr(name, content if name.endswith("models/model.json") else entry)
            return load_exported(here / "x.pt2", False)

        return exported
    import shutil

    import mpsearch

    mpsearch.optimize(net(), batches(), 1e-2).save(here / "made")
    shutil.copytree(here / "made/model.mlpackage", here / "x.mlpackage")
    spec = here / "x.mlpackage/Data/com.apple.CoreML/model.mlmodel"

    def package(content: bytes) -> object:
        spec.write_bytes(content)
        return from_package(open_package(here / "x.mlpackage"))

    return package


def one(target: str, seconds: int, crashes: Path) -> None:
    """Fuzz one target in this process; never returns."""
    import atheris

    with atheris.instrument_imports(include=["mpsearch"], enable_loader_override=False):
        pass

    from mpsearch.errors import InputError

    warnings.filterwarnings("ignore")
    here = Path(tempfile.mkdtemp(prefix=f"fuzzing-{target}-"))
    corpus = here / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(_seeds(target, here)):
        (corpus / f"seed-{i}").write_bytes(seed)
    read = _reader(target, here)
    os.chdir(here)

    def test(content: bytes) -> None:
        with contextlib.suppress(InputError):
            read(content)

    options = [f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-timeout=30"]
    options += ["-max_len=200000", f"-artifact_prefix={crashes}/{target}-", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], test)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], default=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--one", action="store_true")
    given = parser.parse_args()
    crashes = Path("fuzzing-crashes").absolute()
    crashes.mkdir(exist_ok=True)
    if given.one:
        one(given.targets[0], given.seconds, crashes)
    failed = 0
    for target in given.targets:
        command = [sys.executable, "-W", "ignore", "-m", "tests.trials.fuzzing", "--one", target]
        command += ["--seconds", str(given.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stderr
        ran = re.search(r"stat::number_of_executed_units:\s*(\d+)", said)
        cover = re.findall(r"cov: (\d+)", said)
        print(
            f"{target}: {ran.group(1) if ran else '?'} inputs, coverage {cover[-1:] or ['?']}, "
            f"exit {done.returncode}",
            flush=True,
        )
        if done.returncode:
            failed += 1
            print(said[-2500:], flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
