"""From what a device answers to how it computes.

Each field of a rule has a question of its own. How an op computes inside is found by elimination:
the executor computes what each way would give, on inputs where they differ, and the one that gives
what the device gave is taken. Where none does, the op is said to be unexplained.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from ..executor.predict import Executor
from ..numerics.formats import FP16
from ..numerics.observed import ONE_TAP, Observation, Observed, Rule
from ..numerics.orders import ORDERS
from ..numerics.steps import ONE_STEP
from .questions import TERMS, Build, Question, Subject, mb, subjects

#: Computes the output ``y`` of a package for inputs by name.
Predict = Callable[[Any, Mapping[str, np.ndarray]], np.ndarray]
Value = Literal["nan", "zero", "inf"]

#: Where functions such as exp are approximated: the largest distance from what is expected, in
#: units of FP16's last place.
_CLOSE = 2
#: How far a sum of exponentials may be off by rounding.
_NEARLY = 0.02
#: Limits that someone would choose, among those that fit what was seen.
_ROUND = (FP16.overflows, FP16.largest, *(2.0**k for k in range(-2, 17)))


def probe(
    predict: Predict,
    name: str,
    about: Mapping[str, str] | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Observation:
    """How a device computes in FP16.

    Parameters
    ----------
    predict
        Runs a package on the device.
    name, about
        Of the profile, and what is known of the device.
    tell
        Called with each op type before it is asked about.
    """
    asker = _Asker(predict)
    tell("casts and subnormals")
    seen = Observation(name=name, about=dict(about or {}), otherwise=asker.otherwise())
    seen = msgspec.structs.replace(seen, subnormals=asker.subnormals(), nan=asker.nan())
    ops: dict[str, Rule] = {}
    unexplained: list[str] = []
    for subject in subjects():
        tell(subject.op_type)
        rule = asker.rule(subject, seen)
        if rule is None:
            unexplained.append(subject.op_type)
        elif subject.op_type == "add":  # what is not asked about is taken to compute as this does
            seen = msgspec.structs.replace(seen, otherwise=rule)
        elif rule != ops.get(_KIN.get(subject.op_type, ""), seen.otherwise):
            ops[subject.op_type] = rule
    return msgspec.structs.replace(seen, ops=ops, unexplained=tuple(unexplained))


#: Op types that compute as another one does if nothing else is said.
_KIN = {ONE_TAP: "conv"}


class _Asker:
    def __init__(self, predict: Predict) -> None:
        self._predict = predict

    def _ask(self, question: Question) -> np.ndarray:
        return np.asarray(self._predict(question.package, question.named), np.float32)

    # -- what holds for all ops --------------------------------------------------------------------

    def otherwise(self) -> Rule:
        """Whether a cast to FP16 and back rounds."""
        value = np.full((1, TERMS), 1 + 2.0**-12, np.float32)
        same = self._ask(Question(lambda x: mb.identity(x=x), (value,)))
        return Rule(result="fp32" if np.array_equal(same, value) else "fp16")

    def subnormals(self) -> Literal["kept", "flushed"]:
        """Whether 2**-20 outlives an addition of 0."""
        return "kept" if self._ask(_plus_zero(2.0**-20)).any() else "flushed"

    def nan(self) -> Value:
        """What NaN plus 0 is."""
        return _value(self._ask(_plus_zero(math.nan)))

    # -- one op ------------------------------------------------------------------------------------

    def rule(self, subject: Subject, seen: Observation) -> Rule | None:
        """How it computes; None where nothing explains what it gives."""
        given = self._ask(subject.inside)
        rounded = np.array_equal(given, given.astype(np.float16).astype(np.float32))
        rule = Rule(
            result="fp16" if rounded else "fp32",
            overflows=FP16.overflows if subject.passes is None else self._overflows(subject.passes),
            invalid=seen.otherwise.invalid
            if subject.invalid is None
            else _value(self._ask(subject.invalid)),
        )
        answers = [(subject.inside, given)]
        limits: list[float | None] = [None]
        if subject.exponential:
            more, limits = self._exponential(subject)
            answers += more
        near, best = math.inf, rule
        for candidate in _candidates(subject, rule, limits):
            described = msgspec.structs.replace(seen, ops={subject.op_type: candidate})
            distance = 0.0
            for question, answer in answers:
                distance = max(distance, _distance(answer, _expected(question, described)))
                if distance >= near:
                    break
            if distance < near:
                near, best = distance, candidate
        # Sums in FP32 may be taken in any order, which changes the last bit of few.
        exact = subject.exact and best.inside == "fp16"
        return best if near <= (0 if exact else _CLOSE) else None

    def _overflows(self, build: Build) -> float:
        """The smallest number of FP16, from 1024 on, that becomes infinite."""
        every = np.arange(0x6400, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
        given = np.zeros((len(every), TERMS), np.float32)
        given[:, 0] = every
        answer = self._ask(Question(build, (given,)))[:, 0]
        infinite = np.isinf(answer)
        return float(every[infinite].min()) if infinite.any() else FP16.overflows

    def _exponential(
        self, subject: Subject
    ) -> tuple[list[tuple[Question, np.ndarray]], list[float | None]]:
        """What it gives for larger and larger exponentials, and the limits that may explain it."""
        sizes = np.arange(0, 20, 2.0**-6, dtype=np.float32)
        summed = subject.op_type.startswith("reduce_")
        question = Question(subject.inside.build, (np.repeat(sizes[:, None], TERMS, 1),))
        answers = [(question, self._ask(question))]
        before, first = _between(*answers[0], summed)
        if first == math.inf:
            return answers, [None]
        if summed:  # finer, by one term among those that are nearly too many
            last = sizes[np.exp(sizes.astype(np.float64)) * TERMS <= before][-1]
            more = np.arange(last - 1, last + 1.5, 2.0**-7, dtype=np.float32)
            finer = np.full((len(more), TERMS), last, np.float32)
            finer[:, 0] = more
            question = Question(subject.inside.build, (finer,))
            answers.append((question, self._ask(question)))
        # The sum itself may be rounded.
        fitting = [v for v in _ROUND if before * (1 - _NEARLY) < v <= first * (1 + _NEARLY)]
        return answers, [*fitting, first]


def _between(question: Question, answer: np.ndarray, summed: bool) -> tuple[float, float]:
    """The largest exponential, or sum of them, that does no harm, and the next that does."""
    sizes = np.exp(question.inputs[0].astype(np.float64))
    totals = sizes.sum(1) if summed else sizes[:, 0]
    lost = np.flatnonzero(answer[:, 0] == 0)
    if not len(lost):
        return float(totals[-1]), math.inf
    return float(totals[lost[0] - 1]) if lost[0] else 0.0, float(totals[lost[0]])


def _plus_zero(value: float) -> Question:
    given = np.full((1, TERMS), value, np.float32)
    return Question(lambda x: mb.add(x=x, y=np.float16(0)), (given,))


def _value(answer: np.ndarray) -> Value:
    first = float(answer.reshape(-1)[0])
    return "nan" if math.isnan(first) else "inf" if math.isinf(first) else "zero"


def _candidates(subject: Subject, rule: Rule, limits: Sequence[float | None]) -> Iterator[Rule]:
    """The ways in which an op may compute inside, the plainest first."""
    for limit in limits:
        yield msgspec.structs.replace(rule, exponential=limit)
    if subject.op_type in ONE_STEP or rule.result == "fp32":
        return
    orders = ORDERS if subject.ordered else ("sequential",)
    products = (False, True) if subject.fused else (False,)
    for limit, fused, order in itertools.product(limits, products, orders):
        yield msgspec.structs.replace(
            rule, inside="fp16", order=order, fused=fused, exponential=limit
        )


def _expected(question: Question, seen: Observation) -> np.ndarray:
    """What a device that computes so would give."""
    executor = Executor(question.package, Observed(seen))
    return np.asarray(executor.predict(question.named)["y"], np.float32)


def _distance(given: np.ndarray, expected: np.ndarray) -> float:
    """The largest distance, in units of the last place of FP16."""
    a, b = given.reshape(-1).astype(np.float64), expected.reshape(-1).astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    a, b = a[~same], b[~same]
    if not (np.isfinite(a) & np.isfinite(b)).all():
        return math.inf
    place = np.maximum(np.floor(np.log2(np.maximum(np.abs(b), FP16.smallest_normal))), -14)
    return float((np.abs(a - b) / 2.0 ** (place - 10)).max())
