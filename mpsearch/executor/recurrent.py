"""MIL ops of the family ``recurrent``. Each function is the op it is named after.

Shapes: x (S, B, I); initial_h, initial_c (B, H), or (B, 2H) when bidirectional; the results are
the sequence (S, B, H), or its last step (1, B, H), then the final states. A ``reverse`` op gives
its sequence in the order in which it ran, the last time step first; within a bidirectional lstm
both directions are aligned in time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "scaled_tanh": torch.tanh,  # alpha = beta = 1 here, unlike the op of that name
    "linear": lambda x: x,
}


def _steps(x: Tensor, direction: str) -> list[int]:
    order = list(range(x.shape[0]))
    return order[::-1] if direction == "reverse" else order


def _sequence(states: list[Tensor], output_sequence: bool) -> Tensor:
    return torch.stack(states) if output_sequence else states[-1].unsqueeze(0)


def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gates in the order reset, output, update.

    ``reset_after`` applies the reset gate after the recurrent product (iOS18), as torch and
    cuDNN do; before it, the gate scales the state that enters the product.
    """
    gate, act = _ACTIVATIONS[recurrent_activation], _ACTIVATIONS[activation]
    w_r, w_o, w_z = weight_hh.chunk(3)
    zero = x.new_zeros(weight_hh.shape[0])
    b_r, b_o, b_z = (zero if bias is None else bias).chunk(3)
    projected = F.linear(x, weight_ih, input_bias)
    h, states = initial_h, []
    for t in _steps(x, direction):
        i_r, i_o, i_z = projected[t].chunk(3, dim=-1)
        r = gate(i_r + F.linear(h, w_r, b_r))
        z = gate(i_z + F.linear(h, w_z, b_z))
        if reset_after:
            o = act(i_o + r * F.linear(h, w_o, b_o))
        else:
            o = act(i_o + F.linear(r * h, w_o) + b_o)
        h = (1 - z) * o + z * h
        states.append(h)
    return _sequence(states, output_sequence), h


def _lstm_one_way(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    direction: str,
    output_sequence: bool,
    activations: tuple[str, str, str],
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    gate, cell, act = (_ACTIVATIONS[name] for name in activations)
    projected = F.linear(x, weight_ih, bias)
    p_i, p_f, p_o = (None, None, None) if peephole is None else peephole.chunk(3)
    states = []
    for t in _steps(x, direction):
        i, f, o, z = (projected[t] + F.linear(h, weight_hh)).chunk(4, dim=-1)
        if p_i is not None and p_f is not None:
            i, f = i + c * p_i, f + c * p_f
        z = cell(z)
        c = gate(f) * c + gate(i) * z
        if clip is not None:
            c = torch.clamp(c, -clip, clip)
        if p_o is not None:
            o = o + c * p_o
        h = gate(o) * act(c)
        states.append(h)
    return _sequence(states, output_sequence), h, c


def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gates in the order input, forget, output, cell."""
    # coremltools gives packed sequences states for more rows than the batch has.
    initial_h, initial_c = initial_h[: x.shape[1]], initial_c[: x.shape[1]]
    names = (recurrent_activation, cell_activation, activation)
    if direction != "bidirectional":
        return _lstm_one_way(
            x,
            initial_h,
            initial_c,
            weight_ih,
            weight_hh,
            bias,
            peephole,
            direction,
            output_sequence,
            names,
            clip,
        )
    assert weight_ih_back is not None and weight_hh_back is not None
    (h_f, h_b), (c_f, c_b) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
    forward = _lstm_one_way(
        x, h_f, c_f, weight_ih, weight_hh, bias, peephole, "forward", output_sequence, names, clip
    )
    backward = _lstm_one_way(
        x,
        h_b,
        c_b,
        weight_ih_back,
        weight_hh_back,
        bias_back,
        peephole_back,
        "reverse",
        output_sequence,
        names,
        clip,
    )
    backward = (backward[0].flip(0), *backward[1:])
    sequence, h, c = (torch.cat(pair, -1) for pair in zip(forward, backward, strict=True))
    return sequence, h, c


def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    act = _ACTIVATIONS[activation]
    projected = F.linear(x, weight_ih, bias)
    h, states = initial_h, []
    for t in _steps(x, direction):
        h = act(projected[t] + F.linear(h, weight_hh))
        states.append(h)
    return _sequence(states, output_sequence), h
