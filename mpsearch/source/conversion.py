"""From a PyTorch model to the pre-cast program, by the route that converts it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._ct import ct, quiet
from ..errors import InputError
from ..hints import option
from ..options import TARGETS
from ..program.described import ORIGINS
from ..program.lowering import all_ops
from ..program.packages import owned
from ..usercode import reason
from .flat import Flat
from .modules import Sample, TorchModel, deterministic, widened
from .precast import Port, Precast, passes_before_cast
from .routes import Routed, direct, export, refrozen, trace
from .torch_ops import registered

with quiet():
    from coremltools.converters.mil.mil import Builder, Program, types
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline


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
        raise InputError(
            f"{option('io_dtype', 'fp16')} needs {option('target', 'iOS16')} or newer, got iOS15"
        )
    if model.states and target in TARGETS[: TARGETS.index("iOS18")]:
        raise InputError(f"states need {option('target', 'iOS18')} or newer, got {target}")
    first = samples[0]
    _check_numbers(first)
    values = model(first)
    inputs = [_port(k, v, samples, io_dtype) for k, v in first.items() if isinstance(v, Tensor)]
    arguments: dict[str, Any] = {
        "convert_to": "milinternal",
        "compute_precision": ct.precision.FLOAT32,
        "minimum_deployment_target": getattr(ct.target, target),
        "inputs": [p.tensor_type() for p in inputs],
        "pass_pipeline": PassPipeline(passes_before_cast(), "precast"),
    }
    failures: list[str] = []
    for outputs in _named_outputs(values, inputs, first, io_dtype):
        arguments["outputs"] = [p.tensor_type(output=True) for p in outputs]
        for route in _ROUTES:
            found = _converted(model, first, route, arguments, failures)
            if found is not None:
                program, routed, added = found
                return Precast(
                    program,
                    inputs,
                    outputs,
                    target,
                    routed.kind,
                    routed.layer_of,
                    routed.line_of,
                    routed.wrapper,
                    {s.name: tuple(s.shape.shape) for s in _states(model, routed.wrapper)},
                    model.half,
                    added,
                    model.attention,
                    routed.decomposed,
                    routed.frozen,
                    renamed=_renamed(program, inputs, values),
                )
    raise _refused(failures)


def packaged(model: TorchModel, sample: dict[str, Any], arguments: Mapping[str, Any]) -> Any:
    """The FP32 ``MLModel`` of a ``ct.convert`` call with arguments of the caller's own.

    What an FP32 package does not hold, the PyTorch layer and line of each op, is put into its
    metadata (:data:`mpsearch.program.described.ORIGINS`).

    Parameters
    ----------
    sample
        What is traced; inputs that ``arguments`` do not declare are declared as it has them.
    arguments
        As ``ct.convert`` takes them, but for the source, ``convert_to`` and ``compute_precision``.

    Raises
    ------
    InputError
        If coremltools cannot convert the model.
    """
    _check_numbers(sample)
    values = model(sample)
    given = {"skip_model_load": True, **arguments, "compute_precision": ct.precision.FLOAT32}
    if "inputs" not in given:
        tensors = {k: v for k, v in sample.items() if isinstance(v, Tensor)}
        given["inputs"] = [_port(k, v, [sample], "fp32").tensor_type() for k, v in tensors.items()]
    failures: list[str] = []
    for route in _ROUTES:
        if found := _converted(model, sample, route, given, failures):
            made, routed, _ = found
            owned(made)
            if len(made.output_description) < len(values):
                failures.append("it lost an output")
                continue
            made.user_defined_metadata[ORIGINS] = _origins(made._mil_program, routed)
            return made
    raise _refused(failures)


def _origins(program: Program, routed: Routed) -> str:
    """As JSON, by op: its layer, and its line."""
    known: dict[str, tuple[str, str]] = {}
    for function in program.functions.values():
        for op in all_ops(function):
            where = routed.layer_of(op), routed.line_of(op)
            if any(where) and op.op_type != "const":
                known[op.name] = where
    return json.dumps(known)


#: The ways to a program, those first that keep most of what is known.
_ROUTES = (direct, trace, export)


def _refused(failures: list[str]) -> InputError:
    why = failures[0]
    return InputError(f"coremltools cannot convert the model: {why.rstrip('.')}{_advice(why)}")


#: An op for which coremltools has no conversion, in its words for traces and for exports.
_UNKNOWN_OP = re.compile(r"convert function for op '(\w+)'|Unsupported fx node \S+, kind (\S+)")


def _advice(failure: str) -> str:
    """What to do about a failure, where that is known."""
    if "requires grad as a constant" in failure:
        return (
            "; where its code uses torch.autocast, leave that out: the precision of each op is "
            "what mpsearch chooses"
        )
    if found := _UNKNOWN_OP.search(failure):
        name = found[1] or found[2]
        if name == "raiseexception":
            return (
                "; Core ML raises nothing: take the check of values out of the scripted code that "
                "ends in raise or assert"
            )
        return (
            f"; write what {name} does with other PyTorch ops, or register a conversion of it "
            "(coremltools' register_torch_op) in the module that makes the model"
        )
    return ""


def _check_numbers(sample: Sample) -> None:
    """That no input is a single number, which Core ML does not take."""
    for name, value in sample.items():
        if isinstance(value, Tensor) and not value.dim():
            raise InputError(
                f"input {name!r} is a tensor of rank 0, which Core ML does not take; give it the "
                "shape (1,), or, where it never changes, give a Python number"
            )


def _converted(
    model: TorchModel,
    sample: Sample,
    route: Callable[[TorchModel, Sample], Routed | None],
    arguments: dict[str, Any],
    failures: list[str],
) -> tuple[Any, Routed, tuple[str, ...]] | None:
    """What ``ct.convert`` makes by one route, and the ops of PyTorch that it does not know itself.

    None where the route does not apply, or fails, which is then noted.
    """
    with deterministic(), quiet():
        try:
            routed = route(model, sample)
            if routed is None:
                return None
            try:
                return _made(model, routed, arguments)
            except Exception:
                again = refrozen(model, routed)
                if again is None:
                    raise
                return _made(model, again, arguments)
        except Exception as error:
            failures.append(reason(error))
            return None


def _made(
    model: TorchModel, routed: Routed, arguments: dict[str, Any]
) -> tuple[Any, Routed, tuple[str, ...]]:
    # A copy: coremltools takes passes out of the pipeline that it is given.
    given = copy.deepcopy(arguments)
    if model.states:
        given["states"] = _states(model, routed.wrapper)
    # Ops without a name are numbered on from whatever coremltools built before, a conversion that
    # failed included; names must be those of a process of its own.
    Builder.name_count.clear()
    with registered() as added:
        made = ct.convert(routed.source, **given)
    return made, routed, tuple(added)


def _renamed(program: Program, inputs: list[Port], values: Mapping[str, Tensor]) -> dict[str, str]:
    """The inputs and outputs that have another name in the program, and that name."""
    (function,) = program.functions.values()
    placed = [name for name, var in function.inputs.items() if not types.is_state(var.sym_type)]
    taken = zip([port.name for port in inputs], placed, strict=True)
    given = zip(values, [var.name for var in function.outputs], strict=False)
    found = [("Input", *names) for names in taken] + [("Output", *names) for names in given]
    return {f"{kind} {old!r}": new for kind, old, new in found if old != new}


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
            given = widened(sample[port.name])
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
