"""Other processes and machines evaluate; what is found does not depend on them."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import torch

import mpsearch
from mpsearch.evaluation.metrics import resolve
from mpsearch.flows.surroundings import threads
from mpsearch.program.precision import Precision
from mpsearch.search.ahead import Ahead
from mpsearch.search.answering import Answerer, Call
from mpsearch.search.response import Sketch
from mpsearch.source.prepare import prepare
from mpsearch.workers.bench import Bench

from .command import run
from .planted import Planted
from .planted import samples as planted_samples
from .postgres import Server
from .test_executor import loop_package
from .trials.slow import Slow, build
from .trials.slow import samples as drawn

COST = {"seconds", "forward_equivalents", "op_executions"}
ROOT = Path(__file__).parent.parent
ARGV = ["optimize", "tests.trials.slow:build", "--inputs", "tests.trials.slow:samples"]
BUDGET = 3e-4


@pytest.fixture(scope="module")
def postgres():
    with closing(Server()) as server:
        yield server


def content(result):
    found = result if isinstance(result, dict) else result.as_dict()
    return {key: value for key, value in found.items() if key not in COST}


def small():
    """A model whose search takes a second or two, and 100 evaluations."""
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
    """Whether each evaluation that was asked for was made ahead, in turn."""
    found = []
    take = Ahead.take

    def noted(self, key):
        answer = take(self, key)
        found.append(answer is not None)
        return answer

    monkeypatch.setattr(Ahead, "take", noted)
    return found


# -- what goes to another process -----------------------------------------------------------------


def answerer(model, data, metric="rel_l2", targets=None):
    prepared = prepare(model, data, metric, "ieee,ane", targets=targets)
    evaluator = prepared.evaluator()
    return Answerer(evaluator, Sketch(evaluator.references, 0), frozenset({"no op"}))


def calls(count, searched):
    for fp32 in ((), range(0, count, 2), range(1, count, 2), range(count)):
        precision = Precision.of(fp32, count)
        yield Call("key", precision, tuple(searched), math.inf)


def planted():
    return Planted(3), planted_samples(3)


def looped():
    """Control flow, whose blocks capture values."""
    return loop_package(), [{"x": torch.rand(1, 4) + 1} for _ in range(3)]


@pytest.mark.parametrize("make", [planted, looped])
def test_a_bench_that_was_written_answers_as_the_one_it_was_written_from(make, tmp_path):
    here = answerer(*make())
    bench = Bench.of(here)
    there = Bench.read(bench.write(tmp_path)).answerer()
    assert Bench.read(bench.write(tmp_path)).digest == bench.digest
    assert here.evaluator.backend.candidates > 2
    for call in calls(here.evaluator.backend.candidates, here.evaluator.searched):
        a, b = here.ahead(call), there.ahead(Call.from_json(json.loads(json.dumps(call.as_json()))))
        assert (a.measured.loss, a.measured.worst) == (b.measured.loss, b.measured.worst)
        assert a.overflows == b.overflows and a.searched == b.searched
        assert a.errors.keys() == b.errors.keys()
        assert all((a.errors[key] == b.errors[key]).all() for key in a.errors)


def accuracy(outputs, targets):
    return sum(
        float(next(iter(o.values())).sum()) > t for o, t in zip(outputs, targets, strict=True)
    )


def test_a_metric_of_ones_own_is_named_by_the_user_and_never_by_a_file(tmp_path):
    name = "tests.test_workers:accuracy"
    targets = [0.0, 1.5, math.inf]
    inputs = planted_samples(3)[:3]
    folder = Bench.of(answerer(Planted(3), inputs, name, targets)).write(tmp_path)
    with pytest.raises(mpsearch.InputError, match=f"give --metric {name}"):
        Bench.read(folder)
    with pytest.raises(mpsearch.InputError, match=f"give --metric {name}"):
        Bench.read(folder, "os:system")
    assert Bench.read(folder, name).targets == targets
    assert resolve(name, True).score is not None


def test_what_a_worker_cannot_read_is_refused_in_a_line(tmp_path):
    folder = Bench.of(answerer(Planted(3), planted_samples(3))).write(tmp_path)
    whole = (folder / "bench.json").read_text()
    for spoilt in ("{}", "[]", "nonsense", whole.replace('"version": 2', '"version": 3')):
        (folder / "bench.json").write_text(spoilt)
        with pytest.raises(mpsearch.InputError) as told:
            Bench.read(folder)
        assert "\n" not in str(told.value)
    (folder / "bench.json").write_text(whole)
    (folder / "arrays.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(mpsearch.InputError, match="no search that this mpsearch can work on"):
        Bench.read(folder)


def test_a_machine_that_computes_otherwise_is_of_no_use(tmp_path):
    import dataclasses

    bench = Bench.of(answerer(Planted(3), planted_samples(3)))
    with pytest.raises(mpsearch.InputError, match="computes other results"):
        dataclasses.replace(bench, canary="of another machine").answerer()


def test_numerics_of_ones_own_need_a_cluster_that_has_them(tmp_path):
    class Own(mpsearch.Profile):
        name = "own"

    prepared = prepare(Planted(3), planted_samples(3), numerics=Own())
    evaluator = prepared.evaluator()
    made = Answerer(evaluator, Sketch(evaluator.references, 0), None)
    with pytest.raises(mpsearch.InputError, match="'own' is of your own"):
        Bench.of(made).write(tmp_path)
    assert not list(tmp_path.iterdir())


# -- a Dask cluster -------------------------------------------------------------------------------


def test_a_worker_of_a_dask_cluster_may_die(alone, taken, postgres, monkeypatch):
    """Three processes; one is killed in mid-search; the study is kept in PostgreSQL."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address=None, memory_limit=None
    ) as cluster:
        pids = [worker.process.process.pid for worker in cluster.workers.values()]
        take = Ahead.take

        def murderous(self, key):
            if len(taken) == 12 and pids:
                os.kill(pids.pop(), signal.SIGKILL)
            return take(self, key)

        monkeypatch.setattr(Ahead, "take", murderous)
        address = cluster.scheduler_address
        assert search(cluster=address, storage=postgres.url) == alone
        assert len(pids) == 2
    assert any(taken)  # how many depends on how fast the others are
    assert search(storage=postgres.url, resume=True) == alone


