"""PyTorch and Core ML sources: any of them -> the pre-cast program and the reference.

The *pre-cast program* is the MIL program just before ``common::add_fp16_cast``, all in FP32; its
op names are the names that ``op_selector`` is called with in a full conversion.
"""

from __future__ import annotations

import copy
import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import program as _program
from ._ct import ct, quiet
from .data import argument_names
from .errors import InputError
from .flat import Flat, flatten
from .nohalf import NoHalf
from .usercode import guarded, reason

with quiet():
    from coremltools.converters.mil.mil import Operation, Program, types
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline
    from coremltools.converters.mil.mil.scope import ScopeSource

Sample = Mapping[str, Any]

_CAST_PASS = "common::add_fp16_cast"
TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18")
_HALF = (torch.float16, torch.bfloat16)


def passes_before_cast() -> list[str]:
    """coremltools' default passes up to, but not including, the cast to FP16."""
    passes = list(PassPipeline().passes)
    return passes[: passes.index(_CAST_PASS)]


def passes_from_cast() -> list[str]:
    """The rest of coremltools' default passes, the cast to FP16 first."""
    passes = list(PassPipeline().passes)
    return passes[passes.index(_CAST_PASS) :]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: name, MIL dtype, shape (a pair, least and most, where flexible)."""

    name: str
    dtype: str | None
    shape: tuple[int | tuple[int, int], ...] = ()

    @staticmethod
    def of(name: str, value: Tensor) -> Port:
        """The port that takes tensors like ``value``, dtype as torch names it."""
        return Port(name, str(value.dtype).removeprefix("torch."), tuple(value.shape))

    def declaration(self, output: bool = False) -> str:
        """The ``ct.TensorType`` that declares it, as Python source."""
        numpy = {"fp16": "np.float16", "fp32": "np.float32", "int32": "np.int32"}
        parts = [f"name={self.name!r}"]
        if not output:
            sizes = ", ".join(
                str(s) if isinstance(s, int) else f"ct.RangeDim({s[0]}, {s[1]})" for s in self.shape
            )
            parts.append(f"shape=({sizes}{',' if len(self.shape) == 1 else ''})")
        if self.dtype is not None:
            parts.append(f"dtype={numpy[self.dtype]}")
        return f"ct.TensorType({', '.join(parts)})"

    def tensor_type(self, output: bool = False) -> Any:
        """The ``ct.TensorType`` that declares it."""
        numpy = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32, None: None}
        if output:
            return ct.TensorType(name=self.name, dtype=numpy[self.dtype])
        shape = [s if isinstance(s, int) else ct.RangeDim(*s) for s in self.shape]
        return ct.TensorType(name=self.name, shape=shape, dtype=numpy[self.dtype])


@dataclass(slots=True)
class Precast:
    """A source, converted up to the cast.

    Attributes
    ----------
    program
        The pre-cast program.
    inputs, outputs
        As declared to ``ct.convert``; empty for an ``.mlpackage``.
    target
        ``minimum_deployment_target``, such as ``iOS17``.
    kind
        ``torchscript``, ``exported`` or ``mlpackage``.
    layer_of
        The PyTorch module of a MIL op.
    line_of
        The line of Python that a MIL op came from, as ``file:line``; empty where unknown.
    wrapper
        What the model was wrapped in to be traced, if anything.
    states
        Name and shape of the buffers declared as states.
    half
        Whether the model has half-precision parts, and so was traced under
        :class:`mpsearch.nohalf.NoHalf`.
    """

    program: Program
    inputs: list[Port]
    outputs: list[Port]
    target: str
    kind: str
    layer_of: Callable[[Operation], str]
    line_of: Callable[[Operation], str] = lambda op: ""
    wrapper: Flat | None = None
    states: dict[str, tuple[int, ...]] = field(default_factory=dict)
    half: bool = False


class TorchModel:
    """A PyTorch model as mpsearch uses it: an FP32 copy in eval mode, called with named samples.

    The caller's model is never changed. Parameters that are FP32 on the CPU already are shared
    with it; buffers, which a forward pass may write to, are copied.

    Parameters
    ----------
    model
        An ``nn.Module``, ``ScriptModule`` or ``ExportedProgram``.
    states
        Names of buffers that are states in Core ML: all zeros before every sample.

    Raises
    ------
    InputError
        If a state is no buffer of the model.
    """

    def __init__(self, model: Any, states: Iterable[str] = ()) -> None:
        with guarded("copying the model"):
            self._copy(unwrapped(model))
        buffers = dict(self.module.named_buffers())
        self.states: dict[str, Tensor] = {}
        for name in states:
            if name not in buffers:
                known = ", ".join(buffers) or "none"
                raise InputError(f"state {name!r} is no buffer of the model; it has {known}")
            self.states[name] = buffers[name]

    def _copy(self, model: Any) -> None:
        self.source = model
        self.exported = model if isinstance(model, torch.export.ExportedProgram) else None
        module = model.module() if self.exported is not None else model
        self.half = any(t.dtype in _HALF for t in (*module.parameters(), *module.buffers()))
        self._declared_half = _first_float(module) in _HALF
        if isinstance(module, torch.jit.ScriptModule):
            with quiet():  # torch warns of parameters that are no leaves
                self.module: Any = copy.deepcopy(module).eval().float().cpu()
        elif self.exported is not None:
            self.module = module.float() if self.half else module
        else:
            self.module = fp32_copy(module)

    @property
    def io_half(self) -> bool:
        """Whether the model as given takes and gives half precision."""
        return self._declared_half

    def __call__(self, sample: Sample, shaken: bool = False) -> dict[str, Tensor]:
        """The outputs for one sample, by name, in FP32.

        ``shaken`` gives the model other random numbers than usual.
        """
        with torch.no_grad(), _deterministic(shaken), quiet(), self.in_fp32():
            # Copies: a model may change its inputs in place.
            given = {
                k: _widened(v).clone() if isinstance(v, Tensor) else v for k, v in sample.items()
            }
            try:
                out = flatten(self.call(given))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever the user's code raises, sys.exit included
                shapes = ", ".join(
                    f"{k} {tuple(v.shape)}" for k, v in sample.items() if isinstance(v, Tensor)
                )
                raise InputError(
                    f"the model does not run on a sample ({shapes}): {reason(error)}"
                ) from error
        if not out:
            raise InputError("the model returns no tensor; expected one at least")
        return {name: _widened(value).clone() for name, value in out.items()}

    def settle(self, sample: Sample) -> None:
        """Make sure that the model agrees with itself, and leave out hooks that only look on.

        Raises
        ------
        InputError
            If a second call with the same sample gives other outputs.
        """
        first = self(sample)
        hooks = _users_hooks(self.module)
        for registered, key, _ in hooks:
            del registered[key]
        second = self(sample, shaken=True)
        if hooks and not _agree(first, second):
            for registered, key, hook in hooks:  # some of them are part of the model
                registered[key] = hook
            second = self(sample, shaken=True)
        if not _agree(first, second):
            raise InputError(
                "the model gives other outputs when it is called again with the same sample: its "
                "code draws random numbers (dropout left on, randn), or counts its calls; make it "
                "deterministic, there is nothing to compare with otherwise"
            )

    def in_fp32(self) -> AbstractContextManager[Any]:
        """Where the model has half-precision parts: run its code for half precision in FP32.

        Only there: under a function mode torch names traced values by number, not after the
        variables of the forward pass, so that ops would have other names than in a plain trace.
        """
        return NoHalf() if self.half else nullcontext()

    def call(self, sample: Sample) -> Any:
        """The module's own outputs for one sample, from states of zeros."""
        for state in self.states.values():
            state.zero_()
        if self.positional(sample):
            return self.module(*sample.values())
        return self.module(**sample)

    def positional(self, sample: Sample) -> bool:
        """Whether the arguments can be passed in order, without their names."""
        names = argument_names(self.module if self.exported is None else self.exported)
        return names is None or list(sample) == names[: len(sample)]


