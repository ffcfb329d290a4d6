"""Shapes with which a model runs, where nothing says them: to show what to type."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..isolated import contained
from .declared import Spec

#: Combinations that are tried at most, and seconds.
_TRIES, _SECONDS = 200, 5.0


def guessed(model: Any, names: Sequence[str]) -> dict[str, Spec]:
    """Shapes with which a module runs; empty where none was found.

    They follow from the sizes of its weights: channels of convolutions, widths of linear layers,
    and a few integers for a table. The model is copied, for running it may change its buffers.
    """
    copied, until = copy.deepcopy(model), time.monotonic() + _SECONDS
    specs = list(_likely(model))
    for chosen in itertools.islice(itertools.product(specs, repeat=len(names)), _TRIES):
        if time.monotonic() > until:
            break
        with contained(), torch.no_grad():
            try:
                copied(*(torch.ones(shape, dtype=dtype) for shape, dtype in chosen))
            except Exception:  # whatever it says of a wrong shape
                continue
        return dict(zip(names, chosen, strict=True))
    return {}


def _likely(model: torch.nn.Module) -> Iterator[Spec]:
    """Shapes that an input may have, the likeliest first."""
    shapes = dict.fromkeys(tuple(value.shape) for value in model.state_dict().values())
    first = next((shape for shape in shapes if len(shape) > 1), ())
    if len(first) == 4:
        yield (1, first[1], 224, 224), torch.float32
    if len(first) == 3:
        yield (1, first[1], 1000), torch.float32
    if len(first) == 2:
        yield (1, first[1]), torch.float32
        yield (1, 8, first[1]), torch.float32
        yield (1, 8), torch.float32
        yield (1, 8), torch.int64
    yield (1, 3, 224, 224), torch.float32
    yield (1, 1000), torch.float32
