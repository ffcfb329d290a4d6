"""Writes what the search found: the package, ``op_selector.py`` and ``precision.json``."""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import flat, weights
from ._ct import ct, quiet
from .errors import InputError
from .frontend import Precast, passes_from_cast
from .nohalf import NoHalf
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


def convert(
    precast: Precast, op_selector: Selector, stored: tuple[str, Collection[str]] | None = None
) -> Any:
    """The ``MLModel`` that coremltools makes of a pre-cast program with a selector.

    Runs the rest of coremltools' default passes, the cast first: the same package as a full
    conversion from PyTorch with that selector. ``stored`` says how weights are stored, and which
    (:mod:`mpsearch.weights`).
    """
    pipeline = PassPipeline(passes_from_cast() + ([weights.PASS] if stored else []), "from_cast")
    if stored is not None:
        pipeline.set_options(weights.PASS, {"storage": stored[0], "names": stored[1]})
    with quiet():
        return ct.convert(
            copy_program(precast.program),
            source="milinternal",
            convert_to="mlprogram",
            compute_precision=ct.transform.FP16ComputePrecision(op_selector=op_selector),
            minimum_deployment_target=getattr(ct.target, precast.target),
            pass_pipeline=pipeline,
            skip_model_load=True,
        )


def package_bytes(path: Path) -> int:
    """Bytes of a package on disk."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


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
    imports = {
        "mlpackage": "import coremltools as ct\n",
        "exported": "import coremltools as ct\nimport numpy as np\n",
        "torchscript": "import coremltools as ct\nimport numpy as np\nimport torch\n",
    }[precast.kind]
    if precast.half and precast.kind == "torchscript":
        imports += "from torch.overrides import TorchFunctionMode\n"
    if precast.wrapper is not None:
        imports = f"import dataclasses\nfrom collections.abc import Mapping\n\n{imports}"
    listed = "frozenset()"
    if fp32_ops:
        names = "".join(f"        {name!r},\n" for name in fp32_ops)
        listed = f"frozenset(\n    {{\n{names}    }}\n)"
    parts = [
        _docstring(precast, facts) + imports.rstrip(),
        f"#: The ops that stay in FP32, by MIL name.\nFP32_OPS = {listed}",
        'def op_selector(op):\n    """True = cast this op to FP16."""\n'
        "    return op.name not in FP32_OPS",
    ]
    if precast.kind == "mlpackage":
        parts += _package_conversion(precast)
    else:
        parts.append(_torch_conversion(precast))
    if precast.kind == "torchscript":
        parts += _tracing(precast)
    return "\n\n\n".join(parts) + "\n"


def _docstring(precast: Precast, facts: dict[str, str]) -> str:
    example = "".join(f"{p.name}, " for p in precast.inputs)
    usage = {
        "mlpackage": "from op_selector import convert\n\n"
        'convert("model.mlpackage").save("mixed.mlpackage")',
        "exported": "from op_selector import convert\n\n"
        f"exported = torch.export.export(model.float().eval(), ({example.rstrip()}))\n"
        'convert(exported).save("mixed.mlpackage")',
        "torchscript": "from op_selector import convert, trace\n\n"
        f"traced = trace(model.float().eval(), ({example.rstrip()}))\n"
        'convert(traced).save("mixed.mlpackage")',
    }[precast.kind]
    head = "\n".join(f"    {key}: {value}" for key, value in facts.items())
    return (
        f'"""Which ops Core ML computes in FP16, found by mpsearch.\n\n{head}\n\n'
        f'Use it as it is:\n\n{textwrap.indent(usage, "    ")}\n"""\n\n'
    )


def _package_conversion(precast: Precast) -> list[str]:
    passes = "".join(f"    {p!r},\n" for p in passes_from_cast())
    return [
        "#: coremltools' default passes from the cast on. The others have run already, and\n"
        f"#: running them again would rename ops.\nPASSES = [\n{passes}]",
        f'''def convert(path):
    """Convert the FP32 .mlpackage at ``path``."""
    from coremltools.converters.mil.frontend.milproto.load import load

    source = ct.models.MLModel(path, skip_model_load=True)
    spec = source.get_spec()
    program = load(spec, spec.specificationVersion, source.weights_dir)
    return ct.convert(
        program,
        source="milinternal",
        convert_to="mlprogram",
        compute_precision=ct.transform.FP16ComputePrecision(op_selector=op_selector),
        minimum_deployment_target=ct.target.{precast.target},
        pass_pipeline=ct.PassPipeline(PASSES, "from_cast"),
        skip_model_load=True,
    )''',
    ]


def _torch_conversion(precast: Precast) -> str:
    inputs = "".join(f"            {p.declaration()},\n" for p in precast.inputs)
    outputs = "".join(f"            {p.declaration(output=True)},\n" for p in precast.outputs)
    states = ""
    if precast.states:
        listed = "".join(
            "            ct.StateType(\n"
            f"                ct.TensorType(shape={tuple(shape)}, dtype=np.float16), {name!r}\n"
            "            ),\n"
            for name, shape in precast.states.items()
        )
        states = f"        states=[\n{listed}        ],\n"
    given, source = {
        "exported": ("exported", "exported.run_decompositions({})"),
        "torchscript": ("traced", "traced"),
    }[precast.kind]
    return f'''def convert({given}):
    """The whole conversion that FP32_OPS belongs to."""
    return ct.convert(
        {source},
        inputs=[
{inputs}        ],
        outputs=[
{outputs}        ],
{states}        convert_to="mlprogram",
        compute_precision=ct.transform.FP16ComputePrecision(op_selector=op_selector),
        minimum_deployment_target=ct.target.{precast.target},
        skip_model_load=True,
    )'''


def _tracing(precast: Precast) -> list[str]:
    wrapper, parts, wrapped = precast.wrapper, [], "model"
    if wrapper is not None:
        body = inspect.getsource(flat)
        parts.append(body[body.index("def flatten") :].rstrip())
        booleans = sorted(wrapper.booleans)
        wrapped = f"Flat(model, {wrapper.names!r}, {booleans!r}, {wrapper.constants!r})"
    context = "torch.no_grad()"
    if precast.half:
        parts.append(inspect.getsource(NoHalf).rstrip())
        context += ", NoHalf()"
    parts.append(
        f'''def trace(model, example_inputs):
    """Trace an FP32 model in eval mode, so that its ops get the names in FP32_OPS.

    A model loaded with torch.jit.load is traced already.
    """
    if isinstance(model, torch.jit.ScriptModule):
        return model
    wrapped = {wrapped}
    wide = tuple(x.float() if x.is_floating_point() else x for x in example_inputs)
    with {context}:
        return torch.jit.trace(wrapped, wide, strict=False, check_trace=False)'''
    )
    return parts
