"""From a MIL program to what the executor runs, and to the candidate ops of the search."""

from __future__ import annotations

import copy
import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from .._ct import quiet
from ..errors import InputError, UnsupportedOpError
from ..usercode import reason
from .candidates import CandidateOp
from .flops import flops
from .graph import Block, Constant, Form, Function, Node, Ref, Source

with quiet():
    from coremltools.converters.mil.frontend.milproto.load import load as _load_milproto
    from coremltools.converters.mil.mil import Block as MilBlock
    from coremltools.converters.mil.mil import Operation, Program, Var, types
    from coremltools.converters.mil.mil.passes.defs.preprocess import NameSanitizer
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision
    from coremltools.converters.mil.mil.scope import ScopeSource

LayerOf = Callable[[Operation], str]
LineOf = Callable[[Operation], str]


# --- copies and files ------------------------------------------------------------------------


def copy_program(program: Program) -> Program:
    """A copy that may be changed by passes; arrays are shared with the original."""
    shared: dict[int, Any] = {}
    for function in program.functions.values():
        for op in all_ops(function):
            if op.op_type == "const" and isinstance(op.val.val, np.ndarray):
                shared[id(op.val.val)] = op.val.val
    out: list[Program] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            out.append(copy.deepcopy(program, shared))
        except BaseException as error:
            failed.append(error)

    # deepcopy follows the linked list of ops: its depth grows with the length of the program.
    count = sum(1 for f in program.functions.values() for _ in all_ops(f))
    limit = sys.getrecursionlimit()
    stack = threading.stack_size(min(1 << 30, (16 << 20) + 40_000 * count))
    sys.setrecursionlimit(limit + 100 * count)
    try:
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
    finally:
        sys.setrecursionlimit(limit)
        threading.stack_size(stack)
    if failed:
        raise failed[0]
    (clone,) = out
    for function in clone.functions.values():
        # Casts inserted by a second conversion have no scope of their own; without this
        # coremltools refuses them.
        function._essential_scope_sources = []
        for block in _all_blocks(function):
            block._essential_scope_sources = []
    return clone


def load_program(spec: Any, weights_dir: str) -> Program:
    """The MIL program of an ML Program's specification, weights read from ``weights_dir``.

    Raises
    ------
    InputError
        If the model is not an ML Program, or cannot be read.
    """
    if spec.WhichOneof("Type") != "mlProgram":
        raise InputError(
            f"the model is a {spec.WhichOneof('Type')}, expected an ML Program; convert the "
            "original again with convert_to='mlprogram'"
        )
    try:
        with quiet():
            return _load_milproto(spec, spec.specificationVersion, weights_dir)
    except Exception as error:  # whatever a broken program makes coremltools do
        raise InputError(f"the model's program cannot be read: {reason(error)}") from error


def _all_blocks(block: MilBlock) -> list[MilBlock]:
    return [block] + [
        b for op in block.operations for child in op.blocks for b in _all_blocks(child)
    ]


def all_ops(block: MilBlock) -> list[Operation]:
    """Every op of a block, those of nested blocks before the op that owns them."""
    out = []
    for op in block.operations:
        for child in op.blocks:
            out.extend(all_ops(child))
        out.append(op)
    return out


# --- the FP16 forms --------------------------------------------------------------------------


class _Recorder(FP16ComputePrecision):
    """coremltools' own cast pass, keeping for each op what it makes of it."""

    def __init__(self) -> None:
        super().__init__(op_selector=lambda op: True)
        self.cast: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {}

    def _get_casted_outputs(self, op: Operation, casted_inputs: dict[str, Any]) -> Any:
        out = super()._get_casted_outputs(op, casted_inputs)
        results = out if isinstance(out, (list, tuple)) else [out]
        dtypes = tuple(dtype_of(v) for v in results)
        self.cast[op.name] = (casted_inputs, dtypes)
        return out


def _record_casts(program: Program) -> dict[str, tuple[dict[str, Any], tuple[str, ...]]]:
    clone = copy_program(program)
    recorder = _Recorder()
    try:
        with quiet():
            recorder.apply(clone)
    except Exception as error:  # whatever coremltools' pass meets that it does not know
        raise InputError(f"coremltools cannot cast the program to FP16: {reason(error)}") from error
    return recorder.cast


def written_name(name: str) -> str:
    """A value's name as coremltools writes it to a package."""
    return str(NameSanitizer(prefix="var_").sanitize_name(name))


