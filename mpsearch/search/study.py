"""The study: every evaluation of a search, in trials of an Optuna study.

A search is deterministic: what it evaluates next follows from the evaluations before. So to resume
is to search again from the start with the evaluations that were stored, each found by its precision
and sample.
"""

from __future__ import annotations

import base64
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import optuna
import xxhash

from ..ending import Stop
from ..errors import InputError
from ..evaluation.evaluator import Evaluation
from ..files import first_line
from ..hints import option
from ..program.precision import Precision
from .samples import Sample
from .storage import FACTS, anew, create, find, open_storage, silence

#: The constraint under which a trial's distance from the budget stands in the study.
BUDGET = "budget"
#: Where optuna-dashboard looks for constraints, as Optuna before 5.0 kept them.
_FOR_THE_DASHBOARD = "constraints"
#: Whether a unit is FP32, as a parameter of a trial.
FP32_OR_FP16 = optuna.distributions.CategoricalDistribution((False, True))
#: The attributes under which evaluations stand, and how long each may be: MySQL takes 65,535 bytes,
#: and a quote takes two.
_EVALUATIONS, _LONGEST = "evaluations", 45_000
#: Seconds to wait for a storage that is away, and between looks.
_PATIENCE, _AGAIN = 60.0, 0.5


class Unstored(Stop):
    """A storage went away and did not come back; its text says so to people."""


@dataclass(frozen=True, slots=True)
class Row:
    """A trial of the study.

    Attributes
    ----------
    asked_by
        The pass of the search.
    precision
        Which ops are FP32.
    loss, exact
        The worst loss seen; a lower bound where not ``exact``.
    price
        What the set costs.
    excess
        By how much the set breaks the budget, as Optuna takes constraints: 0 or less where it
        holds.
    seconds
        Wall time.
    """

    asked_by: str
    precision: Precision
    loss: float
    exact: bool
    price: float
    excess: float
    seconds: float = 0.0


class Study:
    """The study of a search.

    A trial has the price as its value, by how much the loss breaks the limit as the constraint
    ``budget``, and as attributes the names of the FP32 ops (``fp32_ops``), ``loss``, ``exact``,
    ``pass`` and ``seconds``. Trials that a sampler asked for have what it decided as parameters.

    Parameters
    ----------
    ops
        The names of the candidate ops.
    name, about
        The study's name, and what the dashboard is to say of it.
    storage
        A URL as :func:`mpsearch.search.storage.open_storage` takes it. Evaluations are stored there
        as they are made; samplers see a study in memory.
    facts
        What evaluations depend on: two searches of equal facts give the same.
    resume
        Go on with the last study of the same facts, where there is one.
    over
        Whether the run is to end, so that there is no waiting for a storage that is away.

    Attributes
    ----------
    optuna
        Optuna's study.
    resumed
        How many evaluations were stored before.

    Raises
    ------
    InputError
        If the storage cannot be opened, or ``resume`` finds only studies of this model that were
        made with other facts; it says which differ.
    """

    def __init__(
        self,
        ops: Sequence[str] = (),
        name: str | None = None,
        about: Mapping[str, Any] | None = None,
        *,
        storage: str | None = None,
        facts: Mapping[str, str] | None = None,
        resume: bool = False,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._ops = list(ops)
        self._over = over
        self._known: dict[str, Evaluation] = {}
        self._fresh: dict[str, Evaluation] = {}
        self._rows: Counter[tuple[str, ...]] = Counter()  # trials that a run before stored
        self._stored: optuna.Study | None = None
        if storage is not None:
            self._stored = self._open(storage, name or "mpsearch", about or {}, facts or {}, resume)
        self.resumed = len(self._known)
        with silence():
            self.optuna = optuna.create_study(
                study_name=name if self._stored is None else self._stored.study_name,
                direction="minimize",
                sampler=optuna.samplers.RandomSampler(seed=0),
            )
        for key, fact in (about or {}).items():
            self.optuna.set_user_attr(key, fact)

    def _open(
        self,
        url: str,
        name: str,
        about: Mapping[str, Any],
        facts: Mapping[str, str],
        resume: bool,
    ) -> optuna.Study:
        storage = open_storage(url)
        try:
            study = find(storage, facts) if resume else None
        except InputError:
            raise
        except Exception as error:  # whatever a damaged study makes of Optuna
            raise InputError(f"cannot resume: {first_line(error)}; {anew()}") from error
        if study is None:
            return create(storage, name, {**about, FACTS: dict(facts)})
        try:
            for trial in study.get_trials(deepcopy=False):
                self._known |= _read(trial.user_attrs)
                self._rows[_row_key(trial)] += 1
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"cannot resume: the study {study.study_name!r} holds what mpsearch did not "
                f"write; leave {option('resume')} out to begin anew"
            ) from error
        return study

    # -- evaluations ---------------------------------------------------------------------------

    def stored(self, precision: Precision, sample: Sample) -> Evaluation | None:
        """What an evaluation gave in a run before."""
        return self._known.get(_key(precision, sample)) if self._known else None

    def note(self, precision: Precision, sample: Sample, evaluation: Evaluation) -> None:
        """Take in a new evaluation; it is stored with the next trial."""
        if self._stored is not None:
            self._fresh[_key(precision, sample)] = evaluation

    # -- trials --------------------------------------------------------------------------------

    def ask(self, sampler: optuna.samplers.BaseSampler) -> optuna.trial.Trial:
        """What a sampler proposes next, with all that was tried before it."""
        self.optuna.sampler = sampler
        return self.optuna.ask()

    def give_up(self, asked: optuna.trial.Trial) -> None:
        """Tell the sampler that a proposal is not evaluated."""
        self.optuna.tell(asked, state=optuna.trial.TrialState.FAIL)

    def add(self, row: Row, asked: optuna.trial.Trial | None = None) -> None:
        """Record a trial, and store what was evaluated since the last.

        ``asked`` is the proposal of a sampler that it answers.

        Raises
        ------
        Unstored
            If the storage is away for a minute; nothing more is stored then.
        """
        told = self._told(row, asked)
        if self._stored is None:
            return
        fresh, self._fresh = self._fresh, {}
        if self._rows[_row_key(told)] > 0:
            self._rows[_row_key(told)] -= 1
            if not fresh:
                return
        attributes = {**told.user_attrs, **_written(fresh)}
        copy = optuna.trial.create_trial(
            value=told.value,
            params=told.params,
            distributions=told.distributions,
            user_attrs=attributes,
            system_attrs=told.system_attrs,
        )
        copy.datetime_start, copy.datetime_complete = told.datetime_start, told.datetime_complete
        stored = self._stored
        self._patiently(lambda: stored.add_trial(copy))

    def store(self) -> None:
        """Store what was evaluated since the last trial, as a trial that failed.

        Raises
        ------
        Unstored
            If the storage is away for a minute; nothing more is stored then.
        """
        stored, fresh, self._fresh = self._stored, self._fresh, {}
        if stored is not None and fresh:
            trial = optuna.trial.create_trial(
                state=optuna.trial.TrialState.FAIL, user_attrs=_written(fresh)
            )
            self._patiently(lambda: stored.add_trial(trial))

    def _told(self, row: Row, asked: optuna.trial.Trial | None) -> optuna.trial.FrozenTrial:
        facts = {
            "fp32_ops": [self._ops[i] for i in row.precision] if self._ops else [],
            "loss": row.loss if np.isfinite(row.loss) else str(row.loss),  # JSON has no infinity
            "exact": row.exact,
            "pass": row.asked_by,
            "seconds": row.seconds,
        }
        excess = float(np.clip(np.nan_to_num(row.excess), -1e6, 1e6))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if asked is None:
                told = optuna.trial.create_trial(
                    value=row.price,
                    user_attrs=facts,
                    constraints={BUDGET: excess},
                    system_attrs={_FOR_THE_DASHBOARD: [excess]},
                )
                if told.datetime_complete is not None:
                    told.datetime_start = told.datetime_complete - timedelta(seconds=row.seconds)
                self.optuna.add_trial(told)
                return told
            for key, fact in facts.items():
                asked.set_user_attr(key, fact)
            asked.set_constraint(BUDGET, excess)
            storage = self.optuna._storage  # Optuna has no public way to set this one any more
            storage.set_trial_system_attr(asked._trial_id, _FOR_THE_DASHBOARD, [excess])
            return self.optuna.tell(asked, row.price)

    def _patiently(self, work: Callable[[], object]) -> None:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                work()
                return
            except Exception as error:  # whatever the database's driver raises
                if self._over() or time.monotonic() > until or _hopeless(error):
                    self._stored = None
                    raise Unstored(
                        f"The study could not be stored ({first_line(error)}); what was found "
                        f"until then was, and {option('resume')} goes on from there."
                    ) from error
            time.sleep(_AGAIN)


