"""A module that takes tensors in order and returns a tuple of tensors, as tracing needs it.

This source is copied into generated ``op_selector.py`` files: a trace made with it has the op
names that the search saw. It imports nothing from mpsearch.
"""

import dataclasses
from collections.abc import Mapping

import torch


def flatten(out, prefix=""):
    """Model outputs by name: dict and dataclass keys, else output or output_0, output_1, ..."""
    if isinstance(out, torch.Tensor):
        return {prefix or "output": out}
    if dataclasses.is_dataclass(out) and not isinstance(out, Mapping):
        out = {f.name: getattr(out, f.name) for f in dataclasses.fields(out)}
    named = {}
    if isinstance(out, Mapping):
        for key, value in out.items():
            if value is not None:
                named.update(flatten(value, f"{prefix}_{key}" if prefix else str(key)))
    elif isinstance(out, (tuple, list)) and len(out) == 1 and not prefix:
        named.update(flatten(out[0]))
    elif isinstance(out, (tuple, list)):
        for i, value in enumerate(out):
            if value is not None:
                named.update(flatten(value, f"{prefix or 'output'}_{i}"))
    else:
        raise TypeError(
            f"the model returns a {type(out).__name__}, expected tensors, or tuples, dicts or "
            "dataclasses of them"
        )
    return named


class Flat(torch.nn.Module):
    """``model``, called with tensors named ``names`` and with ``constants`` as they are."""

    def __init__(self, model, names, booleans=(), constants=None):
        super().__init__()
        self.model = model
        self.names = list(names)
        self.booleans = set(booleans)
        self.constants = dict(constants or {})

    def forward(self, *tensors):
        given = dict(zip(self.names, tensors, strict=True))
        given = {k: v.bool() if k in self.booleans else v for k, v in given.items()}
        outputs = tuple(flatten(self.model(**given, **self.constants)).values())
        return outputs if len(outputs) > 1 else outputs[0]