def dtype_of(var: Var) -> str:
    """The element type of a value as MIL writes it; ``list`` for a list."""
    return "list" if types.is_list(var.sym_type) else types.builtin_to_string(var.dtype)


# --- lowering --------------------------------------------------------------------------------


def lower(program: Program, function: str = "main", layer_of: LayerOf | None = None) -> Function:
    """A function of a MIL program in the executor's terms, run as it is typed.

    Raises
    ------
    UnsupportedOpError
        If the function updates a state inside a loop or a branch.
    """
    return _Lowering(
        program.functions[function], {}, layer_of or torchscript_layer, lambda op: ""
    ).function()


def lower_candidates(
    program: Program,
    function: str = "main",
    layer_of: LayerOf | None = None,
    line_of: LineOf | None = None,
) -> tuple[Function, list[CandidateOp]]:
    """A function of a pre-cast program with the FP16 form of every op that can be cast.

    What an op looks like in FP16, its constants above all, is taken from coremltools' own
    ``common::add_fp16_cast``, run once over a copy of the program.
    """
    layers = layer_of or torchscript_layer
    lines = line_of or (lambda op: "")
    lowering = _Lowering(program.functions[function], _record_casts(program), layers, lines)
    return lowering.function(), lowering.candidates


def torchscript_layer(op: Operation) -> str:
    """The module path in an op's TorchScript scopes, as far as the trace kept it."""
    names = op.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_NAME, [])
    unknown = ("UNKNOWN_SCOPE_NAME", "UNKNOWN_INSTANCE")
    return ".".join(str(n) for n in names[:-1] if n not in unknown)


class _Lowering:
    def __init__(
        self,
        function: Any,
        casts: dict[str, tuple[dict[str, Any], tuple[str, ...]]],
        layer_of: LayerOf,
        line_of: LineOf,
    ) -> None:
        self._function = function
        self._casts = casts
        self._layer_of = layer_of
        self._line_of = line_of
        self._slots: dict[Var, int] = {}
        self._constants: dict[Var, Constant] = {}
        self._states: dict[Var, Source] = {}
        self._depth = 0
        self.candidates: list[CandidateOp] = []

    def function(self) -> Function:
        inputs, states = {}, {}
        for name, var in self._function.inputs.items():
            slot = self._slot(var)
            if types.is_state(var.sym_type):
                states[name] = slot
                self._states[var] = Ref(slot)
            else:
                inputs[name] = slot
        state_vars = {name: self._function.inputs[name] for name in states}
        nodes = self._nodes(self._function)
        outputs = {var.name: self._output(var) for var in self._function.outputs}
        finals = {name: self._states[var] for name, var in state_vars.items()}
        return Function(inputs, states, nodes, outputs, finals)

    def _output(self, var: Var) -> Source:
        """An output; what a program gives out in FP16 is rounded, in any profile."""
        source = self._source(var)
        if isinstance(source, Ref) and dtype_of(var) == "fp16":
            return Ref(source.slot, narrow=True)
        return source

    def _slot(self, var: Var) -> int:
        return self._slots.setdefault(var, len(self._slots))

    def _source(self, value: Any) -> Source:
        if value is None:
            return None
        if isinstance(value, (list, tuple)):
            return [self._source(v) for v in value]
        if value in self._constants:
            return self._constants[value]
        if value in self._states:
            return self._states[value]
        if value in self._slots:
            return Ref(self._slots[value])
        if value.val is not None:  # internal values that no const op owns
            return Constant.of(_plain(value.val), value.name)
        raise InputError(f"value {value.name!r} is used before it is computed")

    def _nodes(self, block: MilBlock) -> list[Node]:
        nodes = []
        for op in block.operations:
            if op.op_type in ("const", "_const_symbolic"):
                (var,) = op.outputs
                self._constants[var] = Constant(var.name, _Loader(var.val))
            elif op.op_type.startswith("constexpr_"):
                for i, var in enumerate(op.outputs):
                    self._constants[var] = Constant(var.name, _Decompressor(op, i))
            else:
                nodes.append(self._node(op))
        return nodes

    def _node(self, op: Operation) -> Node:
        blocks = [self._block(b) for b in op.blocks]
        names = [n for n in op.input_spec.input_types if not n.startswith("_")]
        given = {n: op.inputs.get(n, getattr(op, n, None)) for n in names}
        inputs = {n: self._source(v) for n, v in given.items() if v is not None}
        fp32 = Form(inputs, tuple(dtype_of(v) for v in op.outputs))
        node = Node(
            op.op_type,
            op.name,
            self._layer_of(op),
            fp32,
            [self._slot(v) for v in op.outputs],
            op.outputs[0].name if op.outputs else "",
            blocks=blocks,
        )
        if op.op_type == "coreml_update_state":
            if self._depth:
                raise UnsupportedOpError(f"the executor has no state updates in loops: {node}")
            self._states[op.state] = Ref(node.outputs[0])
        if op.name in self._casts:
            casted, dtypes = self._casts[op.name]
            node.fp16 = Form(self._cast_inputs(inputs, casted), dtypes)
            node.candidate = len(self.candidates)
            self.candidates.append(self._candidate(node, op, given))
        return node

    def _candidate(self, node: Node, op: Operation, given: dict[str, Any]) -> CandidateOp:
        shapes = tuple(map(_shape, op.outputs))
        values = (v for v in given.values() if not isinstance(v, (list, tuple)))
        weights = sum(
            v.val.nbytes
            for v in values
            if v is not None and isinstance(v.val, np.ndarray) and v.val.dtype == np.float32
        )
        taken = {n: _shape(v) for n, v in given.items() if isinstance(v, Var)}
        work = flops(op.op_type, taken, shapes)
        index = len(self.candidates)
        line = self._line_of(op)
        return CandidateOp(index, op.name, op.op_type, node.layer, shapes, weights, work, line)

    def _block(self, block: MilBlock) -> Block:
        self._depth += 1
        inputs = [self._slot(v) for v in block.inputs]
        nodes = self._nodes(block)
        outputs = [self._source(v) for v in block.outputs]
        self._depth -= 1
        return Block(inputs, nodes, outputs)

    def _cast_inputs(self, inputs: dict[str, Source], casted: dict[str, Any]) -> dict[str, Source]:
        out: dict[str, Source] = {}
        for name, source in inputs.items():
            var = casted.get(name)
            if isinstance(source, list) and isinstance(var, (list, tuple)):
                out[name] = [_narrowed(s, v) for s, v in zip(source, var, strict=True)]
            else:
                out[name] = _narrowed(source, var)
        return out


