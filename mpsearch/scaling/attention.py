"""Finds what softmax does not see of attention's scores: any value that a whole row has in common.

softmax(s + c) is softmax(s). Scores q.(k + b) have q.b in common along the keys, so that a bias of
the keys does nothing but make them large; and of a mask m, a row that is masked from end to end has
its largest value in common, beside which FP16 does not hold the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._ct import quiet
from ..executor.loop import Schedule
from ..executor.runtime import Runtime
from ..numerics.profiles import PROFILES
from ..program.graph import Constant, Function, Node, Ref, Source, slots_read
from .laws import MOVES, ports

with quiet():
    from coremltools.converters.mil.mil import Program

#: What a row that is masked from end to end has in common: FP16 holds scores beside more than that,
#: and FP32 does not hold them beside less.
_ROWS = -(2.0**20), -256.0
#: A branch of ``select`` at most this much is 0 after softmax, whatever the scores have in common.
_NOTHING = -1e9
#: Elements of the largest tensor that is followed.
_MOST = 1 << 26


class Attention:
    """What can be taken out of the attention of a program.

    Parameters
    ----------
    program
        As the converter made it.
    function
        The same, lowered.
    """

    def __init__(self, program: Program, function: Function) -> None:
        self._function = function
        (outer,) = program.functions.values()
        vars_ = {op.name: op.outputs for op in outer.operations}
        self._shapes: dict[int, tuple[Any, ...]] = {
            slot: tuple(var.shape or ())
            for node in function.nodes
            for slot, var in zip(node.outputs, vars_.get(node.name, ()), strict=False)
        }
        readers: dict[int, list[Node]] = {}
        for node in function.nodes:
            for slot in slots_read(node):
                readers.setdefault(slot, []).append(node)
        outputs = [*function.outputs.values(), *function.state_outputs.values()]
        self._kept = {source.slot for source in outputs if isinstance(source, Ref)}
        #: Slots that only softmax sees, with the axis along which it does, from the end: what a
        #: tensor has in common along it does not show.
        self._before_softmax: dict[int, int] = {}
        for node in reversed(function.nodes):
            for slot in node.outputs:
                axes = {self._axis(reader, slot) for reader in readers.get(slot, ())}
                if slot not in self._kept and len(axes) == 1 and (axis := axes.pop()) is not None:
                    self._before_softmax[slot] = axis

    def allows(self, op: str, mask: str, channels: Sequence[tuple[int, int]]) -> bool:
        """Whether an input of an op may be a mask, or channels of its bias may be left out."""
        if mask:
            return mask in self.masks.get(op, ())
        spans = self.biases.get(op, ())
        return all(any(a <= b <= c <= d for a, d in spans) for b, c in channels)

    # -- biases of keys ------------------------------------------------------------------------

    @cached_property
    def biases(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Ops by name, with the channels (from, to) of their bias that only keys see."""
        keys = {
            (node.name, port): axis
            for node in self._function.nodes
            for port, axis in self._keys(node)
        }
        found = {}
        for node in self._function.nodes if keys else ():
            count = bias_of(node).size
            if count and (spans := self._spans(node, count, keys)):
                found[node.name] = spans
        return found

    def _keys(self, node: Node) -> Iterator[tuple[str, int]]:
        """The inputs of an op that are keys, with the axis along which the keys lie."""
        inputs = node.fp32.inputs
        if node.op_type == "scaled_dot_product_attention":
            yield "key", -2
        elif node.op_type == "matmul":
            axis = self._before_softmax.get(node.outputs[0])
            if axis == -1:
                yield "y", -2 if _integer(inputs.get("transpose_y"), 0) else -1
            elif axis == -2:
                yield "x", -1 if _integer(inputs.get("transpose_x"), 0) else -2

    def _spans(
        self, node: Node, count: int, keys: Mapping[tuple[str, str], int]
    ) -> tuple[tuple[int, int], ...]:
        """Which channels of what an op computes go nowhere but into keys, alike for each."""
        (slot,) = node.outputs
        shape = self._shapes.get(slot, ())
        if not all(isinstance(s, int | np.integer) for s in shape) or np.prod(shape) > _MOST:
            return ()
        axis = 1 if node.op_type == "conv" else -1
        index = torch.arange(count, dtype=torch.float32)
        index = index.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
        env = {slot: index.expand(*map(int, shape))}
        good, bad = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
        runtime = Runtime(PROFILES["ieee"])
        for reader in self._function.nodes:
            for port, source in ports(reader):
                if not isinstance(source, Ref) or source.slot not in env:
                    continue
                value = env[source.slot]
                along = keys.get((reader.name, port))
                if along is not None:
                    alike = (value == value.narrow(along, 0, 1)).all(along, keepdim=True)
                    alike = alike.expand_as(value)
                    good[value[alike].long().unique()] = True
                    bad[value[~alike].long().unique()] = True
                elif (
                    reader.op_type in MOVES
                    and port == "x"
                    and set(slots_read(reader)) <= env.keys()
                ):
                    env.update(zip(reader.outputs, runtime.run(reader, env), strict=True))
                elif _everywhere(_factor(reader, port), value.dim()):
                    env[reader.outputs[0]] = value
                else:
                    bad[value.long().unique()] = True
            if reader.blocks:
                for inner in set(slots_read(reader)) & env.keys():
                    bad[env[inner].long().unique()] = True
        for inner in self._kept & env.keys():
            bad[env[inner].long().unique()] = True
        return _spans(good & ~bad)

    # -- masks ---------------------------------------------------------------------------------

    @cached_property
    def masks(self) -> dict[str, tuple[str, ...]]:
        """Sums that only softmax along the last axis sees, with the inputs that may be masks."""
        found = {}
        for node in self._function.nodes:
            if node.op_type != "add" or self._before_softmax.get(node.outputs[0]) != -1:
                continue
            length = self._shapes[node.outputs[0]][-1]
            inputs = tuple(
                port
                for port, source in ports(node)
                if isinstance(source, Ref)
                and self._shapes.get(source.slot, (0,))[-1:] == (length,)
                and not self._computed(source)
            )
            if inputs:
                found[node.name] = inputs
        return found

    def masked_rows(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Sums by name, with the input that is a mask, which masks whole rows of some sample."""
        nodes = {node.name: node for node in self._function.nodes}
        masks = [(name, port) for name, ports_ in self.masks.items() for port in ports_]
        sources = {entry: nodes[entry[0]].fp32.inputs[entry[1]] for entry in masks}
        least: dict[tuple[str, str], float] = dict.fromkeys(masks, 0.0)
        runtime = Runtime(PROFILES["ieee"])
        schedule = Schedule(self._function.nodes, sources.values())
        for sample in samples if masks else ():
            env = {slot: sample[name] for name, slot in self._function.inputs.items()}
            schedule.run(env, lambda step, values: runtime.run(step.node, values))
            for entry, source in sources.items():
                rows = runtime.source(source, env).amax(-1)
                least[entry] = min(least[entry], float(rows.min()))
        low, high = _ROWS
        return {name: port for (name, port), value in least.items() if low <= value <= high}

    def _computed(self, source: Source) -> bool:
        """Whether a product of what goes in takes part: then it is no mask."""
        steps = Schedule(self._function.nodes, [source]).steps
        states = set(self._function.states.values())
        heavy = {"matmul", "linear", "conv", "conv_transpose", "einsum"}
        return any(
            step.node.op_type in heavy or step.node.blocks or not states.isdisjoint(step.reads)
            for step in steps
        )

    def _axis(self, node: Node, slot: int) -> int | None:
        shape = self._shapes.get(slot)
        if shape is None or node.blocks:
            return None
        if node.op_type == "softmax":
            given = _integer(node.fp32.inputs.get("axis"), -1)
            return given if given < 0 else given - len(shape)
        (out,) = node.outputs if len(node.outputs) == 1 else (-1,)
        there = self._shapes.get(out)
        used = [
            port for port, source in ports(node) if isinstance(source, Ref) and source.slot == slot
        ]
        if there is None or len(used) != 1:
            return None
        axis = self._before_softmax.get(out)
        if axis is None or axis < -len(shape) or shape[axis:] != there[axis:]:
            return None
        passes = (
            _one(_factor(node, used[0]), axis)
            or node.op_type == "add"
            or (node.op_type == "sub" and used[0] == "x")
            or (node.op_type in ("reshape", "expand_dims", "squeeze") and used[0] == "x")
            or (node.op_type == "select" and _vanishing(node, used[0]))
        )
        return axis if passes else None


def bias_of(node: Node) -> np.ndarray:
    """The constant that an op adds to each of its channels; empty where there is none."""
    names = {"linear": ["bias"], "conv": ["bias"], "add": ["x", "y"]}.get(node.op_type, [])
    for name in names:
        source = node.fp32.inputs.get(name)
        if isinstance(source, Constant):
            value = np.asarray(source.load())
            if value.ndim and value.shape[-1] == value.size > 1:
                return value.reshape(-1).astype(np.float64)
    return np.empty(0)


def _factor(node: Node, port: str) -> tuple[int, ...] | None:
    """The shape of the constant that an input is multiplied with or divided by."""
    if (node.op_type, port) not in (("mul", "x"), ("mul", "y"), ("real_div", "x")):
        return None
    factor = node.fp32.inputs.get("x" if port == "y" else "y")
    return np.shape(factor.load()) if isinstance(factor, Constant) else None


def _one(shape: tuple[int, ...] | None, axis: int) -> bool:
    """Whether what has a shape is the same along an axis."""
    return shape is not None and (len(shape) < -axis or shape[axis] == 1)


def _everywhere(shape: tuple[int, ...] | None, rank: int) -> bool:
    """Whether what has a shape is one number for tensors of a rank."""
    return shape is not None and len(shape) <= rank and set(shape) <= {1}


def _vanishing(node: Node, port: str) -> bool:
    """Whether the other branch of ``select`` is a constant that softmax makes 0."""
    other = {"a": "b", "b": "a"}.get(port, "")
    source = node.fp32.inputs.get(other)
    return isinstance(source, Constant) and bool(np.all(np.asarray(source.load()) <= _NOTHING))


def _integer(source: Source, default: int) -> int:
    return int(source.load()) if isinstance(source, Constant) else default


def _spans(chosen: Tensor) -> tuple[tuple[int, int], ...]:
    """Runs of truth in a vector."""
    edges = torch.diff(chosen.int(), prepend=torch.zeros(1), append=torch.zeros(1))
    starts, ends = (edges == 1).nonzero().ravel(), (edges == -1).nonzero().ravel()
    return tuple(zip(starts.tolist(), ends.tolist(), strict=True))