def unwrapped(model: Any) -> Any:
    """The module inside what trains it: DataParallel, DistributedDataParallel, torch.compile."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        else:
            return model


def _users_hooks(module: nn.Module) -> list[tuple[dict[int, Any], int, Any]]:
    """Hooks that torch has not made itself (those of weight_norm it has): where, key, hook."""
    found = []
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        for registered in (part._forward_hooks, part._forward_pre_hooks):
            for key, hook in list(registered.items()):
                home = getattr(hook, "__module__", None) or type(hook).__module__
                if not home.startswith("torch."):
                    found.append((registered, key, hook))
    return found  # type: ignore[return-value]


#: How far, in relative L2, two calls of a model may lie apart: sums in another order do.
_SAME = 1e-4


def _agree(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    if first.keys() != second.keys():
        return False
    for a, b in zip(first.values(), second.values(), strict=True):
        if a.shape != b.shape or not torch.equal(torch.isfinite(a), torch.isfinite(b)):
            return False
        a, b = (x.double().nan_to_num(0.0, 0.0, 0.0) for x in (a, b))
        if float((a - b).norm()) > _SAME * float(a.norm()):
            return False
    return True


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (*_HALF, torch.float64) else value


def _first_float(module: nn.Module) -> torch.dtype | None:
    for p in module.parameters():
        if p.is_floating_point():
            return p.dtype
    return None


def fp32_copy(module: nn.Module) -> nn.Module:
    """A copy in eval mode, FP32, on the CPU, that shares the parameters that are so already."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        if p.device.type == "cpu" and p.dtype is torch.float32:
            memo[id(p)] = p
        else:
            data = p.detach().cpu()
            data = data.float() if data.is_floating_point() else data
            memo[id(p)] = nn.Parameter(data, requires_grad=False)
    for b in module.buffers():
        data = b.detach().cpu().clone()
        memo[id(b)] = data.float() if data.dtype in _HALF else data
    for m in module.modules():
        for value in vars(m).values():
            # What hooks have computed from parameters (weight_norm) cannot be copied as it is.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    clone = copy.deepcopy(module, memo)
    for m in clone.modules():
        m.training = False
    return clone


