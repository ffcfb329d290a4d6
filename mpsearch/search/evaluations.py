"""Every evaluation of a search, remembered by precision and sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from cachetools import LRUCache

from ..evaluation.evaluator import Evaluation, Evaluator
from ..program.precision import Precision
from .samples import Sample
from .study import Study

#: Bytes of sketched errors that are remembered.
_ERROR_BYTES = 64 << 20

Errors = dict[tuple[int, int], np.ndarray]  # sample, profile -> sketched error


class Workers(Protocol):
    """Processes that evaluate beside this one."""

    def evaluate(
        self, evaluator: Evaluator, precision: Precision, samples: Sequence[int], apart: bool
    ) -> list[Evaluation]:
        """The evaluations of a precision on several samples, in order.

        ``apart`` runs each by itself and remembers results on the way, as
        :meth:`mpsearch.evaluation.evaluator.Evaluator.evaluate` does.
        """

    def close(self) -> None:
        """End the processes; the next call starts them again."""


class Evaluations:
    """Evaluates, and remembers what came of it.

    Parameters
    ----------
    evaluator
        What runs.
    study
        Where evaluations are stored, and found again.
    workers
        Processes that help; results do not depend on them.

    Attributes
    ----------
    losses
        Of each sample, that of the set that was judged last.
    """

    def __init__(self, evaluator: Evaluator, study: Study, workers: Workers | None = None) -> None:
        self.evaluator = evaluator
        self.study = study
        self.workers = workers
        self.losses: dict[Sample, float] = {}
        self._known: dict[frozenset[int], dict[Sample, Evaluation]] = {}
        self._errors: LRUCache[frozenset[int], Errors] = LRUCache(
            _ERROR_BYTES, getsizeof=lambda found: 200 + sum(e.nbytes for e in found.values())
        )

    @property
    def precisions(self) -> int:
        """How many precisions were evaluated on a sample at least."""
        return len(self._known)

    def known(self, precision: Precision) -> dict[Sample, Evaluation]:
        """What is known of a precision, by sample."""
        return dict(self._known.get(precision.fp32, {}))

    def errors(self, precision: Precision) -> Errors:
        """The sketched errors of a precision, by sample and numerics profile."""
        return self._errors.get(precision.fp32, {})

    def take(self, precision: Precision, sample: Sample, found: Evaluation) -> None:
        """Remember an evaluation."""
        plain = Evaluation(found.loss, found.exact, found.nonfinite)
        self._known.setdefault(precision.fp32, {})[sample] = plain
        errors = {
            (sample.index, profile): error.astype(np.float64)
            for profile, error in enumerate(found.errors)
            if error is not None
        }
        if errors:
            self._errors[precision.fp32] = {**self.errors(precision), **errors}

    def evaluate(
        self, precision: Precision, sample: Sample, stop_above: float = math.inf
    ) -> Evaluation:
        """The evaluation of a precision on a sample, made now where it is not known.

        ``stop_above`` is that of :meth:`mpsearch.evaluation.evaluator.Evaluator.evaluate`.

        Raises
        ------
        Stop
            If the run is to end.
        """
        found = self._recalled(precision, sample, stop_above)
        if found is None:
            found = self.evaluator.evaluate(precision, sample.index, stop_above)
            self.study.note(precision, sample, found)
            self.take(precision, sample, found)
        return found

    def evaluate_all(
        self, precision: Precision, samples: Sequence[Sample], apart: bool = False
    ) -> list[Evaluation]:
        """The evaluations of a precision on several samples.

        ``apart`` runs each by itself, so that results on the way are remembered.

        Raises
        ------
        Stop
            If the run is to end.
        """
        new = [s for s in samples if self._recalled(precision, s, math.inf) is None]
        places = [sample.index for sample in new]
        if self.workers is not None and len(new) > 1:
            made = self.workers.evaluate(self.evaluator, precision, places, apart)
            self.evaluator.engine.executions += sum(found.executions for found in made)
        elif apart or len(new) == 1:
            made = [self.evaluator.evaluate(precision, place) for place in places]
        else:
            made = list(self.evaluator.evaluate_together(precision, places))
        for sample, found in zip(new, made, strict=True):
            self.study.note(precision, sample, found)
            self.take(precision, sample, found)
        known = self._known[precision.fp32] if samples else {}
        return [known[sample] for sample in samples]

    def _recalled(
        self, precision: Precision, sample: Sample, stop_above: float
    ) -> Evaluation | None:
        """What is known already, of this run or one before."""
        known = self._known.get(precision.fp32, {}).get(sample)
        if known is not None and (known.exact or known.loss > stop_above):
            return known
        stored = self.study.stored(precision, sample)
        if stored is None or not (stored.exact or stored.loss > stop_above):
            return None
        self.evaluator.engine.executions += stored.executions
        self.take(precision, sample, stored)
        return stored
