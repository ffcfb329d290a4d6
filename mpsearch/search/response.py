"""What the trials so far say of a set not tried yet: the outputs' errors, superposed.

Near a set that was tried, the error of the outputs is close to that set's own error plus what each
unit cast, or taken back, adds to it, sign and direction included. Every trial shows such sums, on
the samples that it got to. Ridge regression takes them apart: it is the mean of a Gaussian process
whose kernel counts the units in which two sets differ, each weighed by the squared effect that the
rounding model gives it (Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006,
chapter 2). Its noise grows with the distance from the set in the middle, since errors upstream
change how all that follows is rounded; so the word of this model is good for a few changes at a
time. It only proposes: true evaluations decide.

The model of :mod:`mpsearch.search.rounding` knows the size of effects before anything was tried,
but not their signs; this one learns the signs, and so finds sets in which errors cancel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .problem import UnitSet

Place = tuple[int, int]  # sample, profile

#: What a change of a unit adds that is no sum, as a share of its squared effect.
_NONLINEAR = 0.3
#: The least squared effect of a unit, as a share of the squared error of the set in the middle.
_LEAST_EFFECT = 0.1
#: Trials further from the middle than so many units say little.
_NEAR = 16
#: Exchanges that are tried with a second one on top.
_HEADS = 24


class Response:
    """The model around one set.

    Parameters
    ----------
    middle
        A set of units in FP32 whose errors are known on every sample.
    errors
        Per set tried, the sketched errors of the samples that its evaluation got to.
    effects
        Per unit that may change, the squared relative error that it is expected to add.
    """

    def __init__(
        self,
        middle: UnitSet,
        errors: Mapping[UnitSet, Mapping[Place, np.ndarray]],
        effects: Mapping[int, float],
    ) -> None:
        self._middle = middle
        self._units = sorted(effects)
        self._column = {u: i for i, u in enumerate(self._units)}
        self._sign = np.array([1.0 if u in middle else -1.0 for u in self._units])
        expected = np.array([effects[u] for u in self._units])
        near = [k for k in errors if k != middle and self._near(k)]
        changes = np.array([self._row(k) for k in near]).reshape(len(near), len(self._units))
        self._forms = []
        for place, start in errors.get(middle, {}).items():
            seen = [i for i, k in enumerate(near) if place in errors[k]]
            prior = expected + _LEAST_EFFECT * float(start @ start)
            moved = np.array([errors[near[i]][place] - start for i in seen])
            mean, spread = _posterior(changes[seen], moved, prior, len(start))
            self._forms.append(
                (float(start @ start), mean @ start, mean @ mean.T + spread, _NONLINEAR * prior)
            )

    @property
    def informed(self) -> bool:
        """Whether anything is known of the set in the middle; not where no output is a float."""
        return bool(self._forms)

    def _near(self, kept: UnitSet) -> bool:
        changed = kept ^ self._middle
        return len(changed) <= _NEAR and changed <= self._column.keys()

    def _row(self, kept: UnitSet) -> np.ndarray:
        """+1 for a unit cast to FP16, -1 for one taken back to FP32, 0 for the others."""
        row = np.zeros(len(self._units))
        changed = [self._column[u] for u in kept ^ self._middle]
        row[changed] = self._sign[changed]
        return row

    def exchanges(self, cost: Sequence[float]) -> Iterator[UnitSet]:
        """Cheaper sets, those with the least expected error first.

        At most two units are put in and three taken out. ``cost`` is that of every unit in FP32.
        """
        prices = np.array([cost[u] for u in self._units])
        rows, pairs = self._single_exchanges()
        error = self._squared_errors(rows)
        heads = rows[np.argsort(error, kind="stable")[:_HEADS]]
        further = (heads[:, None] + rows[None, :pairs]).reshape(-1, len(self._units))
        further = further[np.abs(further).max(1) == 1]  # no unit twice
        rows = np.concatenate([rows, further])
        rows = rows[rows @ prices > 1e-9]
        seen: set[bytes] = set()
        for place in np.argsort(self._squared_errors(rows), kind="stable"):
            row = rows[place]
            if row.tobytes() not in seen:
                seen.add(row.tobytes())
                yield self._middle.symmetric_difference(
                    self._units[column] for column in np.flatnonzero(row)
                )

    def _single_exchanges(self) -> tuple[np.ndarray, int]:
        """One unit taken out and up to one put in, and how many those are; then two out."""
        each = np.diag(self._sign)
        inside, outside = each[self._sign > 0], each[self._sign < 0]
        put = np.concatenate([np.zeros((1, len(each))), outside])
        first, second = np.triu_indices(len(inside), 1)
        one = (inside[:, None] + put[None]).reshape(-1, len(each))
        two = ((inside[first] + inside[second])[:, None] + put[None]).reshape(-1, len(each))
        return np.concatenate([one, two]), len(one)

    def _squared_errors(self, rows: np.ndarray) -> np.ndarray:
        """The expected squared relative L2 error after changes, each on its worst sample."""
        worst = np.zeros(len(rows))
        for start, along, square, noise in self._forms:
            error = start + 2 * rows @ along + ((rows @ square) * rows).sum(1)
            worst = np.maximum(worst, error + np.abs(rows) @ noise)
        return worst


def _posterior(
    changes: np.ndarray, moved: np.ndarray, prior: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (units, numbers) and covariance (units, units) of what each unit adds."""
    if not len(moved):
        return np.zeros((len(prior), size)), np.diag(prior)
    weighed = changes * prior
    noise = _NONLINEAR * (np.abs(changes) @ prior)
    least = max(1e-12 * noise.max(), 1e-30)  # of units that have no effect at all
    kernel = weighed @ changes.T + np.diag(noise + least)
    gain = np.linalg.solve(kernel, weighed).T
    return gain @ moved, np.diag(prior) - gain @ weighed
