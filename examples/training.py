"""The optimization inside a training script: search once, then check after every round.

The first round searches. Later rounds ask whether the stored config still holds for the new
weights, which costs three evaluations, and search again only where it does not.
"""

import mpsearch
from examples.digits import BUDGET, METRIC, TARGETS, Digits, samples, train


def run(rounds: int = 3, steps: int = 100, out: str = "digits.mlpackage") -> list[str]:
    """Train in rounds; returns what was done after each."""
    model = Digits()
    data = samples()
    config, done = None, []
    for _ in range(rounds):
        train(model, steps)
        task = {"metric": METRIC, "targets": TARGETS}
        if config is not None and mpsearch.check(config, model, data, **task).holds:
            done.append("checked")
            continue
        result = mpsearch.optimize(model, data, BUDGET, **task)
        config = result.config
        done.append(f"searched: {len(result.fp32_ops)} of {result.candidate_ops} ops in FP32")
    assert config is not None
    mpsearch.apply(config, model).save(out)
    return done


if __name__ == "__main__":
    for number, line in enumerate(run()):
        print(f"round {number}: {line}")