@contextmanager
def _deterministic(shaken: bool = False) -> Iterator[None]:
    """Leave the global random states of torch, numpy and Python as they were.

    ``shaken`` moves them on within the block.
    """
    state, python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            if shaken:
                torch.rand(1), np.random.rand(), random.random()
            yield
    finally:
        np.random.set_state(state)
        random.setstate(python)


# --- conversion ------------------------------------------------------------------------------


def convert(
    model: TorchModel, samples: list[dict[str, Any]], target: str, io_dtype: str
) -> Precast:
    """Convert a PyTorch model up to the cast.

    Parameters
    ----------
    samples
        The first is traced; axes whose size differs between samples become flexible.
    target
        One of :data:`TARGETS`.
    io_dtype
        ``fp32`` or ``fp16``: the dtype of float inputs and outputs.

    Raises
    ------
    InputError
        If coremltools cannot convert the model.
    """
    if io_dtype == "fp16" and target == "iOS15":
        raise InputError("--io-dtype fp16 needs --target iOS16 or newer, got iOS15")
    if model.states and target != "iOS18":
        raise InputError(f"states need --target iOS18, got {target}")
    first = samples[0]
    values = model(first)
    inputs = [_port(k, v, samples, io_dtype) for k, v in first.items() if isinstance(v, Tensor)]
    arguments: dict[str, Any] = {
        "convert_to": "milinternal",
        "compute_precision": ct.precision.FLOAT32,
        "minimum_deployment_target": getattr(ct.target, target),
        "inputs": [p.tensor_type() for p in inputs],
    }
    failures: list[str] = []
    for outputs in _named_outputs(values, inputs, first, io_dtype):
        for route in (_direct, _trace, _export):
            found = _converted(model, first, route, outputs, arguments, failures)
            if found is not None:
                program, routed = found
                return Precast(
                    program,
                    inputs,
                    outputs,
                    target,
                    routed.kind,
                    routed.layer_of,
                    _line_of(routed.lines),
                    routed.wrapper,
                    {s.name: tuple(s.shape.shape) for s in _states(model, routed.wrapper)},
                    model.half,
                )
    raise InputError(f"coremltools cannot convert the model: {failures[0]}")


