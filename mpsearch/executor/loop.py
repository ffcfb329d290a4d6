"""The one loop over a program's nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..program.graph import Block, Function, Node, Source, refs, slots_read, walk

V = TypeVar("V")


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A node with what the loop needs of it.

    Attributes
    ----------
    index
        Its place in the schedule.
    reads
        The slots that it reads, those captured by its blocks included.
    last
        The slots that nothing reads after it.
    candidates
        The candidate ops inside it, its own included.
    """

    index: int
    node: Node
    reads: tuple[int, ...]
    last: tuple[int, ...]
    candidates: tuple[int, ...]


class Schedule:
    """The nodes that some wanted value depends on, in execution order.

    What a slot holds is up to the caller: a tensor for those who predict, an identity for those
    who look results up, a tensor with hooks for those who take gradients.
    """

    def __init__(self, nodes: Sequence[Node], wanted: Iterable[Source]) -> None:
        needed = {ref.slot for source in wanted for ref in refs(source)}
        read_later = set(needed)
        chosen = []
        for node in reversed(nodes):
            if needed.isdisjoint(node.outputs):
                continue
            reads = tuple(slots_read(node))
            needed.update(reads)
            chosen.append((node, reads))
        steps = []
        for index, (node, reads) in enumerate(chosen):
            last = tuple(s for s in {*reads, *node.outputs} if s not in read_later)
            read_later.update(reads)
            candidates = tuple(n.candidate for n in walk([node]) if n.candidate is not None)
            steps.append(Step(len(chosen) - 1 - index, node, reads, last, candidates))
        self.steps: Sequence[Step] = steps[::-1]

    @classmethod
    def of_function(cls, function: Function, states: bool = False) -> Schedule:
        """What a function's outputs need, and its states, where they are wanted as well."""
        wanted = list(function.outputs.values())
        return cls(function.nodes, wanted + list(function.state_outputs.values()) * states)

    @classmethod
    def of_block(cls, block: Block) -> Schedule:
        """What a nested block's outputs need."""
        return cls(block.nodes, block.outputs)

    def run(self, env: dict[int, V], execute: Callable[[Step, dict[int, V]], Iterable[V]]) -> None:
        """Run ``execute`` on every step and put its results into ``env``, by slot.

        A slot is dropped from ``env`` once nothing reads it any more, so that ``env`` holds what
        was wanted at the end.
        """
        for step in self.steps:
            env.update(zip(step.node.outputs, execute(step, env), strict=True))
            for slot in step.last:
                env.pop(slot, None)
