"""MIL ops of the family ``recurrent``. Each function is the op it is named after.

Shapes: x (S, B, I); initial_h, initial_c (B, H), or (B, 2H) when bidirectional; the results are
the sequence (S, B, H), or its last step (1, B, H), then the final states. A ``reverse`` op gives
its sequence in the order in which it ran, the last time step first; within a bidirectional lstm
both directions are aligned in time.

torch's own kernels run what they define: the usual activations, without peepholes and clipping.
Where each inner step must be seen (:func:`mpsearch.numerics.steps.watched`), and over several
samples at once, which the kernels do not take, the same steps run one by one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics.steps import watched

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


def _whole() -> bool:
    """Whether steps may run joined, or all in one kernel."""
    return not watched() and torch._C._functorch.peek_interpreter_stack() is None


def _onto(given: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``given`` plus what a recurrent weight makes of a state."""
    if bias is None and _whole():
        return torch.addmm(given, h, weight.t())
    return given + F.linear(h, weight, bias)


def _kernel(
    kernel: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    direction: str,
    output_sequence: bool,
) -> tuple[Tensor, ...]:
    """A recurrent layer of torch. ``weights`` are two to a direction, or four with biases.

    ``states`` have the shape (directions, B, H), and so have the final states, which follow the
    sequence.
    """
    both = direction == "bidirectional"
    given = x.flip(0) if direction == "reverse" else x
    state = states if len(states) > 1 else states[0]
    biases = len(weights) == (8 if both else 4)
    sequence, *final = kernel(given, state, weights, biases, 1, 0.0, False, both, False)
    if not output_sequence:
        sequence = torch.cat(list(final[0]), -1).unsqueeze(0)
    return sequence, *final


def _ordered(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """Gates in another order."""
    gates = x.chunk(len(order))
    return torch.cat([gates[i] for i in order])


def _with_biases(weights: list[Tensor], bias: Tensor | None, other: Tensor | None) -> list[Tensor]:
    """Weights, then the biases of input and state, zeros for one that is absent."""
    if bias is None and other is None:
        return weights
    zero = weights[0].new_zeros(weights[0].shape[0])
    return [*weights, zero if bias is None else bias, zero if other is None else other]


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
    usual = (recurrent_activation, activation) == ("sigmoid", "tanh")
    if reset_after and usual and _whole():
        weights = _with_biases([weight_ih, weight_hh], input_bias, bias)
        ordered = [_ordered(w, (0, 2, 1)) for w in weights]
        states = [initial_h.unsqueeze(0)]
        sequence, h = _kernel(torch._VF.gru, x, states, ordered, direction, output_sequence)
        return sequence, h[0]
    gate, act = _ACTIVATIONS[recurrent_activation], _ACTIVATIONS[activation]
    w_r, w_o, w_z = weight_hh.chunk(3)
    w_rz = torch.cat([w_r, w_z])
    zero = x.new_zeros(weight_hh.shape[0])
    b_r, b_o, b_z = (zero if bias is None else bias).chunk(3)
    b_rz = torch.cat([b_r, b_z])
    i_r, i_o, i_z = F.linear(x, weight_ih, input_bias).chunk(3, dim=-1)
    i_rz = torch.cat([i_r, i_z], -1)
    joined = _whole()
    i_rz = i_rz + b_rz if joined else i_rz
    h, seen = initial_h, []
    for t in _steps(x, direction):
        r, z = gate(_onto(i_rz[t], h, w_rz, None if joined else b_rz)).chunk(2, dim=-1)
        if reset_after:
            o = act(i_o[t] + r * F.linear(h, w_o, b_o))
        else:
            o = act(_onto(i_o[t], r * h, w_o) + b_o)
        h = (1 - z) * o + z * h
        seen.append(h)
    return _sequence(seen, output_sequence), h


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
        i, f, o, z = _onto(projected[t], h, weight_hh).chunk(4, dim=-1)
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
    usual = names == ("sigmoid", "tanh", "tanh") and clip is None
    if usual and peephole is None and peephole_back is None and _whole():
        sides = [(weight_ih, weight_hh, bias)]
        if direction == "bidirectional":
            assert weight_ih_back is not None and weight_hh_back is not None
            sides.append((weight_ih_back, weight_hh_back, bias_back))
        zero = None
        if bias is not None or bias_back is not None:
            zero = weight_ih.new_zeros(weight_ih.shape[0])
        weights = []
        for w_i, w_h, b in sides:
            weights += _with_biases([w_i, w_h], zero if b is None else b, None)
        states = [torch.stack(s.chunk(len(sides), -1)) for s in (initial_h, initial_c)]
        ordered = [_ordered(w, (0, 1, 3, 2)) for w in weights]
        kernel = torch._VF.lstm
        sequence, *final = _kernel(kernel, x, states, ordered, direction, output_sequence)
        h, c = (torch.cat(list(state), -1) for state in final)
        return sequence, h, c
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
    kernel = {"tanh": torch._VF.rnn_tanh, "relu": torch._VF.rnn_relu}.get(activation)
    if kernel is not None and _whole():
        weights = _with_biases([weight_ih, weight_hh], bias, None)
        states = [initial_h.unsqueeze(0)]
        sequence, last = _kernel(kernel, x, states, weights, direction, output_sequence)
        return sequence, last[0]
    act = _ACTIVATIONS[activation]
    projected = F.linear(x, weight_ih, bias)
    h, states = initial_h, []
    for t in _steps(x, direction):
        h = act(_onto(projected[t], h, weight_hh))
        states.append(h)
    return _sequence(states, output_sequence), h