def _converted(
    model: TorchModel,
    sample: Sample,
    route: Callable[[TorchModel, Sample], _Routed | None],
    outputs: list[Port],
    arguments: dict[str, Any],
    failures: list[str],
) -> tuple[Program, _Routed] | None:
    """The program by one route; None where it does not apply, or fails, which is then noted."""
    with _deterministic(), quiet():
        try:
            routed = route(model, sample)
            if routed is None:
                return None
            # A pass list of its own: coremltools takes passes out of the one it is given.
            given = dict(arguments, pass_pipeline=PassPipeline(passes_before_cast(), "precast"))
            given["outputs"] = [p.tensor_type(output=True) for p in outputs]
            if model.states:
                given["states"] = _states(model, routed.wrapper)
            return ct.convert(routed.source, **given), routed
        except Exception as error:
            failures.append(reason(error))
            return None


def _named_outputs(
    values: Mapping[str, Tensor], inputs: list[Port], sample: Sample, io_dtype: str
) -> Iterator[list[Port]]:
    """What the outputs are to be called, the second time with inputs that are handed out as such.

    An output that is an input has the input's name, which coremltools cannot change; whether it is
    one shows only when another name fails.
    """
    named = [
        Port(_identifier(k, inputs), io_dtype if v.is_floating_point() else None)
        for k, v in values.items()
    ]
    yield named
    passed = list(named)
    for place, value in enumerate(values.values()):
        for port in inputs:
            given = _widened(sample[port.name])
            if given.shape == value.shape and torch.equal(given, value):
                passed[place] = Port(port.name, named[place].dtype)
    if passed != named:
        yield passed


def _states(model: TorchModel, wrapper: Flat | None) -> list[Any]:
    """What ``ct.convert`` is told about the buffers that are states (Core ML stores FP16)."""
    prefix = "" if wrapper is None else "model."
    return [
        ct.StateType(ct.TensorType(shape=tuple(buffer.shape), dtype=np.float16), prefix + name)
        for name, buffer in model.states.items()
    ]


def _port(name: str, value: Tensor, samples: list[dict[str, Any]], io_dtype: str) -> Port:
    shape: list[int | tuple[int, int]] = []
    for axis, size in enumerate(value.shape):
        sizes = {s[name].shape[axis] for s in samples if s[name].dim() == value.dim()}
        shape.append(size if len(sizes) <= 1 else (min(sizes), max(sizes)))
    return Port(name, io_dtype if value.is_floating_point() else "int32", tuple(shape))


def _identifier(name: str, inputs: list[Port]) -> str:
    """An output name that coremltools leaves as it is and that no input has."""
    clean = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
    clean = f"_{clean}" if clean[:1].isdigit() else clean
    return f"{clean}_out" if clean in {p.name for p in inputs} else clean


@dataclass(frozen=True, slots=True)
class _Routed:
    """What is handed to ``ct.convert``, and how to read the result."""

    source: Any
    kind: str
    layer_of: Callable[[Operation], str]
    lines: dict[str, str]
    wrapper: Flat | None = None


def _direct(model: TorchModel, sample: Sample) -> _Routed | None:
    """Exported programs and TorchScript as they are."""
    if model.exported is not None and not model.half:
        program = model.exported.run_decompositions({})
        return _Routed(program, "exported", _exported_layers(program), _exported_lines(program))
    if isinstance(model.source, torch.jit.ScriptModule) and len(model(sample)) == 1:
        return _Routed(
            model.module, "torchscript", _program.torchscript_layer, _traced_lines(model.module)
        )
    return None


