"""The record of a search: Optuna's study, with every evaluation of every pass in it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import optuna

from ..evaluation.evaluator import Measured
from ..program.precision import Precision
from .answer import Answer
from .question import Kept, Question
from .store import Store, silence

#: The constraint under which a trial's distance from the budget stands in the study.
BUDGET = "budget"
#: Where optuna-dashboard looks for constraints, as Optuna before 5.0 kept them.
_FOR_THE_DASHBOARD = "constraints"
#: A set in the study's terms: whether a unit is FP32.
FP32_OR_FP16 = optuna.distributions.CategoricalDistribution((False, True))


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluated set.

    Attributes
    ----------
    kept
        The units kept in FP32.
    loss
        Its loss (smaller is better); a lower bound where ``exact`` is False.
    met
        Whether the loss is within the limit.
    asked_by
        The pass of the strategy that asked.
    price
        What keeping these units costs, in the question's objective.
    fp32_ops
        How many ops are FP32, pinned ones included.
    worst
        The loss of the worst sample; None where that is ``loss``.
    overflows
        An op, left in FP16, for which the set was refused: its result overflows. Empty if none.
    executions, seconds
        What evaluating it cost: ops run, and time.
    """

    kept: Kept
    loss: float
    met: bool
    exact: bool
    asked_by: str
    price: float = 0.0
    fp32_ops: int = 0
    worst: float | None = None
    overflows: str = ""
    executions: int = 0
    seconds: float = 0.0

    @property
    def seen(self) -> float:
        """The loss of the worst sample."""
        return self.loss if self.worst is None else self.worst


