"""Finds the ops of a config in a model, also under other names.

A refactor renames layers, a newer coremltools counts ops otherwise, and an op put in shifts all
numbers after it. Where some op of a config is not there by name, type and layer, the ops of the
model that the config was made of are aligned with those of this one, as sequences are (Needleman
and Wunsch, 1970): only ops of one type are paired, of the same shapes or of like layers, in
execution order, so that the pairs are as many and as like as can be. An op is taken to be another
only where every best alignment pairs the two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from ..program.candidates import CandidateOp
from .config import Config, KeptOp

#: Of the ops that the config knows, so many must be found: less is another model.
_KNOWN = 0.5
#: What a pair is worth: of one type, and besides of the same shapes, of the same layer, of a layer
#: whose last part or whose numbers are the same.
_TYPE, _SHAPES, _LAYER, _PART = 2.0, 2.0, 3.0, 1.0


class Moved(msgspec.Struct, frozen=True):
    """An op of a config that goes by another name, or stands in another layer, now.

    Attributes
    ----------
    was
        The op as the config has it.
    name, layer
        What it is called in the model.
    """

    was: KeptOp
    name: str
    layer: str

    def __str__(self) -> str:
        return f"{self.was} is {self.name} ({self.layer or 'no layer'}) now"


@dataclass(frozen=True, slots=True)
class Matched:
    """Where a config's ops are in a model.

    Attributes
    ----------
    found
        Indices of candidate ops.
    moved
        Those among them that go by another name, or stand in another layer, now.
    missing
        Ops that are not there, or could be one of several.
    """

    found: frozenset[int]
    moved: tuple[Moved, ...]
    missing: tuple[KeptOp, ...]


@dataclass(frozen=True, slots=True)
class _Placed:
    """What is known of an op in its place."""

    type: str
    shapes: str
    layer: str

    @property
    def numbers(self) -> str:
        return " ".join(re.findall(r"\d+", self.layer))

    @property
    def part(self) -> str:
        return self.layer.rpartition(".")[2]


def graph(ops: Sequence[CandidateOp]) -> tuple[str, ...]:
    """The ops as a config keeps them: type, shapes and layer, in execution order."""
    return tuple(f"{op.type} {_shapes(op)} {op.layer}" for op in ops)


def _shapes(op: CandidateOp) -> str:
    return ",".join("x".join(map(str, shape)) or "scalar" for shape in op.output_shapes) or "none"


def match(config: Config, ops: Sequence[CandidateOp]) -> Matched:
    """Find a config's ops by name, type and layer, or else by type, layer and place."""
    known = {(op.name, op.type, op.layer): op.index for op in ops}
    places = {kept: known.get((kept.name, kept.type, kept.layer)) for kept in config.fp32_ops}
    if None not in places.values():
        return Matched(frozenset(i for i in places.values() if i is not None), (), ())
    pairs = _pairs(config, ops)
    moved, missing, found = [], [], set()
    for kept, at in places.items():
        now = pairs.get(kept, at if not config.graph else None)
        if now is None:
            missing.append(kept)
            continue
        found.add(now)
        if now != at:
            moved.append(Moved(kept, ops[now].name, ops[now].layer))
    return Matched(frozenset(found), tuple(moved), tuple(missing))


def _pairs(config: Config, ops: Sequence[CandidateOp]) -> dict[KeptOp, int]:
    """The ops of this model that those of the config are for certain."""
    if not config.graph:
        return {}
    old = [_Placed(*text.split(" ", 2)) for text in config.graph]
    new = [_Placed(op.type, _shapes(op), op.layer) for op in ops]
    score = _scores(old, new)
    best = _best(score)
    first, last = _aligned(score, best, True), _aligned(score, best, False)
    if len(first) < _KNOWN * len(old):
        return {}
    return {
        kept: first[at]
        for kept, at in zip(config.fp32_ops, config.places, strict=True)
        if at in first and first[at] == last.get(at)
    }


def _scores(old: Sequence[_Placed], new: Sequence[_Placed]) -> np.ndarray:
    """What pairing each op with each other is worth; 0 where they are not to be paired."""

    def equal(of: str) -> np.ndarray:
        a = np.array([getattr(op, of) for op in old])
        b = np.array([getattr(op, of) for op in new])
        return a[:, None] == b[None, :]

    named = np.array([bool(op.layer) for op in old])[:, None]
    numbered = np.array([bool(op.numbers) for op in old])[:, None]
    shapes, layer = equal("shapes"), equal("layer") & named
    part, numbers = equal("part") & named, equal("numbers") & numbered
    like = _SHAPES * shapes + _LAYER * layer + _PART * part + _PART * numbers
    pair = equal("type") & (shapes | layer | (part & numbers))
    worth: np.ndarray = np.where(pair, _TYPE + like, 0.0)
    return worth


def _best(score: np.ndarray) -> np.ndarray:
    """For every two tails of the sequences, what their best alignment is worth."""
    rows, columns = score.shape
    best = np.zeros((rows + 1, columns + 1))
    for i in range(rows - 1, -1, -1):
        paired = score[i] + best[i + 1, 1:]
        paired[score[i] == 0] = 0
        skipped = np.maximum(paired, best[i + 1, :-1])
        # The best of any tail from here on: a running maximum from the end.
        best[i, :-1] = np.maximum.accumulate(skipped[::-1])[::-1]
    return best


def _aligned(score: np.ndarray, best: np.ndarray, early: bool) -> dict[int, int]:
    """One best alignment: that which pairs as early as it can, or as late."""
    i = j = 0
    pairs: dict[int, int] = {}
    rows, columns = score.shape
    while i < rows and j < columns:
        pair = score[i, j] > 0 and np.isclose(best[i, j], score[i, j] + best[i + 1, j + 1])
        skip = np.isclose(best[i, j], best[i + 1, j]), np.isclose(best[i, j], best[i, j + 1])
        if pair and (early or not any(skip)):
            pairs[i] = j
            i, j = i + 1, j + 1
        elif skip[1]:
            j += 1
        else:
            i += 1
    return pairs
