"""Each pass of the search by itself, on errors that are made up."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mpsearch.ending import Ending, Stage, Stop
from mpsearch.evaluation.evaluator import Evaluation
from mpsearch.options import strategy_names
from mpsearch.search.conflicts import lower_bound, repair, solve
from mpsearch.search.criterion import Criterion, tolerated
from mpsearch.search.evaluations import Evaluations
from mpsearch.search.joining import confirm, confirmed
from mpsearch.search.problem import Problem
from mpsearch.search.proof import prove
from mpsearch.search.proposing import propose
from mpsearch.search.refining import exchange, prune
from mpsearch.search.registry import find_strategy
from mpsearch.search.rounding import RoundingModel
from mpsearch.search.samples import Kind, Sample
from mpsearch.search.search import Search
from mpsearch.search.shrink import fewest, shrink
from mpsearch.search.study import Study

LIMIT = 1.0


def op(index, weight=1.0):
    return SimpleNamespace(name=f"op{index}", index=index, weight_bytes=weight, flops=weight)


class Made:
    """An evaluator of a made-up error: ``loss(fp16 ops, sample)``."""

    by_sample = True
    metric = SimpleNamespace(name="rel_l2")

    def __init__(self, loss, samples):
        self.loss, self.samples, self.calls = loss, samples, []
        self.engine = SimpleNamespace(ending=Ending(), executions=0)

    def evaluate(self, precision, sample, stop_above=math.inf):
        self.calls.append((precision, sample))
        found = self.loss(precision.fp16, sample)
        errors = () if not math.isfinite(found) else (np.array([found], dtype=np.float32),)
        return Evaluation(found, errors=errors)

    def evaluate_together(self, precision, samples):
        return (self.evaluate(precision, sample) for sample in samples)


def searching(loss, effects, samples=1, perturbed=0, trials=10_000, **options):
    """A search of as many ops as there are effects (squared), which rank them."""
    count = len(effects)
    problem = Problem.of_ops([op(i) for i in range(count)], LIMIT)
    problem = Problem(problem.units, problem.ops, LIMIT, **options)
    kinds = [Kind.CALIBRATION] * samples + [Kind.PERTURBED] * perturbed
    places = [Sample(i, kind, i) for i, kind in enumerate(kinds)]
    made = Made(loss, samples + perturbed)
    search = Search(problem, Evaluations(made, Study()), places, trials=trials)
    model = RoundingModel()
    for index, effect in enumerate(effects):
        model.add(frozenset({index}), effect)
    search.ranking.__dict__["model"] = model
    search.judge_all_units()
    return search


def additive(effects):
    return lambda fp16, sample: math.sqrt(sum(effects[i] for i in fp16))


def breaking(*cores, samples=None):
    """Infinite where all ops of a core are FP16; a core may be of one sample alone."""
    samples = samples or [None] * len(cores)

    def loss(fp16, sample):
        pairs = zip(cores, samples, strict=True)
        return math.inf if any(c <= fp16 and at in (None, sample) for c, at in pairs) else 0.1

    return loss


def cheapest(loss, count, samples=1):
    """Brute force: the fewest ops whose casting breaks no sample."""
    for size in range(count + 1):
        for fp32 in itertools.combinations(range(count), size):
            fp16 = frozenset(range(count)) - set(fp32)
            if all(loss(fp16, sample) <= LIMIT for sample in range(samples)):
                return size
    raise AssertionError


# -- propose ---------------------------------------------------------------------------------------


def test_a_proposal_hits_every_conflict_at_the_least_cost():
    problem = Problem.of_ops([op(i) for i in range(6)], LIMIT)
    assert propose(problem, []) == frozenset()
    assert propose(problem, [{0, 1}, {1, 2}, {3}]) == {1, 3}
    weighed = Problem(problem.units, [op(i, 10.0 if i == 1 else 1.0) for i in range(6)], LIMIT)
    by_bytes = Problem(weighed.units, weighed.ops, LIMIT, objective="bytes")
    assert propose(by_bytes, [{0, 1}, {1, 2}]) == {0, 2}
    assert propose(problem, [{0, 1}], forced=[0]) == {0}


def test_a_cut_proposes_the_head_of_the_ranking():
    search = searching(additive([]), [5.0, 1.0, 3.0, 0.1, 0.2])
    model = search.ranking.model
    for cut, head in ((9.4, 0), (4.4, 1), (1.4, 2), (0.35, 3)):
        proposed = propose(search.problem, [], model, cut)
        assert proposed == set([0, 2, 1, 4, 3][:head])


def test_random_proposals_are_optimal():
    """Against all sets, with sources that several ops trigger."""
    draw = random.Random(0)
    for _ in range(40):
        count = draw.randint(4, 8)
        problem = Problem.of_ops([op(i) for i in range(count)], LIMIT)
        model = RoundingModel()
        for _ in range(count + 3):
            trigger = frozenset(draw.sample(range(count), draw.randint(1, 2)))
            model.add(trigger, draw.random() ** 3)
        conflicts = [frozenset(draw.sample(range(count), 2)) for _ in range(draw.randint(0, 3))]
        cut = draw.random() * sum(model.effects)
        found = propose(problem, conflicts, model, cut)

        def allowed(fp32, conflicts=conflicts, model=model, cut=cut, problem=problem):
            return all(fp32 & c for c in conflicts) and (
                model.total(problem.precision(fp32).fp16) <= cut * (1 + 1e-6)
            )

        sets = [
            frozenset(c) for k in range(count + 1) for c in itertools.combinations(range(count), k)
        ]
        best = min(len(s) for s in sets if allowed(s))
        assert found is not None and len(found) == best
        assert all(found & c for c in conflicts)


def test_what_pinned_ops_round_is_part_of_the_cut():
    search = searching(additive([]), [5.0, 1.0])
    pinned = Problem(search.problem.units[1:], search.problem.ops, LIMIT)
    assert propose(pinned, [], search.ranking.model, 5.5) == {0}
    assert propose(pinned, [], search.ranking.model, 4.0) is None


# -- shrink ----------------------------------------------------------------------------------------


def test_shrinking_finds_a_minimal_core():
    draw = random.Random(1)
    for _ in range(50):
        order = list(range(60))
        draw.shuffle(order)
        core = set(draw.sample(order, draw.randint(1, 4)))
        tried = []

        def breaks(units, core=core, tried=tried):
            tried.append(units)
            return core <= set(units)

        assert set(shrink(breaks, order, 6)) == core
        assert len(tried) <= 7 * len(core)


def test_a_core_that_is_too_large_is_none():
    assert shrink(lambda units: len(units) >= 9, range(40), 6) is None


def test_what_is_returned_was_seen_to_break_whatever_the_errors_do():
    """Where fewer FP16 ops can break more, a core may be larger than it need be."""
    draw = random.Random(2)
    for _ in range(200):
        verdicts = {}

        def breaks(units, verdicts=verdicts):
            key = frozenset(units)
            return verdicts.setdefault(key, len(key) == 12 or draw.random() < 0.4)

        found = shrink(breaks, range(12), 6)
        assert found is None or verdicts[frozenset(found)]


def test_the_fewest_are_found_by_doubling_and_bisection():
    for least in range(1, 40):
        tried = []

        def holds(n, least=least, tried=tried):
            tried.append(n)
            return n >= least

        assert fewest(holds, 40) == least and len(tried) <= 12


# -- what holds ------------------------------------------------------------------------------------


def test_given_samples_must_hold_and_perturbed_ones_in_their_share():
    criterion = Criterion(LIMIT, frozenset({"mask"}), tolerated=1)
    given, loose = Sample(0, Kind.CALIBRATION, 0), [Sample(i, Kind.PERTURBED, i) for i in (1, 2, 3)]
    held_out = Sample(4, Kind.HELDOUT, 7)
    good, over, far = Evaluation(0.5), Evaluation(1.5), Evaluation(11.0)
    assert criterion.offenders({given: good, loose[0]: over}) == []
    assert criterion.offenders({given: over, loose[0]: good}) == [given]
    assert criterion.offenders({held_out: over}) == [held_out]
    assert criterion.offenders({loose[0]: far}) == [loose[0]]
    two = {loose[0]: Evaluation(2.0), loose[1]: over, loose[2]: good}
    assert criterion.offenders(two) == [loose[1], loose[0]]  # the easiest first
    lost = Evaluation(0.5, nonfinite=("mask", "exp"))
    assert criterion.harmful(lost) == ["exp"] and criterion.offenders({loose[0]: lost})
    assert not Criterion(LIMIT).offenders({given: lost})


def test_as_many_perturbed_samples_may_break_as_the_next_input_may():
    """By rank, whatever the losses are: no more than the chance, and not far less."""
    assert [tolerated(n, 0.05) for n in (5, 38, 39, 59, 599)] == [0, 0, 1, 2, 29]
    draw = np.random.default_rng(0)
    broken = []
    for _ in range(400):
        losses = np.sort(draw.standard_cauchy(599))[::-1]
        broken.append(np.mean(draw.standard_cauchy(500) > losses[tolerated(599, 0.05)]))
    assert 0.045 < np.mean(broken) < 0.0515


# -- the loop --------------------------------------------------------------------------------------


def test_conflicts_are_learned_and_hit_at_the_optimum():
    loss = breaking({3}, {5, 8}, {8, 11}, {1, 2, 7})
    search = searching(loss, [1e-3] * 14)
    solve(search)
    assert search.best.price == lower_bound(search) == cheapest(loss, 14) == 3
    assert {frozenset(c.units) for c in search.conflicts} <= {
        frozenset(c) for c in ({3}, {5, 8}, {8, 11}, {1, 2, 7})
    }


def test_a_conflict_of_one_sample_is_of_that_sample():
    loss = breaking({3}, {6}, samples=[1, 2])
    search = searching(loss, [1e-3] * 10, samples=4)
    solve(search)
    assert search.best.fp32 == {3, 6}
    assert {(c.sample.index, *c.units) for c in search.conflicts} == {(1, 3), (2, 6)}


def test_rounding_that_adds_up_takes_the_head_of_the_ranking():
    draw = random.Random(3)
    for _ in range(10):
        effects = [draw.random() ** 4 for _ in range(12)]
        search = searching(additive(effects), effects)
        if search.judge((), "ends").met:
            continue
        solve(search)
        assert len(search.best.fp32) == cheapest(additive(effects), 12)
        assert len(search.evaluations.evaluator.calls) < 30


def test_mixed_errors_are_solved_whatever_the_ranking_says():
    """Flips beside rounding, predicted with an error of a factor of two."""
    draw = random.Random(4)
    excess = 0
    for _ in range(15):
        effects = [draw.random() ** 4 for _ in range(11)]
        cores = [frozenset(draw.sample(range(11), draw.randint(1, 2))) for _ in range(2)]
        flips, rounds = breaking(*cores), additive(effects)

        def loss(fp16, sample, flips=flips, rounds=rounds):
            return max(flips(fp16, sample), rounds(fp16, sample))

        search = searching(loss, [e * draw.choice([0.5, 1.0, 2.0]) for e in effects])
        solve(search)
        prune(search, search.best.fp32)
        excess += len(search.best.fp32) - cheapest(loss, 11)
        bound = lower_bound(search)
        assert bound is None or bound <= cheapest(loss, 11)
    assert excess <= 2


def test_easy_samples_never_raise_the_number_of_ops():
    effects = [0.5, 0.4, 0.3, 0.2, 0.1]

    def loss(fp16, sample):
        return 0.0 if sample > 3 else additive(effects)(fp16, sample)

    sizes = []
    for samples in (4, 8, 40):
        search = searching(loss, effects, samples=samples)
        solve(search)
        sizes.append(len(search.best.fp32))
    assert len(set(sizes)) == 1


def test_where_more_fp32_hurts_there_is_no_bound_and_still_a_set():
    def loss(fp16, sample):  # two errors that cancel, and one that does not
        return abs((0 in fp16) - (1 in fp16)) * 2.0 + (2 in fp16) * 3.0

    search = searching(loss, [4.0, 4.0, 9.0])
    solve(search)
    prune(search, search.best.fp32)
    assert search.best.met and 2 in search.best.fp32
    search.judge({2}, "try")
    assert search.best.fp32 == {2}
    if any(c.units <= {0, 1} for c in search.conflicts):
        assert lower_bound(search) is None


def test_repair_adds_no_more_than_is_needed():
    effects = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    search = searching(additive(effects), effects)
    assert repair(search, frozenset({5})) == {5, 0, 1, 2, 3}


def test_a_sample_that_is_promoted_is_learned_from():
    loss = breaking({3}, {6}, samples=[0, 1])
    search = searching(loss, [1e-3] * 10, samples=1)
    solve(search)
    assert search.best.fp32 == {3}
    search.evaluations.evaluator.samples = 2
    search.restrict(samples=[Sample(1, Kind.HELDOUT, 9)])
    assert search.best is None  # nothing is known to hold
    prune(search, repair(search, frozenset({3})))
    assert search.best.fp32 == {3, 6}


def from_one(loss, effects, **options):
    """A search that judges sets on one sample, and on those that what it finds fails on."""
    search = searching(loss, effects, **options)
    search.judge((), "ends")
    search.set_aside()
    assert len(search.samples.judged) == 1
    solve(search)
    prune(search, search.best.fp32)
    confirm(search)
    return search


def test_a_set_for_all_samples_is_found_from_few():
    """Each of three samples breaks by an op of its own; the other 37 ask for nothing."""
    cores = [{2}, {5}, {9}]
    search = from_one(breaking(*cores, samples=[3, 17, 30]), [1e-3] * 12, samples=40)
    assert search.best.fp32 == {2, 5, 9}
    assert {s.index for s in search.samples.judged} >= {3, 17, 30}
    assert len(search.samples.judged) < 10
    whole = search.evaluations.known(search.problem.precision(search.best.fp32))
    assert len(whole) == 40 and max(found.loss for found in whole.values()) <= LIMIT


def test_few_samples_give_as_few_ops_as_all_for_less_work():
    draw = random.Random(5)
    for _ in range(20):
        effects = [draw.random() ** 2 for _ in range(10)]
        scale = [1 + 0.5 * draw.random() for _ in range(30)]

        def loss(fp16, sample, effects=effects, scale=scale):
            return additive(effects)(fp16, sample) * scale[sample]

        whole = searching(loss, effects, samples=30)
        solve(whole)
        prune(whole, whole.best.fp32)
        few = from_one(loss, effects, samples=30)
        assert len(few.best.fp32) <= len(whole.best.fp32)
        most, least = (len(s.evaluations.evaluator.calls) for s in (whole, few))
        assert least <= most + 30  # the empty set is run on all


def harder_from(sample):
    """Six ops of one effect, which counts double from some sample on."""
    return lambda fp16, at: additive([0.5] * 6)(fp16, at) * (2.0 if at >= sample else 0.9)


def test_a_set_that_was_not_confirmed_is_not_the_best():
    """Trials may be used up before a set that holds on few samples was run on all."""
    loss = breaking({2}, {5}, samples=[0, 7])
    search = searching(loss, [1e-3] * 8, samples=9)
    search.judge((), "ends")
    search.set_aside()
    solve(search)
    search.judge({2, 5}, "try")
    assert search.best.fp32 in ({2}, {5}) and len(search.samples.judged) == 1
    assert confirmed(search).fp32 == {2, 5}
    assert search.best.fp32 == {2, 5}


def test_of_samples_set_aside_a_share_of_the_perturbed_may_break():
    effects, loss = [0.5] * 6, harder_from(38)
    strict = from_one(loss, effects, samples=2, perturbed=38)
    loose = from_one(loss, effects, samples=2, perturbed=38, tolerance=0.2)
    assert len(loose.best.fp32) == 4 and len(strict.best.fp32) == 6


def test_of_many_perturbed_samples_a_share_may_break():
    effects, loss = [0.5] * 6, harder_from(38)
    strict = searching(loss, effects, samples=2, perturbed=38)
    loose = searching(loss, effects, samples=2, perturbed=38, tolerance=0.2)
    for search in (strict, loose):
        solve(search)
    assert len(loose.best.fp32) == 4 and len(strict.best.fp32) == 6


# -- refine ----------------------------------------------------------------------------------------


def test_pruning_ends_where_no_single_unit_can_be_cast():
    draw = random.Random(5)
    for _ in range(10):
        effects = [draw.random() for _ in range(10)]
        search = searching(additive(effects), [1.0] * 10)  # a ranking that says nothing
        left = prune(search, search.problem.all_units)
        fp16 = search.problem.all_units - left
        assert sum(effects[i] for i in fp16) <= 1
        assert all(sum(effects[i] for i in fp16 | {u}) > 1 for u in left)


def test_exchanges_find_what_pruning_cannot():
    """Two units of 0.45 are FP32 where one of 0.9 would do: no single one can be cast."""
    effects = [0.9, 0.45, 0.45, 0.05]
    search = searching(additive(effects), effects)
    search.judge({1, 2}, "start")
    prune(search, frozenset({1, 2}))
    assert search.best.fp32 == {1, 2}
    exchange(search, misses=10, units=8)
    assert search.best.fp32 == {0}


def test_a_proof_tries_every_cheaper_set():
    loss = breaking({0, 1}, {1, 2}, {4})
    search = searching(loss, [1e-3] * 6)
    repair(search, frozenset())
    assert prove(search) and len(search.best.fp32) == 2
    assert not prove(search, most=3)


# -- the state -------------------------------------------------------------------------------------


def test_a_set_is_refused_at_its_hardest_sample():
    loss = breaking({3}, samples=[7])
    search = searching(loss, [1e-3] * 6, samples=12)
    search.judge((), "ends")
    calls = search.evaluations.evaluator.calls
    calls.clear()
    search.judge({0}, "try")
    assert [sample for _, sample in calls] == [7]


def test_nothing_is_evaluated_twice():
    search = searching(additive([0.5, 0.6, 0.7]), [0.5, 0.6, 0.7], samples=3)
    solve(search)
    prune(search, search.best.fp32)
    calls = search.evaluations.evaluator.calls
    assert len(calls) == len(set(calls))


def test_trials_are_a_limit():
    effects = [0.5] * 12
    search = searching(additive(effects), effects, trials=4)
    with pytest.raises(Stop):
        prune(search, search.problem.all_units)
    assert len(search.trials) == 4 and search.best.met


def test_a_strategy_that_asks_for_nothing_new_ends_with_the_time():
    search = searching(additive([0.5] * 4), [0.5] * 4)
    search.judge({0, 1}, "again")
    search.ending.stage = Stage.SEARCH
    assert search.judge({0, 1}, "again").fp32 == {0, 1}
    search.ending.give_up("over")
    with pytest.raises(Stop):
        search.judge({0, 1}, "again")


def test_verdicts_follow_from_evaluations():
    search = searching(additive([0.5, 0.6]), [0.5, 0.6])
    search.judge({1}, "try")
    assert search.best.fp32 == {1}
    search.restrict(limit=0.6)
    assert search.best.fp32 == {0, 1}
    search.restrict(limit=0.8)
    assert search.best.fp32 == {1}
    search.restrict(refused=frozenset({1}))
    assert search.best.fp32 == {0, 1}
    search.restrict(required=frozenset({0}))
    assert not search.judge({1}, "try").met


@pytest.mark.parametrize("name", strategy_names())
def test_every_strategy_finds_a_set_that_holds(name):
    """One op that breaks by itself, and one of two, beside rounding; the ranking sees neither."""
    effects = [0.05] * 8
    conflicts, rounds = breaking({3}, {5, 6}), additive(effects)

    def loss(fp16, sample):
        return max(conflicts(fp16, sample), rounds(fp16, sample))

    search = searching(loss, effects, trials=300)
    search.judge((), "ends")
    find_strategy(name)(search)
    assert loss(search.problem.precision(search.best.fp32).fp16, 0) <= LIMIT
    assert 3 in search.best.fp32 and search.best.fp32 & {5, 6}
    assert len(search.best.fp32) < 8
    if name in ("exhaustive", "greedy-optuna"):
        assert len(search.best.fp32) == 2


def test_the_passes_need_no_coremltools():
    code = "import sys, mpsearch.search.conflicts, mpsearch.search.refining, mpsearch.search.proof;"
    code += "sys.exit('coremltools' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