def _trace(model: TorchModel, sample: Sample) -> _Routed:
    """``torch.jit.trace``, the way that coremltools knows best."""
    tensors = tuple(_traceable(v) for v in sample.values() if isinstance(v, Tensor))
    paths: dict[str, str] = {}
    wrapper = wrapped(model, sample)
    traceable = model.module if wrapper is None else wrapper
    for state in model.states.values():
        state.zero_()
    with torch.no_grad(), _tagged(model.module, paths), model.in_fp32():
        traced = torch.jit.trace(traceable, tensors, strict=False, check_trace=False)
    return _Routed(traced, "torchscript", _tagged_layer(paths), _traced_lines(traced), wrapper)


def _export(model: TorchModel, sample: Sample) -> _Routed | None:
    """``torch.export``, for models that use ops which coremltools knows only decomposed."""
    if isinstance(model.module, torch.jit.ScriptModule) or model.exported is not None:
        return None
    with torch.no_grad(), model.in_fp32():
        given = {k: _traceable(v) if isinstance(v, Tensor) else v for k, v in sample.items()}
        if model.positional(sample):
            exported = torch.export.export(model.module, tuple(given.values()), strict=False)
        else:
            exported = torch.export.export(model.module, (), given, strict=False)
    program = exported.run_decompositions({})
    return _Routed(program, "exported", _exported_layers(program), _exported_lines(program))


def intermediates(model: TorchModel, sample: Sample, kind: str) -> dict[str, Tensor]:
    """Every tensor that the PyTorch model computes for a sample, under the name that MIL gives it.

    coremltools names a MIL value after the value of the traced graph, or the node of the exported
    program, that it stands for. ``kind`` is that of the conversion (:attr:`Precast.kind`).
    """
    with _deterministic(), quiet(), torch.no_grad():
        routed = _direct(model, sample)
        if kind == "exported":
            routed = routed or _export(model, sample)
            return {} if routed is None else _exported_values(routed.source, sample)
        routed = routed or _trace(model, sample)
        tensors = [_traceable(v) for v in sample.values() if isinstance(v, Tensor)]
        with model.in_fp32():
            return _traced_values(routed.source, tensors)


def _named_graph(traced: Any) -> Any:
    """A copy of the inlined graph whose values have the names that coremltools gives them.

    It numbers unnamed values anew after the same passes (``_expand_and_optimize_ir``).
    """
    graph = traced.inlined_graph.copy()
    torch._C._jit_pass_inline_fork_wait(graph)
    torch._C._jit_pass_dce(graph)
    torch._C._jit_pass_canonicalize_graph_fuser_ops(graph)
    return torch._C._jit_pass_canonicalize(graph)


def _traced_values(traced: Any, tensors: list[Tensor]) -> dict[str, Tensor]:
    """Run a copy of the graph that gives all its tensors as a list."""
    graph = _named_graph(traced)
    tensor = torch._C.TensorType.get()
    values = [
        value
        for node in graph.nodes()
        if node.kind() not in ("prim::GetAttr", "prim::Constant")
        for value in node.outputs()
        if value.type().isSubtypeOf(tensor)
    ]
    everything = graph.create("prim::ListConstruct", values, 1)
    everything.output().setType(torch._C.ListType(tensor))
    graph.appendNode(everything)
    while len(list(graph.outputs())):
        graph.eraseOutput(0)
    graph.registerOutput(everything.output())
    out = torch._C._create_function_from_graph("values", graph)(traced._c, *tensors)
    return dict(zip([v.debugName() for v in values], out, strict=True))


