"""A lowered program as data: JSON for its structure, arrays for its constants.

So that another process, or another machine, can run it; reading it runs no code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .graph import Block, Constant, Form, Function, Node, Ref, Source

#: A structure of dicts, lists, strings, numbers and None.
Json = Any


def dump(function: Function) -> tuple[Json, list[np.ndarray]]:
    """The program's structure, and the arrays that it refers to by number.

    Arrays are shared with the program where its constants are arrays; compressed ones are unpacked.
    """
    writer = _Writer()
    found = {
        "inputs": function.inputs,
        "states": function.states,
        "nodes": [writer.node(node) for node in function.nodes],
        "outputs": {name: writer.source(s) for name, s in function.outputs.items()},
        "state_outputs": {name: writer.source(s) for name, s in function.state_outputs.items()},
    }
    return {**found, "values": writer.values}, writer.arrays


def load(found: Json, arrays: Sequence[np.ndarray]) -> Function:
    """The inverse of :func:`dump`.

    Raises
    ------
    AttributeError, IndexError, KeyError, TypeError, ValueError
        If it is something else.
    """
    reader = _Reader([_value(value, arrays) for value in found["values"]])
    return Function(
        {str(name): int(slot) for name, slot in found["inputs"].items()},
        {str(name): int(slot) for name, slot in found["states"].items()},
        [reader.node(node) for node in found["nodes"]],
        {str(name): reader.source(s) for name, s in found["outputs"].items()},
        {str(name): reader.source(s) for name, s in found["state_outputs"].items()},
    )


class _Writer:
    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.values: list[Json] = []
        #: The FP32 and the FP16 form of a constant have one value.
        self._places: dict[Callable[[], Any], int] = {}

    def node(self, node: Node) -> Json:
        return {
            "type": node.op_type,
            "name": node.name,
            "layer": node.layer,
            "fp32": self._form(node.fp32),
            "fp16": None if node.fp16 is None else self._form(node.fp16),
            "outputs": node.outputs,
            "result": node.result,
            "candidate": node.candidate,
            "blocks": [
                {
                    "inputs": block.inputs,
                    "nodes": [self.node(inner) for inner in block.nodes],
                    "outputs": [self.source(s) for s in block.outputs],
                }
                for block in node.blocks
            ],
        }

    def _form(self, form: Form) -> Json:
        inputs = {name: self.source(s) for name, s in form.inputs.items()}
        return {"inputs": inputs, "dtypes": list(form.out_dtypes)}

    def source(self, source: Source) -> Json:
        if source is None:
            return None
        if isinstance(source, list):
            return [self.source(item) for item in source]
        if isinstance(source, Ref):
            return {"slot": source.slot, "narrow": source.narrow}
        if source.load not in self._places:
            self._places[source.load] = len(self.values)
            self.values.append(self._stored(source.load()))
        place = self._places[source.load]
        return {"value": place, "name": source.name, "narrow": source.narrow}

    def _stored(self, value: Any) -> Json:
        if isinstance(value, str):
            return value
        if isinstance(value, (list, tuple)):
            return [self._stored(item) for item in value]
        array = np.asarray(value)
        if array.dtype.kind in "US":
            return array.tolist()
        if array.dtype == object:  # coremltools' empty part of a symbolic shape
            array = array.astype(np.int32)
        self.arrays.append(array)
        return {"array": len(self.arrays) - 1}


def _value(found: Json, arrays: Sequence[np.ndarray]) -> Any:
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        return [_value(item, arrays) for item in found]
    place = int(found["array"])
    if place < 0:
        raise IndexError(place)
    return arrays[place]


class _Reader:
    def __init__(self, values: Sequence[Any]) -> None:
        self._constants = [Constant.of(value) for value in values]

    def node(self, found: Json) -> Node:
        fp16, candidate = found["fp16"], found["candidate"]
        return Node(
            str(found["type"]),
            str(found["name"]),
            str(found["layer"]),
            self._form(found["fp32"]),
            [int(slot) for slot in found["outputs"]],
            str(found["result"]),
            None if fp16 is None else self._form(fp16),
            None if candidate is None else int(candidate),
            [
                Block(
                    [int(slot) for slot in block["inputs"]],
                    [self.node(inner) for inner in block["nodes"]],
                    [self.source(s) for s in block["outputs"]],
                )
                for block in found["blocks"]
            ],
        )

    def _form(self, found: Json) -> Form:
        inputs = {str(name): self.source(s) for name, s in found["inputs"].items()}
        return Form(inputs, tuple(str(dtype) for dtype in found["dtypes"]))

    def source(self, found: Json) -> Source:
        if found is None:
            return None
        if isinstance(found, list):
            return [self.source(item) for item in found]
        narrow = bool(found["narrow"])
        if "slot" in found:
            return Ref(int(found["slot"]), narrow)
        constant = self._constants[int(found["value"])]
        return Constant(str(found["name"]), constant.load, narrow)
