"""Several processes evaluate; what is found does not depend on them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import pytest
import torch

import mpsearch
from mpsearch.flows.isolation import threads
from mpsearch.forking import each
from mpsearch.workers import forked
from mpsearch.workers.forked import check_jobs

from .command import run
from .trials.slow import build
from .trials.slow import samples as drawn

COST = {"seconds", "forward_equivalents", "op_executions"}


@pytest.fixture(autouse=True)
def none_left_over():
    yield
    assert not multiprocessing.active_children()


def content(result):
    found = result if isinstance(result, dict) else result.as_dict()
    return {key: value for key, value in found.items() if key not in COST}


def search(jobs, **options):
    execution = mpsearch.Execution(jobs=jobs, **options)
    return mpsearch.optimize(build(), drawn(), 3e-4, execution=execution)


@pytest.fixture(scope="module")
def one():
    with threads(1):
        found = search(1)
    assert len(found.kept) > 3
    return content(found)


@pytest.mark.thorough
def test_results_do_not_depend_on_the_number_of_processes(one, monkeypatch, tmp_path):
    """And other processes take part, or they are worth nothing."""
    answer, answered = forked._Fork.answer, []

    def noted(self):
        found = answer(self)
        answered.append(found)
        return found

    monkeypatch.setattr(forked._Fork, "answer", noted)
    assert content(search(2)) == one
    assert len(answered) > 10 and all(found for found in answered)
    assert torch.get_num_threads() == 1
    url = f"sqlite:///{tmp_path / 'study.db'}"
    assert content(search(3, storage=url)) == one
    assert content(search(1, storage=url, resume=True)) == one


@pytest.mark.thorough
def test_a_worker_that_is_killed_costs_only_what_it_was_doing(one, monkeypatch):
    ask, killed = forked._Fork.ask, []

    def murderous(self, *args):
        if not killed:
            killed.append(self.process.pid)
            os.kill(killed[-1], signal.SIGKILL)
        ask(self, *args)

    monkeypatch.setattr(forked._Fork, "ask", murderous)
    assert content(search(2)) == one
    assert killed


def test_several_processes_are_for_the_cpu():
    with pytest.raises(mpsearch.InputError, match="jobs is 0"):
        mpsearch.Execution(jobs=0)
    with pytest.raises(mpsearch.InputError, match="expected 1 for device cuda"):
        check_jobs(2, "cuda")


@pytest.mark.thorough
def test_the_command_line_takes_jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def printed(jobs):
        argv = ["optimize", "tests.models:net", "--inputs", "tests.models:batches"]
        said = run(*argv, "--budget", "3e-4", "-o", f"out-{jobs}", "--jobs", jobs, "--json")
        return content(json.loads(said.stdout))

    assert printed(1) == printed(2)


def test_each_item_is_done_once_in_order_whatever_becomes_of_a_process():
    def work(item):
        if item == 5 and os.getpid() != here:
            os._exit(1)
        if item == 7 and os.getpid() != here:
            raise ValueError("in another process")
        return item * item, os.getpid() == here

    here = os.getpid()
    for jobs in (1, 2, 3, 20):
        found = each(work, range(10), jobs)
        assert [square for square, _ in found] == [i * i for i in range(10)]
        # With two, one process has both 5 and 7, and nothing comes of it.
        assert all(at_home for _, at_home in found) == (jobs < 3)
    with pytest.raises(ZeroDivisionError):
        each(lambda item: 1 // item, [1, 0, 2], 2)