def test_a_cluster_that_goes_away_is_done_without(alone, taken, monkeypatch):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit=None
    ) as cluster:
        take = Ahead.take

        def ending(self, key):
            if len(taken) == 8:
                cluster.close()
            return take(self, key)

        monkeypatch.setattr(Ahead, "take", ending)
        assert search(cluster=cluster.scheduler_address) == alone


def test_what_cannot_be_a_cluster_is_said_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr("mpsearch.workers.dask._PATIENCE", 1)
    for given, expected in (
        ({"cluster": "somewhere"}, "expected tcp://"),
        ({"cluster": "local:0"}, "expected tcp://"),
        ({"cluster": "local:2", "jobs": 2}, "give one of them"),
        ({"cluster": "storage:out"}, "give storage"),
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


# -- workers by a storage -------------------------------------------------------------------------


def started(*argv, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mpsearch", *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, **pipes)


def test_three_workers_share_a_database_with_a_search_and_one_may_die(postgres, tmp_path):
    with threads(1):
        alone = content(mpsearch.optimize(build(), drawn(), BUDGET))
    out = tmp_path / "out"
    where = ["--storage", postgres.url, "--json"]
    workers = [started("worker", out, *where, cwd=ROOT) for _ in range(3)]
    argv = [*ARGV, "--budget", BUDGET, "-o", out, "--cluster", "storage", *where]
    leader = started(*argv, cwd=ROOT)
    storage = optuna.storages.RDBStorage(postgres.url)
    until = time.monotonic() + 120
    while not _answered(storage) and leader.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    workers[0].kill()
    said, errors = leader.communicate(timeout=300)
    assert leader.returncode == 0, errors
    whole = json.loads(said)
    assert content(whole) == {**content(whole), **_comparable(alone)}
    served = []
    for worker in workers[1:]:
        text, errors = worker.communicate(timeout=180)
        if worker.returncode:  # it was so late that the search was over
            assert "no search is under way" in errors
            continue
        served.append(json.loads(text)["evaluations"])
    assert any(served), served
    workers[0].communicate()
    assert not (out / ".search").exists()
    assert not _answered(storage)


def _comparable(found):
    """What a search in this process and one in another say alike: all but the model's name."""
    names = ("kept", "trials", "error", "heldout_error", "evaluations", "lower_bound", "ops")
    return {name: json.loads(json.dumps(found[name])) for name in names}


def _answered(storage):
    """How many requests have been answered; None where no search is under way."""
    for study in storage.get_all_studies():
        if study.study_name.startswith("mpsearch requests"):
            trials = storage.get_all_trials(study._study_id, deepcopy=False)
            return sum(trial.state.name == "COMPLETE" for trial in trials)
    return None


def test_a_search_with_workers_does_without_where_none_come(alone, tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    assert search(cluster=f"storage:{tmp_path / 'out'}", storage=storage) == alone
    assert not (tmp_path / "out").exists()


def test_a_worker_without_a_search_says_so(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    argv = ["worker", tmp_path, "--storage", storage, "--patience", "0.2"]
    said = run(*argv, expect=None)
    assert said.exit_code == 2
    assert f"no search is under way in {tmp_path}" in said.stderr
    said = run("worker", tmp_path, "--storage", "nonsense", expect=None)
    assert said.exit_code == 2 and "storage 'nonsense' cannot be opened" in said.stderr


# -- a server that goes away ----------------------------------------------------------------------


def test_a_database_that_is_away_for_ten_seconds(alone, postgres, monkeypatch):
    """The search waits for it, and ends as an unbroken one; so does one that goes on from it."""
    calls = []
    take = mpsearch.search.store.Store.keep

    def keep(self, asked, answer, trial):
        calls.append(asked)
        if len(calls) == 10:
            postgres.stop()
            threading.Timer(10, postgres.start).start()
        take(self, asked, answer, trial)

    monkeypatch.setattr(mpsearch.search.store.Store, "keep", keep)
    before = time.monotonic()
    assert search(storage=postgres.url) == alone
    assert time.monotonic() - before > 10
    count = len(calls)
    assert search(storage=postgres.url, resume=True) == alone
    assert len(calls) == 2 * count


def test_a_database_that_stays_away_ends_the_search_with_what_was_found(postgres, monkeypatch):
    import mpsearch.search.store as store

    monkeypatch.setattr(store, "_PATIENCE", 2.0)
    calls, keep = [], store.Store.keep

    def stopping(self, asked, answer, trial):
        calls.append(asked)
        if len(calls) == 30:
            postgres.stop()
        keep(self, asked, answer, trial)

    monkeypatch.setattr(store.Store, "keep", stopping)
    try:
        found = mpsearch.optimize(
            small(), drawn(), BUDGET, execution=mpsearch.Execution(storage=postgres.url)
        )
    finally:
        postgres.start()
    assert found.status == "interrupted"
    assert found.error <= BUDGET
    assert any("could not be kept" in note for note in found.notes)
