"""Small causes of a failure, by bisection."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def shrink(
    breaks: Callable[[Sequence[int]], bool], order: Sequence[int], most: int
) -> list[int] | None:
    """A minimal part of ``order`` that breaks a sample; None if it is larger than ``most``.

    ``order`` as a whole breaks it. Each step bisects for the shortest head that breaks it together
    with what was found before, and takes the last member of that head (QuickXplain: Junker, 2004).
    Every member is needed, if leaving more of them out never breaks a sample anew. What is returned
    was seen to break it, whether that is so or not.
    """
    found: list[int] = []
    rest = list(order)
    while not found or not breaks(found):
        if len(found) == most or not rest:
            return None
        fine, broken = 0, len(rest)
        while broken - fine > 1:
            middle = (fine + broken) // 2
            if breaks([*found, *rest[:middle]]):
                broken = middle
            else:
                fine = middle
        found.append(rest[broken - 1])
        rest = rest[: broken - 1]
    return found


def fewest(holds: Callable[[int], bool], most: int) -> int:
    """The least n from 1 to ``most`` for which ``holds(n)``, if it holds from some n on.

    Doubles, then bisects (as ``find_integer`` of Hypothesis). ``most`` is taken to hold.
    """
    fails, probe = 0, 1
    while probe < most and not holds(probe):
        fails, probe = probe, min(2 * probe, most)
    while probe - fails > 1:
        middle = (fails + probe) // 2
        if holds(middle):
            probe = middle
        else:
            fails = middle
    return probe