class _Recorder(torch.fx.Interpreter):
    """Keeps what every node gives."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        out = super().run_node(n)
        if isinstance(out, Tensor):
            self.values[n.name] = out
        return out


def _exported_values(program: Any, sample: Sample) -> dict[str, Tensor]:
    recorder = _Recorder(program.module())
    recorder.run(*(v.clone() for v in sample.values() if isinstance(v, Tensor)))
    return recorder.values


def wrapped(model: TorchModel, sample: Sample) -> Flat | None:
    """The wrapper that a model needs to be traced, None where it can be traced as it is."""
    tensors = {k: v for k, v in sample.items() if isinstance(v, Tensor)}
    booleans = [k for k, v in tensors.items() if v.dtype is torch.bool]
    with torch.no_grad(), _deterministic(), quiet(), model.in_fp32():
        out = model.call({k: _widened(v).clone() if k in tensors else v for k, v in sample.items()})
    flat = isinstance(out, Tensor) or (
        isinstance(out, tuple) and type(out) is tuple and all(isinstance(o, Tensor) for o in out)
    )
    if flat and not booleans and len(tensors) == len(sample) and model.positional(sample):
        return None
    constants = {k: v for k, v in sample.items() if k not in tensors}
    return Flat(model.module, list(tensors), booleans, constants)


def _traceable(value: Tensor) -> Tensor:
    """A copy in a dtype that coremltools takes: a model may change its inputs in place."""
    value = _widened(value)
    return value.int() if value.dtype is torch.bool else value.clone()


@contextmanager
def _tagged(module: Any, paths: dict[str, str]) -> Iterator[None]:
    """Give every submodule a class of its own while tracing.

    coremltools keeps the *types* of the modules that an op came through, and their names only
    down from containers that were called, so that ``encoder.3`` of two module lists look alike.
    A class name that stands for the path tells them apart.
    """
    changed: list[tuple[nn.Module, type]] = []
    if not isinstance(module, torch.jit.ScriptModule):
        for i, (path, m) in enumerate(module.named_modules()):
            if isinstance(m, torch.jit.ScriptModule):
                continue
            tag = f"{type(m).__name__}_mp{i}"
            try:
                original = type(m)
                m.__class__ = type(tag, (original,), {"__module__": original.__module__})
            except TypeError:
                continue
            changed.append((m, original))
            paths[tag] = path
    try:
        yield
    finally:
        for m, original in changed:
            m.__class__ = original


def _tagged_layer(paths: dict[str, str]) -> Callable[[Operation], str]:
    def layer(op: Operation) -> str:
        tags = op.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_TYPE, [])
        for tag in reversed(tags):
            if str(tag) in paths:
                return paths[str(tag)]
        return ""

    return layer


def _exported_layers(program: Any) -> Callable[[Operation], str]:
    layers = {}
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if stack:
            path = list(stack.values())[-1][0]
            layers[node.name] = path.removeprefix("L['self'].").removeprefix("L['self']")

    def layer(op: Operation) -> str:
        name = op.name
        while name:
            if name in layers:
                return str(layers[name])
            name = name.rpartition("_")[0]
        return ""

    return layer


#: Frames of a Python stack, innermost first in TorchScript's notation, last in torch.export's.
_TRACED_FRAME = re.compile(r"^(?P<file>.+)\((?P<line>\d+)\): ", re.MULTILINE)
_EXPORTED_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+)', re.MULTILINE)
_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def _traced_lines(traced: Any) -> dict[str, str]:
    """Traced value -> the line of the user's code that computed it."""
    try:
        nodes = list(_named_graph(traced).nodes())
    except RuntimeError:  # scripted modules that call what cannot be inlined
        return {}
    found = {}
    for node in nodes:
        line = _users_line(_TRACED_FRAME.finditer(node.sourceRange()))
        if line:
            found.update({value.debugName(): line for value in node.outputs()})
    return found


def _exported_lines(program: Any) -> dict[str, str]:
    """Node of an exported program -> the line of the user's code that computed it."""
    found = {}
    for node in program.graph.nodes:
        frames = list(_EXPORTED_FRAME.finditer(node.meta.get("stack_trace") or ""))
        if line := _users_line(reversed(frames)):
            found[node.name] = line
    return found


def _users_line(frames: Iterable[re.Match[str]]) -> str:
    """The innermost frame outside torch, as ``file:line``.

    Files of installed packages are named from the package on, others from where the user stands.
    """
    for frame in frames:
        file = frame["file"]
        if not file.startswith(_NOT_THE_USERS):
            path = Path(file.rpartition("site-packages/")[2])
            here = path.is_relative_to(Path.cwd())
            return f"{path.relative_to(Path.cwd()) if here else path}:{frame['line']}"
    return ""


