"""Changes to the PyTorch model that would cost less than FP32.

:data:`REMEDIES` holds all of them. A remedy is found by the shape of the graph around an op that
FP16 breaks: squares that are averaged and rooted, logits that are scaled after the product, masks
that FP16 cannot hold. The code that it shows is that of :mod:`mpsearch.rewrites`, called with the
sizes of the model at hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from .. import rewrites
from ..program.candidates import CandidateOp
from ..program.graph import Function, Node
from . import matches
from .diagnosis import VERDICTS
from .neighborhood import Graph


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change to the model.

    Attributes
    ----------
    kind
        The function of :mod:`mpsearch.rewrites` that does it.
    title
        What to do, in a sentence.
    ops
        The ops that then need no FP32, by name.
    layers, lines
        Where they come from: PyTorch modules, and lines of Python.
    call
        How the function is called here, with the shapes at hand.
    code
        The function's source, and its call.
    """

    kind: str
    title: str
    ops: tuple[str, ...]
    layers: tuple[str, ...]
    lines: tuple[str, ...]
    call: str
    code: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of :data:`REMEDIES`.

    Attributes
    ----------
    rewrite
        The function of :mod:`mpsearch.rewrites` whose code is shown; its name is the remedy's kind.
    title
        What to do, in a sentence.
    verdicts
        It is offered where FP16 breaks an op of the pattern for one of these reasons.
    match
        Finds the pattern that begins, or that ends, at a node.
    """

    rewrite: Callable[..., Tensor | tuple[Tensor, ...]]
    title: str
    verdicts: frozenset[str]
    match: Callable[[Graph, Node], matches.Found | None]


#: What the code of every remedy needs.
_IMPORTS = "import math\n\nimport torch\nfrom torch import Tensor\n\n\n"
_ANY = frozenset(VERDICTS)
_RANGE = frozenset(["overflow", "underflow"])
_OVERFLOW = frozenset(["overflow"])
_DIGITS = frozenset(["overflow", "cancellation", "accumulation", "amplified"])

#: Every remedy. To add one, add a row here, the function that is shown to :mod:`mpsearch.rewrites`,
#: and the one that finds its pattern to :mod:`mpsearch.explain.matches`.
REMEDIES: tuple[_Entry, ...] = (
    _Entry(
        rewrites.softplus,
        "Spell softplus so that exp never sees a positive number (mish: x * tanh(softplus(x))).",
        _ANY,
        matches.softplus,
    ),
    _Entry(
        rewrites.logsumexp,
        "Take the largest value out before exp and add it after log.",
        _ANY,
        matches.logsumexp,
    ),
    _Entry(
        rewrites.log_softmax,
        "Subtract the logarithm of the sum instead of taking the logarithm of softmax.",
        _ANY,
        matches.log_softmax,
    ),
    _Entry(
        rewrites.softmax,
        "Use softmax for exponentials over their sum: it takes the largest out before.",
        _OVERFLOW,
        matches.softmax,
    ),
    _Entry(
        rewrites.scatter_softmax,
        "Subtract the largest value of each group before exp.",
        _RANGE,
        matches.scatter_softmax,
    ),
    _Entry(
        rewrites.finite_mask,
        "Mask with -1e4: large enough for softmax, and FP16 holds it.",
        _OVERFLOW | {"constant"},
        matches.mask,
    ),
    _Entry(
        rewrites.attention_scores,
        "Scale q and k before their product: it leaves FP16's range, the logits do not.",
        _OVERFLOW,
        matches.attention,
    ),
    _Entry(
        rewrites.linear_attention,
        "Average over the tokens instead of summing: what is divided later shrinks alike.",
        _OVERFLOW,
        matches.linear_attention,
    ),
    _Entry(
        rewrites.complex_divide,
        "Divide by the larger of the two parts of the denominator before squaring them.",
        _RANGE,
        matches.complex_division,
    ),
    _Entry(
        rewrites.scaled_norm,
        "Scale to at most 1 before squaring: the squares leave FP16's range, the norm does not.",
        _RANGE,
        matches.norm,
    ),
    _Entry(
        rewrites.magnitude,
        "Divide by the largest value before squaring and multiply the root by it.",
        _RANGE,
        matches.magnitude,
    ),
    _Entry(
        rewrites.log_power,
        "Scale the signal down before the power spectrum and add the logarithm back after it.",
        _OVERFLOW,
        matches.log_power,
    ),
    _Entry(
        rewrites.centered,
        "Subtract the centroid from the points: distances do not change, and squares get small.",
        _DIGITS,
        matches.distances,
    ),
    _Entry(
        rewrites.centered,
        "Subtract the mean before the variance: it does not change, and squares get small.",
        _DIGITS,
        matches.variance,
    ),
    _Entry(
        rewrites.wrapped_phase,
        "Leave whole turns out of the phase before sine and cosine: FP16 rounds a large phase.",
        _DIGITS | {"constant"},
        matches.phase,
    ),
)


def remedies(
    function: Function,
    ops: Sequence[CandidateOp],
    verdicts: Mapping[int, str],
    largest: Mapping[int, float],
) -> list[Remedy]:
    """The remedies for harmful ops. Of two that fit an op, the first of the table is offered.

    Parameters
    ----------
    verdicts
        Per harmful op, by index, why FP16 breaks it (:data:`mpsearch.explain.diagnosis.VERDICTS`).
    largest
        Per op, the largest magnitude of what it computes, where known.
    """
    graph = Graph(function, ops, verdicts, largest)
    found: dict[tuple[str, str], Remedy] = {}
    remedied: set[int] = set()
    for entry in REMEDIES if verdicts else ():
        for node in function.nodes:
            matched = entry.match(graph, node)
            if matched is None:
                continue
            nodes, call = matched
            harmful = [n for n in nodes if graph.verdict(n)]
            new = [n for n in harmful if n.candidate not in remedied]
            if not any(graph.verdict(n) in entry.verdicts for n in new):
                continue
            remedied.update(n.candidate for n in harmful if n.candidate is not None)
            remedy = _remedy(graph, entry, nodes, call)
            key = remedy.kind, remedy.call
            found[key] = _merged(found[key], remedy) if key in found else remedy
    return list(found.values())


def _merged(first: Remedy, second: Remedy) -> Remedy:
    def both(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(a + b))

    return replace(
        first,
        ops=both(first.ops, second.ops),
        layers=both(first.layers, second.layers),
        lines=both(first.lines, second.lines),
    )


def _remedy(graph: Graph, entry: _Entry, nodes: Sequence[Node], call: str) -> Remedy:
    """A remedy for those of these nodes that are harmful, the first of them where it starts."""
    known = [graph.ops[n.candidate] for n in nodes if n.candidate is not None]
    harmful = [op.name for op in known if op.index in graph.verdicts]
    return Remedy(
        entry.rewrite.__name__,
        entry.title,
        tuple(dict.fromkeys(harmful)),
        tuple(dict.fromkeys(op.layer for op in known[:1] if op.layer)),
        tuple(dict.fromkeys(op.line for op in known[:1] if op.line)),
        call,
        _IMPORTS + inspect.getsource(entry.rewrite) + "\n\n" + call,
    )