def _narrowed(source: Source, var: Any) -> Source:
    """The FP16 form of an input, given what the cast pass put in its place."""
    if not isinstance(var, Var) or dtype_of(var) != "fp16":
        return source
    if isinstance(source, Ref):
        return Ref(source.slot, narrow=True)
    if not isinstance(source, Constant):
        return source
    if var.val is None:  # compressed weights, which the pass casts when they are decompressed
        return Constant(source.name, source.load, narrow=True)
    original = np.asarray(source.load())
    if original.dtype != np.float32:
        return source
    # Where the pass merely rounded, the FP16 form is made from the FP32 one when it is first
    # used; where it did more (small constants kept from vanishing), its values are kept.
    with np.errstate(over="ignore"):
        plain = np.array_equal(np.asarray(var.val), original.astype(np.float16), equal_nan=True)
    if plain:
        return Constant(source.name, source.load, narrow=True, made=[np.asarray(var.val)])
    return Constant.of(var.val, source.name)


def _shape(var: Var) -> tuple[int, ...]:
    """The shape of a value; symbolic sizes are -1, and a list has none."""
    shape = getattr(var, "shape", None) or ()
    return tuple(int(s) if isinstance(s, (int, np.integer)) else -1 for s in shape)


def _plain(value: Any) -> Any:
    return value.ls if hasattr(value, "ls") else value


class _Loader:
    """Hands out a constant's own array."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __call__(self) -> Any:
        return _plain(self._value)


class _Decompressor:
    """Decompresses a ``constexpr`` op with coremltools' own code each time it is asked.

    The inputs may be ``constexpr`` ops in turn (joint compression, iOS18).
    """

    def __init__(self, op: Operation, index: int) -> None:
        self._op = op
        self._index = index

    def __call__(self) -> Any:
        if not hasattr(self._op, "decompress"):
            return self._op.materialized_val_inference()
        wanted = inspect.signature(self._op.decompress).parameters
        value = self._op.decompress(**{name: self._input(name) for name in wanted})
        return value[self._index] if len(self._op.outputs) > 1 else value

    def _input(self, name: str) -> Any:
        var = getattr(self._op, name)
        if var is None:
            return None
        if var.op is not None and var.op.op_type.startswith("constexpr_"):
            return _Decompressor(var.op, var.op.outputs.index(var))()
        return var.val
