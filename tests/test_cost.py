"""What a set costs: islands against networkx, casts and weights against the written package."""

from __future__ import annotations

import random

import networkx as nx
import pytest

import mpsearch
from examples import stylegan2
from mpsearch.program.precision import Precision
from mpsearch.search.cost import Casts, cost
from mpsearch.source.prepare import prepare


def _prepared():
    model, data = stylegan2.build(small=True), stylegan2.samples(small=True)
    return prepare(model, data, heldout=0.25)


def test_islands_are_the_connected_components():
    prepared = _prepared()
    casts = Casts(prepared.lowered)
    whole = nx.Graph((a, b) for b, sources in casts.reads().items() for a in sources)
    whole.add_nodes_from(range(len(prepared.ops)))
    draw = random.Random(0)
    for _ in range(20):
        kept = [op.index for op in prepared.ops if draw.random() < 0.4]
        wanted = {frozenset(c) for c in nx.connected_components(whole.subgraph(kept))}
        islands = casts.islands(Precision.of(kept, len(prepared.ops)))
        assert {frozenset(island) for island in islands} == wanted
        assert all(island == sorted(island) for island in islands)
    assert casts.islands(Precision.all_fp16(len(prepared.ops))) == []


def test_costs_of_the_ends():
    prepared = _prepared()
    casts, count = Casts(prepared.lowered), len(prepared.ops)
    fp16 = cost(prepared.ops, casts, Precision.all_fp16(count))
    fp32 = cost(prepared.ops, casts, Precision.all_fp32(count))
    assert (fp16.fp32_ops, fp16.islands, fp16.fp32_flops) == (0, 0, 0.0)
    assert (fp32.fp32_ops, fp32.fp32_flops, fp32.casts) == (count, 1.0, 0)
    assert fp32.weight_bytes == 2 * fp16.weight_bytes > 0


@pytest.mark.thorough
def test_the_result_says_what_it_costs():
    result = mpsearch.optimize(stylegan2.build(small=True), stylegan2.samples(small=True), 1e-2)
    package = result.costs["package"]
    assert package.fp32_ops == len(result.fp32_ops) == sum(map(len, result.islands)) > 0
    assert package.islands == len(result.islands)
    assert package.casts == result.casts  # counted in the package as read back
    assert [op.name for op in result.ops if op.fp32] == result.fp32_ops