class Record:
    """Every evaluation, in order, each a trial of an Optuna study.

    A trial of the study has the price as its value, by how much the loss breaks the limit as the
    constraint ``budget`` (0 or less where it is met), and as attributes the names of the ops in
    FP32 (``fp32_ops``), ``loss``, ``exact``, ``pass`` and what it cost. Trials that a sampler
    asked for have what the sampler decided as parameters.

    Parameters
    ----------
    name
        The study's name; that of ``store`` where there is one.
    store
        Where evaluations are kept as they are made, each with its trial. The study itself is in
        memory, so that samplers see what they saw in the run before.
    about
        What the dashboard is to say of it.
    """

    def __init__(
        self,
        name: str | None = None,
        store: Store | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.store = store
        self.study = _create(name if store is None else store.name)
        for key, fact in (about or {}).items():
            self.study.set_user_attr(key, fact)
        self.trials: list[Trial] = []
        self._known: dict[Kept, Trial] = {}
        self._rejected: set[Kept] = set()

    def known(self, kept: Iterable[int]) -> Trial | None:
        """The trial of a set, if there was one."""
        return self._known.get(frozenset(kept))

    def rejected(self, kept: Iterable[int]) -> bool:
        """Whether a set is never to be taken."""
        return frozenset(kept) in self._rejected

    def reject(self, kept: Iterable[int]) -> None:
        """Never take this set, whatever its loss."""
        self._rejected.add(frozenset(kept))

    def recall(self, call: str) -> Answer | None:
        """What an evaluation gave in a run before."""
        return None if self.store is None else self.store.recall(call)

    def hold(self, kept: tuple[str, Answer] | None) -> None:
        """Keep what was just evaluated, until it is recorded."""
        if self.store is not None and kept is not None:
            self.store.hold(*kept)

    def add(
        self,
        question: Question,
        trial: Trial,
        asked: optuna.trial.Trial | None = None,
        kept: tuple[str, Answer] | None = None,
    ) -> None:
        """Record a trial.

        ``asked`` is what Optuna's sampler asked for it with, ``kept`` what it is to be found by in
        another run, and what it gave.
        """
        self.trials.append(trial)
        self._known[trial.kept] = trial
        facts = _facts(question, question.precision(trial.kept), trial.loss, trial.exact)
        facts |= {"pass": trial.asked_by, "executions": trial.executions, "seconds": trial.seconds}
        if trial.overflows:
            facts["overflows"] = trial.overflows
        self._tell(trial.price, facts, excess(question, trial), asked, kept)

    def note(
        self,
        question: Question,
        precision: Precision,
        measured: Measured,
        asked_by: str,
        kept: tuple[str, Answer] | None = None,
    ) -> None:
        """Record an evaluation of something that is no set of units."""
        facts = _facts(question, precision, measured.loss, measured.exact)
        facts |= {"pass": asked_by, "executions": measured.executions, "seconds": measured.seconds}
        beyond = _excess(question, measured.loss)
        self._tell(float(len(precision)), facts, beyond, None, kept)

    def ask(self, sampler: optuna.samplers.BaseSampler) -> optuna.trial.Trial:
        """What a sampler proposes next, with all that was tried before it."""
        self.study.sampler = sampler
        return self.study.ask()

    def repeat(self, question: Question, trial: Trial, asked: optuna.trial.Trial) -> None:
        """Tell the sampler of a set that it asked for and that was tried before."""
        self._tell(trial.price, {"repeats": True}, excess(question, trial), asked)

    def _tell(
        self,
        value: float,
        facts: Mapping[str, Any],
        beyond: float,
        asked: optuna.trial.Trial | None,
        kept: tuple[str, Answer] | None = None,
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if asked is None:
                told = optuna.trial.create_trial(
                    value=value,
                    user_attrs=dict(facts),
                    constraints={BUDGET: beyond},
                    system_attrs={_FOR_THE_DASHBOARD: [beyond]},
                )
                if told.datetime_complete is not None:
                    spent = timedelta(seconds=facts.get("seconds", 0.0))
                    told.datetime_start = told.datetime_complete - spent
                self.study.add_trial(told)
            else:
                for key, fact in facts.items():
                    asked.set_user_attr(key, fact)
                asked.set_constraint(BUDGET, beyond)
                storage = self.study._storage  # Optuna has no public way to set this one any more
                storage.set_trial_system_attr(asked._trial_id, _FOR_THE_DASHBOARD, [beyond])
                told = self.study.tell(asked, value)
        if self.store is not None and kept is not None:
            self.store.keep(*kept, told)

    def judge(self, question: Question) -> None:
        """Judge all trials again by the limit of another question about the same units."""
        self.trials = [
            replace(t, met=t.exact and t.loss <= question.limit and not t.overflows)
            for t in self.trials
        ]
        known = {t.kept: t for t in self.trials}
        self._known = {kept: known[kept] for kept in self._known}

    def doubt(self, *but: Kept) -> None:
        """Forget that any set but these met the limit, for they are to be judged by more samples.

        What broke the limit on some sample breaks it whatever is added.
        """
        doubted = {t.kept for t in self.trials if t.met and t.kept not in but}
        self.trials = [
            replace(t, met=False, exact=False) if t.kept in doubted else t for t in self.trials
        ]
        for kept in doubted:
            self._known.pop(kept, None)

    def accepted(self, limit: float) -> list[Trial]:
        """The trials that meet a limit and were not rejected."""
        return [
            t
            for t in self.trials
            if t.exact and t.loss <= limit and not t.overflows and not self.rejected(t.kept)
        ]

    def undominated(self, question: Question) -> list[Trial]:
        """Trials that no other beats in both ops and loss, the fewest ops first."""
        exact = [t for t in self.trials if t.exact]
        best = math.inf
        out: list[Trial] = []
        for trial in sorted(
            exact, key=lambda t: (question.rank(t.kept)[1], t.seen, sorted(t.kept))
        ):
            if trial.seen < best or not out:
                out.append(trial)
                best = trial.seen
        return out


def excess(question: Question, trial: Trial) -> float:
    """By how much a trial breaks the limit, as Optuna takes constraints: 0 or less where met."""
    beyond = _excess(question, trial.loss)
    return beyond if trial.met else max(beyond, 1e-12)


def _excess(question: Question, loss: float) -> float:
    beyond = min(loss - question.limit, 1e6)
    return 0.0 if math.isnan(beyond) else max(beyond, -1e6)  # no limit, and no finite loss


def _facts(question: Question, precision: Precision, loss: float, exact: bool) -> dict[str, Any]:
    return {
        "fp32_ops": [question.ops[i].name for i in precision],
        "loss": loss if math.isfinite(loss) else str(loss),  # JSON has no infinity
        "exact": exact,
    }


def _create(name: str | None) -> optuna.Study:
    with silence():
        return optuna.create_study(
            study_name=name,
            direction="minimize",
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
