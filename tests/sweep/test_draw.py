"""The sweep itself: a seed is a run, everything is drawn, and its measures are mpsearch's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mpsearch import options as choices
from mpsearch.evaluation import metrics

from . import measures, sources
from .draw import COMMANDS, FILES, FORMS, FUNCTIONS, SOURCES, WRONG, draw
from .models import ARCHITECTURES

DRAWN = [draw(seed) for seed in range(6000)]


def values(name):
    return {run.options[name] for run in DRAWN if name in run.options and not run.wrong}


def test_a_seed_is_a_run():
    assert [draw(seed) for seed in range(50)] == DRAWN[:50]


def test_every_model_source_form_and_fault_is_drawn():
    assert {run.command for run in DRAWN} == set(COMMANDS)
    assert {run.architecture for run in DRAWN} == set(ARCHITECTURES)
    assert {run.source for run in DRAWN} == set(SOURCES)
    assert {run.form for run in DRAWN} == set(FORMS) | set(FILES)
    assert {run.wrong for run in DRAWN} == set(WRONG) | {""}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("target", choices.TARGETS),
        ("io_dtype", choices.IO_DTYPES),
        ("batches", choices.BATCHES),
        ("weight_dtype", choices.WEIGHT_DTYPES),
        ("rescale", choices.RESCALED),
        ("by", choices.GRANULARITIES),
        ("minimize", choices.MINIMIZED),
        ("objective", choices.OBJECTIVES),
        ("hazards", choices.HAZARD_ACTIONS),
        ("backend", choices.BACKENDS),
        ("compute_units", choices.COMPUTE_UNITS),
        ("strategy", choices.strategy_names()),
        ("metric", (*choices.METRICS, *FUNCTIONS)),
    ],
)
def test_every_value_of_an_option_is_drawn(name, known):
    assert values(name) == set(known)


def test_every_option_of_every_group_is_drawn():
    groups = (choices.Conversion, choices.Constraints, choices.Limits, choices.Execution)
    known = {name for group in groups for name in group.__struct_fields__}
    assert known <= {name for run in DRAWN for name in run.options}


@pytest.mark.parametrize("metric", choices.METRICS)
def test_the_measures_are_those_of_mpsearch(metric):
    generator = np.random.default_rng(0)
    references = [[generator.standard_normal((3, 7)), np.ones((2, 5))] for _ in range(4)]
    outputs = [[x + 0.1 * generator.standard_normal(x.shape) for x in r] for r in references]
    pairs = ([dict(enumerate(map(torch.tensor, x))) for x in y] for y in (references, outputs))
    expected = metrics.resolve(metric, False).whole(next(pairs), next(pairs), [])
    assert math.isclose(measures.loss(metric, references, outputs), expected, rel_tol=1e-9)
    run = replace(DRAWN[0], options={**DRAWN[0].options, "metric": metric})
    assert math.isfinite(measures.budget(run, references))


def test_torchscript_of_every_format(tmp_path):
    """Formats 3 to 10 are files that torch reads, each giving what the model gives."""
    (run,) = [r for r in DRAWN if r.source == "pt" and r.architecture == "unet"][:1]
    sample = ARCHITECTURES["unet"].samples(0, 1)[0]
    seen = set()
    for variant in range(8):
        folder = tmp_path / str(variant)
        folder.mkdir()
        made = sources.source(replace(run, variant=variant), folder)
        seen.add(sources.scripted_format(folder / "model.pt"))
        with torch.no_grad():
            expected = made.module(*sample.values())
        torch.testing.assert_close(made.predict(sample)[0], expected)
    assert seen == set(range(3, 11))
