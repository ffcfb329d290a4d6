"""Plants numerics profiles and asks whether the probe recovers them.

    python -m tests.trials.probes --count 100

What a profile says that no question can show (an order of sums where nothing is rounded inside, for
instance) is not compared.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import msgspec

import mpsearch
from mpsearch.numerics.formats import FP16
from mpsearch.numerics.observed import Observation, Observed, Rule
from mpsearch.numerics.orders import ORDERS
from mpsearch.numerics.steps import ONE_STEP
from mpsearch.probing.questions import Subject, subjects


class Planted:
    """A device that computes as a profile says."""

    def __init__(self, seen: Observation) -> None:
        self.name, self.about = seen.name, {"device": "planted"}
        self._profile = Observed(seen)

    def load(self, model: Any) -> Any:
        return mpsearch.Executor(model, self._profile)


def planted(seed: int) -> Observation:
    """A profile at random: of each op type, how it computes."""
    r = random.Random(seed)
    invalid = r.choice(("nan", "zero", "inf"))
    return Observation(
        name=f"planted {seed}",
        subnormals=r.choice(("kept", "flushed")),
        nan=r.choice(("nan", "zero", "inf")),
        otherwise=Rule(invalid=invalid),
        ops={s.op_type: _rule(r, s) for s in subjects() if r.random() < 0.6},
    )


def _overflows(r: random.Random) -> float:
    return r.choice((FP16.overflows, 32768.0, 2.0 ** r.randint(11, 15), 65504.0))


def _rule(r: random.Random, subject: Subject) -> Rule:
    inside = "fp32" if subject.op_type in ONE_STEP else r.choice(("fp32", "fp16"))
    # Of softplus no FP16 input tells 65504 and 65520 apart.
    largest = FP16.largest if subject.op_type.startswith("reduce_") else FP16.overflows
    limits = (None, 32768.0, largest, 2.0 ** r.randint(9, 15))
    return Rule(
        result="fp16" if inside == "fp16" else r.choice(("fp16", "fp16", "fp32")),
        inside=inside,
        order=r.choice(list(ORDERS)),
        fused=r.random() < 0.5,
        overflows=_overflows(r),
        exponential=r.choice(limits) if subject.exponential else None,
        invalid=r.choice(("nan", "zero", "inf")),
    )


def shown(seen: Observation, subject: Subject) -> Rule:
    """What can be seen of a rule."""
    rule = Observed(seen).rule(subject.op_type)
    summed = rule.inside == "fp16" and subject.op_type not in ONE_STEP
    return msgspec.structs.replace(
        rule,
        inside="fp16" if summed else "fp32",
        order=rule.order if summed and subject.ordered else "sequential",
        fused=rule.fused and summed and subject.fused,
        overflows=rule.overflows
        if subject.passes is not None and rule.result == "fp16"
        else FP16.overflows,
        exponential=rule.exponential if subject.exponential else None,
        invalid=rule.invalid if subject.invalid is not None else "nan",
    )


def differences(a: Observation, b: Observation) -> list[str]:
    """Where two profiles differ, as far as it can be seen."""
    found = [n for n in ("subnormals", "nan") if getattr(a, n) != getattr(b, n)]
    for subject in subjects():
        one, other = shown(a, subject), shown(b, subject)
        found += [
            f"{subject.op_type}.{name}: {getattr(one, name)} and {getattr(other, name)}"
            for name in Rule.__struct_fields__
            if getattr(one, name) != getattr(other, name)
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    recovered = 0
    for seed in range(given.first, given.first + given.count):
        seen = planted(seed)
        wrong = differences(seen, mpsearch.probe(Planted(seen)))
        recovered += not wrong
        print(f"{seed}: {'recovered' if not wrong else '; '.join(wrong)}", flush=True)
    print(f"{recovered} of {given.count} recovered")


if __name__ == "__main__":
    main()