def _line_of(lines: dict[str, str]) -> Callable[[Operation], str]:
    """Ops are named after the value that they stand for, several for one with a suffix each."""

    def line(op: Operation) -> str:
        for name in (op.outputs[0].name if op.outputs else "", op.name):
            while name:
                if name in lines:
                    return lines[name]
                name = name.rpartition("_")[0]
        return ""

    return line


def from_package(model: Any) -> Precast:
    """An FP32 ML Program as pre-cast program.

    Raises
    ------
    InputError
        If the package already holds ops typed FP16, is a classifier, or has several functions.
    """
    spec = model.get_spec()
    program = _program.load_program(spec, model.weights_dir)
    if not program.functions:
        raise InputError("the package has no function; convert the original again")
    if len(program.functions) > 1:
        raise InputError(
            "the package has several functions "
            f"({', '.join(program.functions)}); split it and search each one"
        )
    (function,) = program.functions.values()
    if any(op.op_type == "classify" for op in function.operations):
        raise InputError(
            "the package is a classifier, which coremltools cannot cast to FP16 from a package; "
            "convert the original without classifier_config"
        )
    for op in function.operations:
        stored = op.op_type in ("const", "cast") or op.op_type.startswith("constexpr_")
        half = any(types.is_tensor(v.sym_type) and v.dtype == types.fp16 for v in op.outputs)
        if half and not stored:
            raise InputError(
                f"the package is not FP32: op {op.name!r} is typed FP16; convert the original "
                "with compute_precision=ct.precision.FLOAT32"
            )
    declared = [_declared(feature) for feature in spec.description.input]
    target = {v: k for k, v in _spec_versions().items()}[function.opset_version.value]
    if any(d is not None for d in declared):
        (name,) = program.functions
        program.functions[name].set_input_types(
            tuple(
                d
                if d is not None
                else ct.TensorType(name=f.name, shape=tuple(f.type.multiArrayType.shape))
                for d, f in zip(declared, spec.description.input, strict=True)
            )
        )
    return Precast(program, [], [], target, "mlpackage", lambda op: "")


def _spec_versions() -> dict[str, int]:
    return {name: getattr(ct.target, name).value for name in TARGETS}


def _declared(feature: Any) -> Any:
    """The declaration of an image or flexible input, None for a plain array."""
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        image = feature.type.imageType
        layout = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}[image.colorSpace]
        channels = 1 if layout.startswith("GRAY") else 3
        return ct.ImageType(
            name=feature.name,
            shape=(1, channels, image.height, image.width),
            color_layout=getattr(ct.colorlayout, layout),
            channel_first=True,
        )
    array = feature.type.multiArrayType
    if array.shapeRange.sizeRanges:
        sizes = [
            ct.RangeDim(int(r.lowerBound), int(r.upperBound), default=int(d))
            if r.lowerBound != r.upperBound
            else int(d)
            for r, d in zip(array.shapeRange.sizeRanges, array.shape, strict=True)
        ]
        return ct.TensorType(name=feature.name, shape=sizes)
    if array.enumeratedShapes.shapes:
        shapes = [tuple(int(n) for n in s.shape) for s in array.enumeratedShapes.shapes]
        default = tuple(int(n) for n in array.shape)
        return ct.TensorType(name=feature.name, shape=ct.EnumeratedShapes(shapes, default=default))
    return None


def fingerprint(precast: Precast) -> str:
    """SHA-256 over the ops and constants of a pre-cast program, to tell models apart."""
    digest = hashlib.sha256()
    for name, function in precast.program.functions.items():
        digest.update(name.encode())
        for op in _program.all_ops(function):
            digest.update(f"{op.op_type} {op.name}\n".encode())
            if op.op_type == "const" and isinstance(op.val.val, np.ndarray):
                array = np.ascontiguousarray(op.val.val)
                if array.dtype.kind in "fiub":
                    digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()
