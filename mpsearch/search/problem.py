"""What a strategy is given: the question, the record of what was tried, and someone to ask.

A strategy sees *units*, things that are FP32 or FP16 as a whole: single ops, or the ops of one
layer. It asks about sets of units to keep in FP32, one (:meth:`Problem.try_`) or several
(:meth:`Problem.ask`), is told what came of them, and may stop whenever it likes: the best set seen
so far is the result.

One class, and a long one, since all that a strategy may ask, and all that answers it, stands in one
place; what is asked of a set that is about to be taken is in :mod:`mpsearch.search.confirming`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import optuna

from ..ending import Ending, Stop
from ..evaluation.evaluator import Evaluator, Measured
from ..evaluation.incremental import Incremental
from ..forking import each
from ..program.lowering import CandidateOp
from ..program.precision import Precision
from .ahead import Ahead, Hire
from .answer import Answer, call
from .answering import Answerer, Call
from .guide import Guide
from .question import Kept, Question
from .record import FP32_OR_FP16, Record, Trial
from .response import Response
from .store import Lost


class Strategy(Protocol):
    """A search strategy, found through the entry-point group ``mpsearch.strategies``."""

    def __call__(self, problem: Problem) -> None:
        """Search; every set that was tried is in ``problem.record``."""


#: How much is evaluated at once in each process, before it is recorded.
_AT_ONCE = 4


class Problem:
    """The search problem.

    Parameters
    ----------
    question
        What is asked.
    evaluator
        Who answers.
    record
        Where every answer goes; default: a study in memory.
    trials
        How many evaluations there may be.
    ending
        When the run ends: its deadline, and the user's signals.
    watch
        Called with every trial.
    floor
        What all-FP32 gave, where that is known already.
    hire
        Gives the workers that evaluate ahead what is :meth:`expect`-ed.
    jobs
        In how many processes on this machine what is asked for at once is done.

    Attributes
    ----------
    question
        What is asked now; :meth:`tighten` asks for a smaller loss.
    limit
        The largest loss allowed, as it was asked for at first.
    record
        Every trial so far.
    watch, hire, jobs
        As given.
    last_losses
        Of samples that are not searched on, by index: the loss of the last set.
    best
        The cheapest trial that met the limit; of equals, the one with fewer ops, then with fewer
        casts, then with the smaller loss.
    """

    def __init__(
        self,
        question: Question,
        evaluator: Evaluator[Incremental],
        record: Record | None = None,
        *,
        trials: int = 300,
        ending: Ending | None = None,
        watch: Callable[[Trial, Problem], None] | None = None,
        floor: Measured | None = None,
        hire: Hire | None = None,
        jobs: int = 1,
    ) -> None:
        self.question = question
        self.limit = question.limit
        self.record = record or Record()
        self.trials = trials
        self.ending = ending or Ending()
        self.best: Trial | None = None
        self.evaluator = evaluator
        self.engine = evaluator.backend
        self.guide = Guide(evaluator, question.seed)
        self.answerer = Answerer(evaluator, self.guide.sketch, question.harmless)
        self.watch = watch
        self._reserve = 0
        self._floor = floor
        self.hire, self.jobs = hire, jobs
        self.ahead = None if hire is None else Ahead(self.answerer, hire)
        self._hired = len(evaluator.references)
        self.last_losses: dict[int, float] = {}
        self._ends: tuple[float, float | None] | None = None
        self._refuted: set[Kept] = set()

    # -- for strategies ------------------------------------------------------------------------

    @property
    def everything(self) -> Kept:
        """All units, numbered in execution order."""
        return self.question.everything

    @property
    def remaining(self) -> int:
        """Trials left."""
        return self.trials - self._reserve - len(self.record.trials)

    def ask(self, sets: Iterable[Iterable[int]], by: str, exact: bool = False) -> list[Trial]:
        """What comes of keeping these sets of units in FP32, in any order of evaluation.

        ``by`` names the pass that asks. ``exact`` asks for the loss itself also where it is above
        the limit; otherwise evaluation stops once the limit is broken. A set tried before costs
        nothing.

        Raises
        ------
        Stop
            If trials or time are used up.
        """
        return [self.try_(kept, by, exact) for kept in sets]

    def try_(self, kept: Iterable[int], by: str, exact: bool = False) -> Trial:
        """:meth:`ask` for one set."""
        key = frozenset(kept)
        known = self.record.known(key)
        if known is not None and (known.exact or not exact):
            return known
        if not self.question.forced <= key:  # refused, whatever its loss
            return Trial(key, math.inf, False, False, by, self.question.price(key))
        self.allow()
        return self.evaluate(key, by, exact)

    def sample(
        self,
        sampler: optuna.samplers.BaseSampler,
        by: str,
        middle: Kept = frozenset(),
        free: Sequence[int] = (),
    ) -> Trial | None:
        """Try what an Optuna sampler proposes: ``middle`` with some units changed.

        The sampler decides on the units of its relative search space, by name, and on those of
        ``free``.

        Returns
        -------
        Trial or None
            None where the sampler proposes ``middle`` itself.

        Raises
        ------
        Stop
            If trials or time are used up.
        """
        self.allow()
        asked = self.record.ask(sampler)
        names = {name: unit for unit, name in enumerate(self.names)}
        chosen = {u: self.names[u] for u in free}
        chosen |= {names[name]: name for name in asked.relative_params}
        fp32 = {u for u, n in chosen.items() if asked.suggest_categorical(n, FP32_OR_FP16.choices)}
        key = frozenset(middle.difference(chosen) | fp32)
        if key == middle and not free:
            self.record.study.tell(asked, state=optuna.trial.TrialState.FAIL)
            return None
        known = self.record.known(key)
        if known is not None:
            self.record.repeat(self.question, known, asked)
            return known
        try:
            return self.evaluate(key, by, False, asked=asked)
        except Stop:
            self.record.study.tell(asked, state=optuna.trial.TrialState.FAIL)
            raise

    @property
    def names(self) -> list[str]:
        """The units' names in the study, one of its own for each."""
        return [f"{i}:{unit.name}" for i, unit in enumerate(self.question.units)]

    def keep_order(self) -> list[int]:
        """Units in the order in which the model would keep them FP32, the worst first."""
        return self.guide.keep_order(self.question)

    def harm(self, unit: int, kept: Iterable[int]) -> float:
        """The model's squared error for casting a unit of ``kept`` as well."""
        return self.guide.harm(self.question, unit, kept)

    def relief(self, unit: int, kept: Iterable[int]) -> float:
        """The model's squared error that goes when a unit outside ``kept`` joins it."""
        return self.guide.relief(self.question, unit, kept)

    def response(self, middle: Kept, units: Iterable[int]) -> Response:
        """What the trials say of sets that differ from ``middle``, one that met, in ``units``."""
        return self.guide.response(self.question, middle, units)

    # -- the ends ------------------------------------------------------------------------------

    def ends(self) -> tuple[float, float | None]:
        """The losses of all-FP32 (the floor) and all-FP16, pins left aside.

        Where the time is used up, those of the samples that it was enough for; None for all-FP16
        where it was not enough for one.
        """
        if self._ends is None:
            fp16 = None
            floor = self.floor()
            with suppress(Stop):
                if not self._over():
                    fp16 = self._all_fp16()
            self._ends = floor, fp16
        return self._ends

    def _all_fp16(self) -> float:
        nothing = Precision.all_fp16(len(self.question.ops))
        if self.question.precision(()) == nothing:
            return self.admit(()).seen
        return self.evaluate_ops(nothing, "ends")

    def floor(self) -> float:
        """The loss of all-FP32, of the samples that the time is enough for, one at least."""
        every = Precision.all_fp32(len(self.question.ops))
        if self._floor is None and self.question.precision(self.everything) == every:
            return self.admit(self.everything).seen
        if self._floor is None:  # some op may not be FP32
            self._floor = self._noted(every, "ends")
        return self._floor.worst

    def admit(self, kept: Iterable[int]) -> Trial:
        """Evaluate one of the ends whatever the trials allow.

        Where the time is used up, on the samples that it was enough for; only all units together
        are then taken to meet the limit.
        """
        key = frozenset(kept)
        known = self.record.known(key)
        if known is not None and (known.exact or key == self.everything):
            return known
        every = Precision.all_fp32(len(self.question.ops))
        if self._floor is not None and self.question.precision(key) == every:
            order = tuple(self.evaluator.searched)
            answer = call("floor", every, order, math.inf), Answer(self._floor, order)
            return self.judged(key, "ends", self._floor, kept=answer)
        return self.evaluate(key, "ends", exact=True, enough=self._over)

    def admit_fp16(self) -> bool:
        """Whether no unit at all needs FP32: that ends the search before it begins."""
        try:
            return self.admit(frozenset()).met
        except Stop:
            return False

    def _over(self) -> bool:
        return self.ending.over

    # -- evaluation ----------------------------------------------------------------------------

    def allow(self) -> None:
        """Raise :class:`Stop` where trials or time are used up."""
        self.ending.check()
        if self.remaining <= 0:
            raise Stop

    def evaluate(
        self,
        key: Kept,
        by: str,
        exact: bool = False,
        enough: Callable[[], bool] | None = None,
        asked: optuna.trial.Trial | None = None,
    ) -> Trial:
        """Evaluate a set and record it, whatever the trials allow."""
        remember = None
        if self.ending.limited:
            # Most sets fail on the first sample; what is tried next has few results in common with
            # all-FP32, and those on the other samples are seldom asked for again.
            remember = 0 if key == self.everything else 1
        wanted = self._call(key, exact)
        answer = self._recalled(wanted.key)
        if answer is None and self.ahead is not None and enough is None:
            self._renew(self.ahead)
            answer = self.ahead.take(wanted.key)
            if answer is None and remember is None:
                answer = self.ahead.share(wanted)
        if answer is None:
            answer = self.answerer.answer(wanted, enough, remember)
        else:
            self.evaluator.repeat(answer.measured, answer.searched)
        kept = None if enough is not None and enough() else (wanted.key, answer)
        self.record.hold(kept)
        self.guide.learn(key, answer.errors)
        broken = not answer.measured.exact and answer.measured.worst > self.limit
        if broken and answer.searched[0] < self.evaluator.given:
            self._refuted.add(key)
        return self.judged(key, by, answer.measured, asked, answer.overflows, kept)

    def _call(self, key: Kept, exact: bool = False) -> Call:
        """The evaluation of a set, as things are now."""
        limit, searched = math.inf if exact else self.question.limit, self.evaluator.searched
        precision = self.question.precision(key)
        named = call("set", precision, searched, limit)
        return Call(named, precision, tuple(searched), limit)

    def expect(self, sets: Callable[[], Iterable[Iterable[int]]]) -> None:
        """Say what is likely to be asked next, the likeliest first.

        ``sets`` is called where several processes evaluate; they do so ahead, which changes no
        answer.
        """
        if self.ahead is None or self.ending.over:
            return
        self._renew(self.ahead)
        keys = dict.fromkeys(map(frozenset, sets()))
        calls = [self._call(key) for key in keys if self.record.known(key) is None]
        self.ahead.expect([c for c in calls if self.record.recall(c.key) is None])

    def _renew(self, ahead: Ahead) -> None:
        """Workers know the samples that there were when they began."""
        samples = len(self.evaluator.references)
        if samples != self._hired:
            ahead.close()
            self._hired = samples

    def close(self) -> None:
        """End what evaluates ahead; it begins again where the search goes on."""
        if self.ahead is not None:
            self.ahead.close()

    def judged(
        self,
        key: Kept,
        by: str,
        measured: Measured,
        asked: optuna.trial.Trial | None = None,
        overflows: str = "",
        kept: tuple[str, Answer] | None = None,
    ) -> Trial:
        """Record what came of a set.

        All units together are the last resort: taken as they are on the samples looked at.
        """
        question, last = self.question, key == self.everything
        loss = measured.worst if last else measured.loss
        within = (measured.exact or last) and loss <= question.limit
        trial = Trial(
            key,
            loss,
            within and (last or not overflows),
            measured.exact,
            by,
            question.price(key),
            len(question.precision(key)),
            measured.worst,
            overflows,
            measured.executions,
            measured.seconds,
        )
        self._keeping(lambda: self.record.add(question, trial, asked, kept))
        self._consider(trial)
        if self.watch is not None:
            self.watch(trial, self)
        return trial

    def evaluate_ops(self, precision: Precision, by: str) -> float:
        """The loss of something that need be no set of units; recorded, and no trial."""
        return self._noted(precision, by).worst

    def evaluate_each(self, precisions: Sequence[Precision], by: str) -> list[float]:
        """:meth:`evaluate_ops` for several, in as many processes as there are."""
        losses: list[float] = []
        evaluate = self.evaluator.evaluate
        for start in range(0, len(precisions), _AT_ONCE * self.jobs):
            few = precisions[start : start + _AT_ONCE * self.jobs]
            new = [p for p in few if self._recalled(self._other(p)) is None]
            made = each(evaluate, new, self.jobs) if self.jobs > 1 else []
            known = dict(zip(new, made, strict=False))
            losses += [self._noted(p, by, known.get(p)).worst for p in few]
        return losses

    def _other(self, precision: Precision) -> str:
        return call("other", precision, self.evaluator.searched, math.inf)

    def _noted(self, precision: Precision, by: str, made: Measured | None = None) -> Measured:
        """The losses of a precision; ``made`` are those that another process found."""
        wanted = self._other(precision)
        known = self._recalled(wanted)
        if known is None and made is not None:
            known = Answer(made, tuple(self.evaluator.searched))
        if known is not None:
            self.evaluator.repeat(known.measured, known.searched)
        else:
            found = self.evaluator.evaluate(precision, enough=self._over)
            known = Answer(found, tuple(self.evaluator.searched))
        measured, kept = known.measured, None if self._over() else (wanted, known)
        self.note(precision, measured, by, kept)
        return measured

    def note(
        self, precision: Precision, measured: Measured, by: str, kept: tuple[str, Answer] | None
    ) -> None:
        """Record what ``by`` evaluated, which need be no set of units; no trial comes of it.

        ``kept`` is what it is to be found by in another run, and what it gave.
        """
        self.record.hold(kept)
        self._keeping(lambda: self.record.note(self.question, precision, measured, by, kept))

    def _recalled(self, wanted: str) -> Answer | None:
        """What an evaluation gave in a run before; only of the samples that are searched on."""
        known = self.record.recall(wanted)
        same = known is not None and sorted(known.searched) == sorted(self.evaluator.searched)
        return known if same else None

    def _keeping(self, work: Callable[[], None]) -> None:
        """Record something; where it cannot be kept, the run ends with what was found."""
        try:
            work()
        except Lost as lost:
            self.ending.give_up(str(lost))

    def overflows(self, kept: Iterable[int]) -> list[CandidateOp]:
        """Ops left in FP16 that overflow where they would be finite in FP32."""
        found = self.engine.overflows(self.question.precision(kept))
        return [self.question.ops[i] for i in sorted(found)]

    # -- limits --------------------------------------------------------------------------------

    def reserve(self, share: float) -> None:
        """Keep a share of the trials for after :meth:`tighten`."""
        self._reserve = int(self.trials * share)

    def extend(self, trials: int) -> None:
        """Allow so many trials more, whatever was reserved."""
        self.trials = len(self.record.trials) + trials
        self._reserve = 0

    def release(self) -> None:
        """Give back what was reserved and not used."""
        self._reserve = 0

    def tighten(self, limit: float) -> None:
        """Ask for a smaller loss from now on; earlier trials are judged again.

        Half of what was reserved becomes available.
        """
        self.question = replace(self.question, limit=limit)
        self._reserve //= 2
        self.record.judge(self.question)
        self._choose()

    def widen(self, samples: Sequence[int]) -> None:
        """Search on these samples as well, the first to be looked at from now on.

        What met the limit without them is to be tried anew.
        """
        self.evaluator.search_on([*samples, *self.evaluator.searched])
        self._reserve //= 2
        self.record.doubt(self.everything)
        self._choose()

    def require(self, units: Iterable[int]) -> None:
        """Take no set from now on that lacks one of these units."""
        forced = self.question.forced.union(units)
        self.question = replace(self.question, forced=forced)
        self._choose()

    def refuted(self, kept: Kept) -> bool:
        """Whether a set was seen to break the limit asked for at first on a sample given."""
        return kept in self._refuted

    def reject(self, kept: Iterable[int]) -> None:
        """Never take this set as the best, whatever its loss."""
        self.record.reject(kept)

    def fall_back(self, kept: Kept) -> None:
        """Take no set that would come before this one, if it meets the limit."""
        known, rank = self.record.known(kept), self.question.rank(kept)
        if known is None or not known.met:
            return
        for trial in self.record.trials:
            if trial.met and trial.kept != kept and self.question.rank(trial.kept) <= rank:
                self.reject(trial.kept)
        self._choose()

    def settle_for(self, kept: Kept, limit: float) -> None:
        """Take this set, or what is found from now on, by this limit; nothing found before."""
        self.question = replace(self.question, limit=limit)
        self.record.judge(self.question)
        self.record.doubt(kept, self.everything)
        self._choose()

    def _choose(self) -> None:
        """Find the best of all trials anew."""
        self.best = None
        for trial in self.record.trials:
            self._consider(trial)

    def _consider(self, trial: Trial) -> None:
        refused = not self.question.forced <= trial.kept or self.record.rejected(trial.kept)
        if not trial.met or refused:
            return
        rank = (*self.question.rank(trial.kept), trial.loss)
        if self.best is None or rank < (*self.question.rank(self.best.kept), self.best.loss):
            self.best = trial