def _hopeless(error: BaseException) -> bool:
    """Whether waiting will not help."""
    said = str(error).lower()
    return "disk is full" in said or "no space left" in said or "readonly database" in said


def _row_key(trial: optuna.trial.FrozenTrial) -> tuple[str, ...]:
    """What tells a trial apart: the pass that asked, and the FP32 ops."""
    found = trial.user_attrs
    return str(found.get("pass")), *map(str, found.get("fp32_ops", ()))


def _key(precision: Precision, sample: Sample) -> str:
    asked = repr((precision.count, sorted(precision), str(sample)))
    return str(xxhash.xxh3_128_hexdigest(asked.encode()))


def _written(evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
    """Evaluations as attributes of a trial, each short enough."""
    rows = [
        [
            key,
            str(found.loss),
            found.exact,
            list(found.nonfinite),
            found.executions,
            found.seconds,
            [
                None if error is None else base64.b64encode(error.astype("<f4").tobytes()).decode()
                for error in found.errors
            ],
        ]
        for key, found in evaluations.items()
    ]
    text = json.dumps(rows) if rows else ""
    starts = range(0, len(text), _LONGEST)
    return {f"{_EVALUATIONS} {i}": text[k : k + _LONGEST] for i, k in enumerate(starts)}


def _read(attributes: Mapping[str, Any]) -> dict[str, Evaluation]:
    """The inverse of :func:`_written`.

    Raises
    ------
    AttributeError, KeyError, TypeError, ValueError
        If it is something else.
    """
    parts: list[str] = []
    while (part := attributes.get(f"{_EVALUATIONS} {len(parts)}")) is not None:
        parts.append(part)
    found = {}
    for key, loss, exact, nonfinite, executions, seconds, errors in json.loads(
        "".join(parts) or "[]"
    ):
        sketches = tuple(
            None if text is None else np.frombuffer(base64.b64decode(text), "<f4")
            for text in errors
        )
        names = tuple(str(name) for name in nonfinite)
        found[str(key)] = Evaluation(
            float(loss), bool(exact), names, sketches, int(executions), float(seconds)
        )
    return found
