"""Writes what the search found: the package, ``op_selector.py`` and ``precision.json``."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .._ct import ct, quiet
from ..errors import InputError
from ..program import described as keeping
from ..program.described import described
from ..program.lowering import all_ops, copy_program
from ..program.packages import open_package, owned
from ..scaling import mil, stable
from ..scaling.exponents import Scale
from ..scaling.patterns import Rewrite
from ..source import flat, torch_ops
from ..source.frozen import frozen
from ..source.nohalf import NoHalf
from ..source.precast import Precast, passes_from_cast
from . import weights

if TYPE_CHECKING:
    import jinja2

with quiet():
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline

Selector = Callable[[Any], bool]

#: The key, in a package's metadata, under which it says that mpsearch wrote it.
MADE_BY = "mpsearch.version"


def selector(fp32_ops: Collection[str]) -> Selector:
    """An ``op_selector`` that keeps the named ops in FP32 (True = cast to FP16).

    Compressed weights are unpacked in FP32 where an op that is FP32 reads them.
    """
    names = frozenset(fp32_ops)

    def op_selector(op: Any) -> bool:
        if op.op_type.startswith("constexpr_"):
            return all(map(op_selector, op.outputs[0].child_ops))
        return op.name not in names

    return op_selector


def convert(
    precast: Precast,
    op_selector: Selector,
    stored: tuple[str, Collection[str]] | None = None,
    without: Collection[str] = (),
) -> Any:
    """The ``MLModel`` that coremltools makes of a pre-cast program with a selector.

    Runs the rest of coremltools' default passes, the cast first: the same package as a full
    conversion from PyTorch with that selector. ``stored`` says how weights are stored, and which
    (:mod:`mpsearch.package.weights`). Passes named in ``without`` do not run.
    """
    passes = [name for name in passes_from_cast() if name not in without]
    pipeline = PassPipeline(passes + ([weights.PASS] if stored else []), "from_cast")
    if stored is not None:
        pipeline.set_options(weights.PASS, {"storage": stored[0], "names": stored[1]})
    with quiet():
        mlmodel = owned(
            ct.convert(
                copy_program(precast.program),
                source="milinternal",
                convert_to="mlprogram",
                compute_precision=ct.transform.FP16ComputePrecision(op_selector=op_selector),
                minimum_deployment_target=getattr(ct.target, precast.target),
                pass_pipeline=pipeline,
                classifier_config=precast.classifier,
                skip_model_load=True,
            )
        )
        if precast.description:
            source = ct.proto.Model_pb2.Model()
            source.description.ParseFromString(precast.description)
            mlmodel = owned(described(mlmodel, source))
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


def selector_source(
    precast: Precast, fp32_ops: list[str], facts: Mapping[str, Any], scaled: bool = False
) -> str:
    """The source of ``op_selector.py``: standalone, with the conversion it belongs to.

    Parameters
    ----------
    facts
        What it was made from and for, shown at its top as data: names of files and models must
        not become code.
    scaled
        Whether ``rescale.py`` stands beside it.
    """
    wrapper, kind = precast.wrapper, precast.kind
    imports = ["import coremltools as ct"]
    imports += ["import numpy as np"] * (kind != "mlpackage")
    imports += ["import torch"] * (kind == "torchscript" or bool(precast.decomposed))
    imports += ["from coremltools.converters.mil.mil import Builder"] * (kind != "mlpackage")
    imports += [line for line in torch_ops.IMPORTS.split("\n") if precast.added]
    imports = list(dict.fromkeys(imports))
    traced_half = precast.half and kind == "torchscript"
    imports += ["from torch.overrides import TorchFunctionMode"] * traced_half
    if wrapper is not None:
        imports = ["import dataclasses", "from collections.abc import Mapping", "", *imports]
    copied, wrapped = [], "model"
    if wrapper is not None:
        body = inspect.getsource(flat)
        copied.append(body[body.index("def flatten") :].rstrip())
        booleans = sorted(wrapper.booleans)
        wrapped = f"Flat(model, {wrapper.names!r}, {booleans!r}, {wrapper.constants!r})"
    if precast.half:
        copied.append(inspect.getsource(NoHalf).rstrip())
    if precast.frozen:
        copied.append(_bare(inspect.getsource(frozen)))
    traced = "torch.jit.trace(wrapped, wide, strict=False, check_trace=False)"
    given, source = {
        "mlpackage": ("", ""),
        "exported": ("exported", f"exported.run_decompositions({_table(precast)})"),
        "torchscript": ("traced", "traced"),
    }[kind]
    (function,) = precast.program.functions.values()
    every = [op for op in all_ops(function) if op.op_type != "const"]
    places = {op.name: place for place, op in enumerate(every)}
    return _template("op_selector.py.j2").render(
        kind=kind,
        target=precast.target,
        usage=_usage(precast),
        imports="\n".join(imports),
        facts={key: str(value) for key, value in facts.items()},
        fp32_ops=fp32_ops,
        places=tuple(places[name] for name in fp32_ops),
        types=hashlib.sha256(" ".join(op.op_type for op in every).encode()).hexdigest(),
        passes=["rescale::fit_fp16"] * scaled + passes_from_cast(),
        scaled=scaled,
        given=given,
        source=source,
        inputs=[port.declaration() for port in precast.inputs],
        outputs=[port.declaration(output=True) for port in precast.outputs],
        states={name: tuple(shape) for name, shape in precast.states.items()},
        copied=copied,
        wrapped=wrapped,
        traced=f"frozen({traced})" if precast.frozen else traced,
        attention=precast.attention,
        half=precast.half,
        frozen=precast.frozen,
        added={name: torch_ops.CONVERSIONS[name].__name__ for name in precast.added},
        compressed=any(op.op_type.startswith("constexpr_") for op in every),
        keeping=_body(keeping, "def unclassified"),
        conversions=[_bare(s) for s in torch_ops.sources(list(precast.added)) if precast.added],
    )


def rescale_source(rewrites: Sequence[Rewrite], scales: Sequence[Scale]) -> str:
    """The source of ``rescale.py``: standalone, a pass that changes a program as it was here."""
    bodies = [(stable, "def rewrite")] * bool(rewrites) + [(mil, "def rescale")] * bool(scales)
    copied = [_body(module, start) for module, start in bodies]
    return _template("rescale.py.j2").render(
        rewrites=msgspec.to_builtins(rewrites), scales=scales, copied="\n\n\n".join(copied)
    )


def _body(module: Any, start: str) -> str:
    """The source of a module from some text on."""
    source = inspect.getsource(module)
    return _bare(source[source.index(start) :])


def _bare(source: str) -> str:
    """Source without what is for mypy."""
    return re.sub(r"  # type: ignore\S*", "", source.rstrip())


def _template(name: str) -> jinja2.Template:
    # Here, so that what only searches need not load it.
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mpsearch.package", "."),
        autoescape=False,  # it is Python: names go through repr
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["literal"] = _literal
    return environment.get_template(name)


def _literal(value: Any) -> str:
    """A value as Python source, whatever is in it."""
    return ascii(value)


def _usage(precast: Precast) -> str:
    names = [p.name for p in precast.inputs]
    example = ", ".join(names if all(map(str.isidentifier, names)) else ["x", "..."]) + ","
    return {
        "mlpackage": "from op_selector import convert\n\n"
        'convert("model.mlpackage").save("mixed.mlpackage")',
        "exported": "from op_selector import convert\n\n"
        f"exported = torch.export.export(model.float().eval(), ({example}))\n"
        'convert(exported).save("mixed.mlpackage")',
        "torchscript": "from op_selector import convert, trace\n\n"
        f"traced = trace(model.float().eval(), ({example}))\n"
        'convert(traced).save("mixed.mlpackage")',
    }[precast.kind]


def _table(precast: Precast) -> str:
    """What an exported program is decomposed by, as Python source."""
    if not precast.decomposed:
        return "{}"
    names = ", ".join(map(_literal, precast.decomposed))
    return (
        "{\n            op: how\n"
        "            for op, how in torch.export.default_decompositions().items()\n"
        f"            if str(op) in ({names},)\n        }}"
    )
