"""Known faults of Core ML's runtime that no numeric simulation shows.

Each entry names the ops it strikes, where, and the report. Those that FP32 avoids are pinned to
FP32 unless the user says otherwise; the search neither finds nor judges them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..hints import option
from ..program.candidates import CandidateOp


@dataclass(frozen=True, slots=True)
class Hazard:
    """A fault.

    Attributes
    ----------
    op_type
        The MIL type of the ops that it strikes.
    what, where
        What goes wrong, and on which compute units.
    source
        The report.
    """

    op_type: str
    what: str
    where: str
    source: str


HAZARDS = (
    Hazard(
        "conv_transpose",
        "gives a shifted, wrong output",
        "all compute units of an M1 under macOS 14",
        "coremltools #2324",
    ),
)


def affected(ops: Sequence[CandidateOp]) -> dict[int, Hazard]:
    """The ops that a hazard strikes when they are FP16, by index."""
    by_type = {hazard.op_type: hazard for hazard in HAZARDS}
    return {op.index: by_type[op.type] for op in ops if op.type in by_type}


def notes(ops: Sequence[CandidateOp], indices: Iterable[int], pinned: bool) -> list[str]:
    """A line for each hazard that strikes some of these ops."""
    out = []
    for hazard in HAZARDS:
        names = [ops[i].name for i in sorted(indices) if ops[i].type == hazard.op_type]
        if not names:
            continue
        done = f"stay FP32 for it ({option('hazards', 'off')} leaves them to the search)"
        out.append(
            f"Runtime fault ({hazard.source}): {hazard.op_type} in FP16 {hazard.what}, seen on "
            f"{hazard.where}; {', '.join(names)} "
            + (
                done
                if pinned
                else f"may be affected ({option('hazards', 'pin')} keeps such ops FP32)"
            )
            + "."
        )
    return out
