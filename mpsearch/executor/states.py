"""MIL ops of the family ``states`` (iOS18). Each function is the op it is named after.

Lowering turns a state into an ordinary value (see :mod:`.graph`), so reading is the identity and
updating passes the new value on.
"""

from __future__ import annotations

from torch import Tensor


def coreml_update_state(state: Tensor, value: Tensor) -> Tensor:
    return value


def read_state(input: Tensor) -> Tensor:
    return input
