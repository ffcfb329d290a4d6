"""The study of a search, stored where that is asked for, so that another run can go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import xxhash

from ..ending import Ending
from ..options import Execution
from ..search.study import Study
from ..source.identity import data_digest, study_name, versions
from ..source.prepare import Prepared


def study(
    prepared: Prepared,
    execution: Execution,
    ending: Ending,
    asked: Mapping[str, Any],
    about: Mapping[str, Any],
    changes: str = "",
    backend: str = "executor",
) -> Study:
    """The study of a search; with ``execution.resume`` one that knows what was evaluated before.

    Parameters
    ----------
    asked
        What was asked for, of all that evaluations depend on. How long it may take is not of it.
    about
        What the dashboard is to say.
    changes
        How the program differs from the converted one.
    backend
        What computes outputs.

    Raises
    ------
    InputError
        If there is a study to go on with, and it is of something else; it says of what.
    """
    data = data_digest(prepared)
    name, ops = study_name(prepared, data), [op.name for op in prepared.ops]
    if execution.storage is None:
        return Study(ops, name, about)
    facts = {
        "name": prepared.source,
        "model": prepared.fingerprint,
        "data": data,
        "metric": prepared.metric.name,
        "numerics": ",".join(p.identity for p in prepared.profiles),
        "seed": execution.seed,
        "device": execution.device,
        "backend": backend,
        **asked,
        **versions(),
        "changes": xxhash.xxh3_64_hexdigest(changes.encode()),
    }
    return Study(
        ops,
        name,
        about,
        storage=execution.storage,
        facts={key: str(value) for key, value in facts.items()},
        resume=execution.resume,
        over=lambda: ending.over,
    )


def fields(*groups: msgspec.Struct) -> dict[str, Any]:
    """The options of groups, by name."""
    return {key: value for group in groups for key, value in msgspec.structs.asdict(group).items()}
