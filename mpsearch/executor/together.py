"""Runs many samples of the same shapes at once, where that is faster and the program allows it.

Programs are lowered for the batch size that they were converted with, 1 for the most part.
``torch.func.vmap`` adds an axis of samples in front of every value without the ops knowing. For
small samples most of the time goes into calling ops and not into computing; for large ones the
values of several samples no longer fit the cache, and one after the other is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import MpsearchError
from ..program.graph import Function, Ref
from .loop import Schedule, Step
from .runtime import EVERY, Runtime, tensor_bytes

#: Samples run together, at most, and bytes of the largest result of them all: on a CPU what its
#: cache holds, elsewhere what occupies the device.
_MOST, _BYTES, _BYTES_ELSEWHERE = 32, 2 << 20, 256 << 20

Given = Mapping[int, Any]  # slot -> value
#: Shown every step with what it reads and its results; gives tensors that are wanted of it, by key.
Look = Callable[[Step, Mapping[int, Any], tuple[Any, ...]], Mapping[Any, Tensor]]


class Together:
    """Runs one function on several samples.

    Parameters
    ----------
    schedule
        Of the function.
    check
        Called before every op; raises where the run is to end.
    """

    def __init__(
        self, function: Function, schedule: Schedule, check: Callable[[], None] = lambda: None
    ) -> None:
        self._function = function
        self._schedule = schedule
        self._check = check
        self._size = 0  # samples at once; 0 until one was run

    def run(
        self,
        runtime: Runtime,
        samples: Sequence[Given],
        fp32: Container[int] = EVERY,
        look: Look | None = None,
    ) -> Iterator[tuple[dict[str, Tensor], dict[Any, Tensor]]]:
        """Per sample: the outputs by name, on the CPU, and what ``look`` wanted.

        The same as one after the other, but for the order in which a product adds.
        """
        done = 0
        while done < len(samples):
            batch = self._alike(samples[done:])
            if len(batch) > 1:
                try:
                    out = self._at_once(runtime, batch, fp32, look)
                except (MpsearchError, RuntimeError, ValueError, TypeError, IndexError):
                    self._size = 1  # some op decides by its values, or draws at random
                    continue
            else:
                out = [self._one(runtime, batch[0], fp32, look)]
            yield from out
            done += len(out)

    def _alike(self, samples: Sequence[Given]) -> Sequence[Given]:
        """The first samples, as many as can be run at once."""
        first = _form(samples[0])
        count = 1
        for sample in samples[1 : max(self._size, 1)]:
            if first is None or _form(sample) != first:
                break
            count += 1
        return samples[:count]

    def _one(
        self, runtime: Runtime, sample: Given, fp32: Container[int], look: Look | None
    ) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
        peak = 1

        def measure(step: Step, env: Mapping[int, Any], results: tuple[Any, ...]) -> Any:
            nonlocal peak
            peak = max(peak, tensor_bytes(results))
            return {} if look is None else look(step, env, results)

        given = {slot: value.to(runtime.device) for slot, value in sample.items()}
        out, seen = self._forward(runtime, given, fp32, measure)
        room = _BYTES if runtime.device.type == "cpu" else _BYTES_ELSEWHERE
        self._size = self._size or min(max(room // peak, 1), _MOST)
        return {name: value.cpu() for name, value in out.items()}, seen

    def _at_once(
        self, runtime: Runtime, samples: Sequence[Given], fp32: Container[int], look: Look | None
    ) -> list[tuple[dict[str, Tensor], dict[Any, Tensor]]]:
        stacked = {
            slot: torch.stack([s[slot] for s in samples]).to(runtime.device) for slot in samples[0]
        }
        forward = torch.func.vmap(lambda given: self._forward(runtime, dict(given), fp32, look))
        with torch.no_grad():
            out, seen = forward(stacked)
        out = {name: value.cpu() for name, value in out.items()}
        return [
            ({n: v[row] for n, v in out.items()}, {k: v[row] for k, v in seen.items()})
            for row in range(len(samples))
        ]

    def _forward(
        self, runtime: Runtime, env: dict[int, Any], fp32: Container[int], look: Look | None
    ) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
        seen: dict[Any, Tensor] = {}

        def execute(step: Step, values: dict[int, Any]) -> tuple[Any, ...]:
            self._check()
            results = runtime.run(step.node, values, fp32)
            if look is not None:
                seen.update(look(step, values, results))
            return results

        self._schedule.run(env, execute)
        outputs = self._function.outputs.items()
        return {
            name: runtime.source(source, env if isinstance(source, Ref) else {})
            for name, source in outputs
        }, seen


def _form(sample: Given) -> Any:
    """What samples that run at once have in common; None where one cannot."""
    if not all(isinstance(value, Tensor) for value in sample.values()):
        return None
    return {slot: (value.shape, value.dtype) for slot, value in sample.items()}
