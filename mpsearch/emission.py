"""Writes what the search found: the package, ``op_selector.py`` and ``precision.json``."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import flat
from ._ct import ct, quiet
from .errors import InputError
from .frontend import Precast, passes_from_cast
from .program import copy_program

with quiet():
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline

Selector = Callable[[Any], bool]


def selector(fp32_ops: Collection[str]) -> Selector:
    """An ``op_selector`` that keeps the named ops in FP32 (True = cast to FP16)."""
    names = frozenset(fp32_ops)

    def op_selector(op: Any) -> bool:
        return op.name not in names

    return op_selector


def convert(precast: Precast, op_selector: Selector) -> Any:
    """The ``MLModel`` that coremltools makes of a pre-cast program with a selector.

    Runs the rest of coremltools' default passes, the cast first: the same package as a full
    conversion from PyTorch with that selector.
    """
    with quiet():
        return ct.convert(
            copy_program(precast.program),
            source="milinternal",
            convert_to="mlprogram",
            compute_precision=ct.transform.FP16ComputePrecision(op_selector=op_selector),
            minimum_deployment_target=getattr(ct.target, precast.target),
            pass_pipeline=PassPipeline(passes_from_cast(), "from_cast"),
            skip_model_load=True,
        )


@contextmanager
def directory(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends well, replacing what was there.

    Raises
    ------
    InputError
        If the directory cannot be written.
    """
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise InputError(
            f"cannot write to {path.parent}: {error.strerror}; give another --out"
        ) from error
    scratch = room / path.name
    try:
        yield scratch
        if path.exists():
            os.rename(path, room / "replaced")
        os.rename(scratch, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give another --out") from error
    finally:
        shutil.rmtree(room, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Fail before the work rather than after it.

    Raises
    ------
    InputError
        If ``path`` exists and is no directory of ours, or its parent cannot be written.
    """
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, expected a directory; give another --out")
    if path.is_dir() and any(path.iterdir()) and not (path / "result.json").exists():
        raise InputError(f"{path} is not empty and holds no mpsearch result; give another --out")
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise InputError(f"cannot write to {parent}: permission denied; give another --out")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to {parent}: {error.strerror}; give another --out"
        ) from error


# --- op_selector.py --------------------------------------------------------------------------


def selector_source(precast: Precast, fp32_ops: list[str], facts: dict[str, str]) -> str:
    """The source of ``op_selector.py``: standalone, with the conversion it belongs to.

    Parameters
    ----------
    facts
        What it was made from and for, shown at its top.
    """
    head = "\n".join(f"    {key}: {value}" for key, value in facts.items())
    names = "".join(f"        {name!r},\n" for name in fp32_ops)
    listed = f"frozenset(\n    {{\n{names}    }}\n)" if fp32_ops else "frozenset()"
    text = f'''"""Which ops Core ML computes in FP16, found by mpsearch.

{head}

Use it as it is:

{textwrap.indent(_usage(precast), "    ")}
"""

import coremltools as ct
{"import numpy as np" if precast.kind != "mlpackage" else ""}
#: The ops that stay in FP32, by MIL name.
FP32_OPS = {listed}


def op_selector(op):
    """True = cast this op to FP16."""
    return op.name not in FP32_OPS

'''
    text += _conversion(precast)
    return re.sub(r"\n{4,}", "\n\n\n", text)


def _usage(precast: Precast) -> str:
    if precast.kind == "mlpackage":
        return (
            'from op_selector import convert\n\nconvert("model.mlpackage").save("mixed.mlpackage")'
        )
    if precast.kind == "exported":
        return (
            'exported = torch.export.load("model.pt2")\nfrom op_selector import convert\n\n'
            'convert(exported).save("mixed.mlpackage")'
        )
    example = ", ".join(p.name for p in precast.inputs)
    comma = "," if len(precast.inputs) == 1 else ""
    return (
        "from op_selector import convert, trace\n\n"
        f"traced = trace(model.float().eval(), ({example}{comma}))\n"
        'convert(traced).save("mixed.mlpackage")'
    )


def _conversion(precast: Precast) -> str:
    if precast.kind == "mlpackage":
        passes = "".join(f"    {p!r},\n" for p in passes_from_cast())
        return f'''
#: coremltools' default passes from the cast on. The ones before it have run already, and running
#: them again would rename ops.
PASSES = [
{passes}]


def convert(path):
    """Convert the FP32 .mlpackage at ``path``."""
    from coremltools.converters.mil.frontend.milproto.load import load

    source = ct.models.MLModel(path, skip_model_load=True)
    spec = source.get_spec()
    program = load(spec, spec.specificationVersion, source.weights_dir)
    return ct.convert(
        program,
        convert_to="mlprogram",
        compute_precision=ct.transform.FP16ComputePrecision(op_selector=op_selector),
        minimum_deployment_target=ct.target.{precast.target},
        pass_pipeline=ct.PassPipeline(PASSES, "from_cast"),
        skip_model_load=True,
    )
'''
    inputs = "".join(f"            {p.declaration()},\n" for p in precast.inputs)
    outputs = "".join(f"            {p.declaration(output=True)},\n" for p in precast.outputs)
    given, source = {
        "exported": ("exported", "exported.run_decompositions({})"),
        "torchscript": ("traced", "traced"),
    }[precast.kind]
    text = f'''
def convert({given}):
    """The whole conversion that FP32_OPS belongs to."""
    return ct.convert(
        {source},
        inputs=[
{inputs}        ],
        outputs=[
{outputs}        ],
        convert_to="mlprogram",
        compute_precision=ct.transform.FP16ComputePrecision(op_selector=op_selector),
        minimum_deployment_target=ct.target.{precast.target},
        skip_model_load=True,
    )
'''
    if precast.kind == "torchscript":
        text += _tracing(precast)
    return text


def _tracing(precast: Precast) -> str:
    wrapper = precast.wrapper
    if wrapper is None:
        wrap = "model"
        classes = ""
    else:
        wrap = (
            f"Flat(model, {wrapper.names!r}, {sorted(wrapper.booleans)!r}, {wrapper.constants!r})"
        )
        body = inspect.getsource(flat)
        body = body[body.index("def flatten") :]
        classes = f"\n\n{body}"
    imports = "    import torch\n\n" if wrapper is None else ""
    top = (
        ""
        if wrapper is None
        else "\nimport dataclasses  # noqa: E402\nfrom collections.abc import Mapping  # noqa: E402\n\nimport torch  # noqa: E402\n"
    )
    return f'''{top}{classes}

def trace(model, example_inputs):
    """Trace an FP32 model in eval mode, so that its ops get the names in FP32_OPS.

    A model loaded with torch.jit.load is traced already.
    """
{imports}    if isinstance(model, torch.jit.ScriptModule):
        return model
    with torch.no_grad():
        return torch.jit.trace(
            {wrap}, example_inputs, strict=False, check_trace=False
        )
'''
