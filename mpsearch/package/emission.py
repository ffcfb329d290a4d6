"""Writes what the search found: the package, ``op_selector.py`` and ``precision.json``."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .._ct import ct, quiet
from ..errors import InputError
from ..program.lowering import copy_program
from ..program.packages import open_package
from ..source import flat
from ..source.nohalf import NoHalf
from ..source.precast import Precast, passes_from_cast
from . import weights

with quiet():
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline

Selector = Callable[[Any], bool]

#: The key, in a package's metadata, under which it says that mpsearch wrote it.
MADE_BY = "mpsearch.version"


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
    (:mod:`mpsearch.package.weights`).
    """
    pipeline = PassPipeline(passes_from_cast() + ([weights.PASS] if stored else []), "from_cast")
    if stored is not None:
        pipeline.set_options(weights.PASS, {"storage": stored[0], "names": stored[1]})
    with quiet():
        mlmodel = ct.convert(
            copy_program(precast.program),
            source="milinternal",
            convert_to="mlprogram",
            compute_precision=ct.transform.FP16ComputePrecision(op_selector=op_selector),
            minimum_deployment_target=getattr(ct.target, precast.target),
            pass_pipeline=pipeline,
            skip_model_load=True,
        )
        mlmodel.user_defined_metadata[MADE_BY] = version("mpsearch")
    return mlmodel


def foreign_package(path: Path) -> str | None:
    """Why what stands at a path is not ours to replace; None where it is a package of ours."""
    if not path.is_dir():
        return "it is a file, and an .mlpackage is a folder"
    try:
        with quiet():
            made = MADE_BY in open_package(path).user_defined_metadata
    except InputError:
        made = False
    return None if made else "it is no package that mpsearch wrote"


def package_bytes(path: Path) -> int:
    """Bytes of a package on disk."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


# --- op_selector.py --------------------------------------------------------------------------


def selector_source(precast: Precast, fp32_ops: list[str], facts: Mapping[str, Any]) -> str:
    """The source of ``op_selector.py``: standalone, with the conversion it belongs to.

    Parameters
    ----------
    facts
        What it was made from and for, shown at its top as data: names of files and models must
        not become code.
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
        _docstring(precast) + imports.rstrip(),
        f"#: What this was made from, and for.\nMADE_FROM = {_literal(facts)}",
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


def _literal(facts: Mapping[str, Any]) -> str:
    """A dict of texts as Python source, whatever is in them."""
    lines = "".join(f"    {k!a}: {str(v)!a},\n" for k, v in facts.items())
    return f"{{\n{lines}}}"


def _docstring(precast: Precast) -> str:
    names = [p.name for p in precast.inputs]
    example = ", ".join(names if all(map(str.isidentifier, names)) else ["x", "..."]) + ","
    usage = {
        "mlpackage": "from op_selector import convert\n\n"
        'convert("model.mlpackage").save("mixed.mlpackage")',
        "exported": "from op_selector import convert\n\n"
        f"exported = torch.export.export(model.float().eval(), ({example}))\n"
        'convert(exported).save("mixed.mlpackage")',
        "torchscript": "from op_selector import convert, trace\n\n"
        f"traced = trace(model.float().eval(), ({example}))\n"
        'convert(traced).save("mixed.mlpackage")',
    }[precast.kind]
    return (
        '"""Which ops Core ML computes in FP16, found by mpsearch.\n\n'
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
