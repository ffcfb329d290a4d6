"""The processes of a Dask cluster evaluate; what is found does not depend on them."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch

import mpsearch
import mpsearch.search.study
from mpsearch.flows.isolation import threads
from mpsearch.program.precision import Precision
from mpsearch.source.prepare import prepare

from .command import run
from .planted import Planted
from .planted import samples as planted_samples
from .postgres import Server
from .test_executor import loop_package
from .trials.slow import Slow
from .trials.slow import samples as drawn

COST = {"seconds", "forward_equivalents", "op_executions"}
BUDGET = 3e-4


@pytest.fixture(scope="module")
def postgres():
    with closing(Server()) as server:
        yield server


def content(result):
    found = result if isinstance(result, dict) else result.as_dict()
    return {key: value for key, value in found.items() if key not in COST}


def small():
    """A model whose search takes a second or two."""
    torch.manual_seed(0)
    return Slow(4).eval()


def search(**options):
    execution = mpsearch.Execution(**options)
    return content(mpsearch.optimize(small(), drawn(), BUDGET, execution=execution))


@pytest.fixture(scope="module")
def alone():
    with threads(1):
        found = search()
    assert len(found["kept"]) > 3
    return found


@pytest.fixture
def taken(monkeypatch):
    """What the cluster gave, in turn; None where it was lost."""
    from mpsearch.workers.dask import Cluster

    found = []
    result = Cluster._result

    def noted(self, future):
        found.append(result(self, future))
        return found[-1]

    monkeypatch.setattr(Cluster, "_result", noted)
    return found


# -- what goes to another process -----------------------------------------------------------------


def planted():
    return Planted(3), planted_samples(3)


def looped():
    """Control flow, whose blocks capture values."""
    return loop_package(), [{"x": torch.rand(1, 4) + 1} for _ in range(3)]


@pytest.mark.parametrize("make", [planted, looped])
def test_what_goes_to_a_cluster_evaluates_as_it_does_here(make):
    import cloudpickle

    from mpsearch.workers.dask import Spec

    model, data = make()
    prepared = prepare(model, data, "rel_l2", "ieee,ane")
    evaluator, count = prepared.evaluator(), len(prepared.ops)
    there = cloudpickle.loads(cloudpickle.dumps(Spec(evaluator))).evaluator(None)
    for fp32 in ((), range(0, count, 2), range(1, count, 2), range(count)):
        precision = Precision.of(fp32, count)
        for sample in range(evaluator.samples):
            one, other = evaluator.evaluate(precision, sample), there.evaluate(precision, sample)
            assert (one.loss, one.nonfinite) == (other.loss, other.nonfinite)
            assert all(np.array_equal(a, b) for a, b in zip(one.errors, other.errors, strict=True))


def test_a_machine_that_computes_otherwise_is_of_no_use():
    from mpsearch.workers.dask import Spec

    prepared = prepare(Planted(3), planted_samples(3))
    spec = Spec(prepared.evaluator())
    spec._expected = b"another machine"
    assert spec.evaluator(None) is None


# -- a Dask cluster -------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_worker_of_a_dask_cluster_may_die(alone, taken, postgres, monkeypatch):
    """Three processes; one is killed in mid-search; the study is stored in PostgreSQL."""
    distributed = pytest.importorskip("distributed")
    from mpsearch.workers.dask import Cluster

    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address=None, memory_limit=None
    ) as cluster:
        pids = [worker.process.process.pid for worker in cluster.workers.values()]
        submit = Cluster._submit

        def murderous(self, *args):
            if len(taken) >= 4 and len(pids) == 3:
                os.kill(pids.pop(), signal.SIGKILL)
            return submit(self, *args)

        monkeypatch.setattr(Cluster, "_submit", murderous)
        address = cluster.scheduler_address
        assert search(cluster=address, storage=postgres.url) == alone
        assert len(pids) == 2
    assert any(taken)
    assert search(storage=postgres.url, resume=True) == alone


@pytest.mark.thorough
def test_a_cluster_that_goes_away_is_done_without(alone, taken, monkeypatch):
    distributed = pytest.importorskip("distributed")
    from mpsearch.workers.dask import Cluster

    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit=None
    ) as cluster:
        submit = Cluster._submit

        def ending(self, *args):
            if len(taken) == 3:
                cluster.close()
            return submit(self, *args)

        monkeypatch.setattr(Cluster, "_submit", ending)
        assert search(cluster=cluster.scheduler_address) == alone


def test_what_cannot_be_a_cluster_is_said_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr("mpsearch.workers.dask._PATIENCE", 1)
    for given, expected in (
        ({"cluster": "somewhere"}, "expected tcp://"),
        ({"cluster": "local:0"}, "expected tcp://"),
        ({"cluster": "local:2", "jobs": 2}, "give one of them"),
        ({"cluster": "storage:out"}, "expected tcp://"),
        ({"cluster": "local:2", "device": "cuda"}, "leave device out"),
    ):
        with pytest.raises(mpsearch.InputError, match=expected):
            mpsearch.Execution(**given)
    said = run(
        "optimize", "tests.models:net", "--inputs", "tests.models:batches", "--budget", "1e-2",
        "-o", tmp_path / "out", "--cluster", "tcp://127.0.0.1:1", expect=None,
    )  # fmt: skip
    assert said.exit_code == 2
    assert "no Dask cluster answers at tcp://127.0.0.1:1" in said.stderr
    assert not (tmp_path / "out").exists()


# -- a server that goes away ----------------------------------------------------------------------


@pytest.mark.thorough
def test_a_database_that_is_away_for_ten_seconds(alone, postgres, monkeypatch):
    """The search waits for it, and ends as an unbroken one; so does one that goes on from it."""
    calls = []
    add = mpsearch.search.study.Study.add

    def noted(self, *args):
        calls.append(args)
        if len(calls) == 5:
            postgres.stop()
            threading.Timer(10, postgres.start).start()
        add(self, *args)

    monkeypatch.setattr(mpsearch.search.study.Study, "add", noted)
    before = time.monotonic()
    assert search(storage=postgres.url) == alone
    assert time.monotonic() - before > 10
    count = len(calls)
    assert search(storage=postgres.url, resume=True) == alone
    assert len(calls) == 2 * count


@pytest.mark.thorough
def test_a_database_that_stays_away_ends_the_search_with_what_was_found(postgres, monkeypatch):
    import mpsearch.search.study as study

    monkeypatch.setattr(study, "_PATIENCE", 2.0)
    calls, add = [], study.Study.add

    def stopping(self, *args):
        calls.append(args)
        if len(calls) == 6:
            postgres.stop()
        add(self, *args)

    monkeypatch.setattr(study.Study, "add", stopping)
    try:
        found = mpsearch.optimize(
            small(), drawn(), BUDGET, execution=mpsearch.Execution(storage=postgres.url)
        )
    finally:
        postgres.start()
    assert found.status == "interrupted"
    assert found.error <= BUDGET
    assert any("could not be stored" in note for note in found.notes)
