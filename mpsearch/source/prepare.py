"""From what the user gives to everything that is known before the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._ct import ct, quiet
from ..ending import Ending
from ..errors import InputError, MpsearchError
from ..evaluation import metrics
from ..evaluation.evaluator import Compute, Evaluator
from ..evaluation.incremental import Incremental
from ..evaluation.metrics import Metric, Outputs
from ..executor.predict import Executor
from ..files import first_line
from ..hints import option
from ..numerics.choosing import Numerics, chosen
from ..numerics.profiles import Profile
from ..options import Conversion
from ..program.candidates import CandidateOp
from ..program.flops import looped
from ..program.graph import Function
from ..program.lowering import lower_candidates
from ..spool import Spool
from .conversion import convert
from .data import Data, argument_names, collect, is_picture, other_shapes, read, redrawn
from .declared import declared_inputs
from .drawing import within_tables
from .items import items
from .loading import load_model
from .mlpackage import check_shapes, from_package, pixels
from .modules import TorchModel, unwrapped
from .precast import Port, Precast, fingerprint
from .torch_ops import PARTLY

Bound = tuple[dict[str, Any], Outputs]  # a sample under the program's input names, its references
Bind = Callable[[dict[str, Any]], Bound]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that is known before the search.

    Attributes
    ----------
    calibration, heldout
        Samples under the program's input names.
    references, heldout_references
        Per sample, what the model gives in FP32, under the program's output names.
    inputs
        The model's inputs as given: name, dtype, shape.
    given
        The calibration samples as given.
    io_dtype
        The dtype of float inputs and outputs of the Core ML model.
    redrawn, redrawn_references
        Calibration samples again, in turn, moved a little (:func:`mpsearch.source.data.redrawn`):
        they round otherwise, and are as likely to be met with as the samples themselves.
    source
        What the model is, for people.
    understood
        What the samples were taken for, in words.
    further
        Gives so many more redrawn samples with their references, after those there are.
    flops
        The floating-point operations of a forward pass.
    plain
        The program as it was converted, where this one is scaled (:mod:`mpsearch.scaling`).
    notes
        What the result is to say beside its numbers.
    """

    precast: Precast
    lowered: Function
    ops: list[CandidateOp]
    metric: Metric
    profiles: list[Profile]
    calibration: Data
    heldout: Data
    references: list[Outputs]
    heldout_references: list[Outputs]
    inputs: list[Port]
    given: list[dict[str, Any]]
    torch_model: TorchModel | None
    io_dtype: str
    source: str
    understood: str
    notes: tuple[str, ...] = ()
    redrawn: Data = field(default_factory=lambda: Data([]))
    redrawn_references: list[Outputs] = field(default_factory=list)
    further: Callable[[int, int], list[Bound]] = lambda count, start: []
    flops: float = 0.0
    plain: Precast | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the program and its weights, as converted, to tell models apart."""
        return fingerprint(self.plain or self.precast)

    def joined(self, places: Sequence[int]) -> Prepared:
        """The same with held-out samples as calibration samples, by their places in the data."""
        found = [self.heldout.places.index(place) for place in places]
        samples = self.calibration.samples + [self.heldout.samples[i] for i in found]
        references = self.references + [self.heldout_references[i] for i in found]
        return replace(
            self, calibration=replace(self.calibration, samples=samples), references=references
        )

    def evaluator(
        self,
        device: str = "cpu",
        cache_bytes: int | None = None,
        ending: Ending | None = None,
        *,
        perturbed: bool = False,
        seed: int = 0,
        compute: Compute | None = None,
    ) -> Evaluator:
        """An evaluator over the calibration data, and after it the ``perturbed`` samples.

        ``seed`` and ``compute`` are those of :class:`mpsearch.evaluation.evaluator.Evaluator`.
        """
        samples, references = list(self.calibration.samples), list(self.references)
        if perturbed:
            samples += self.redrawn.samples
            references += self.redrawn_references
        engine = Incremental(
            self.lowered, len(self.ops), samples, self.profiles, device, cache_bytes, ending
        )
        targets = self.calibration.targets
        return Evaluator(engine, references, self.metric, targets, seed, compute)

    def heldout_evaluator(
        self,
        device: str = "cpu",
        cache_bytes: int | None = None,
        ending: Ending | None = None,
        *,
        compute: Compute | None = None,
    ) -> Evaluator | None:
        """An evaluator over the held-out data; None without any."""
        data = self.heldout
        if not data.samples:
            return None
        engine = Incremental(
            self.lowered, len(self.ops), data.samples, self.profiles, device, cache_bytes, ending
        )
        references, targets = self.heldout_references, data.targets
        return Evaluator(engine, references, self.metric, targets, compute=compute)


def prepare(
    model: Any,
    inputs: Any,
    metric: str | Callable[..., float] = "rel_l2",
    numerics: Numerics = "ieee",
    conversion: Conversion = Conversion(),
    heldout: float = 0.0,
    targets: Any = None,
    redraw: Callable[[float], int] | None = None,
    seed: int = 0,
) -> Prepared:
    """Load, convert up to the cast, and compute the references.

    ``targets`` is as for :func:`mpsearch.source.data.collect`. ``redraw`` says, given the number
    of floating-point operations of a forward pass, how many calibration samples there are to be;
    where there are fewer, redrawn ones are added.

    Raises
    ------
    InputError
        If something given cannot be used.
    """
    profiles = chosen(numerics)
    metrics.resolve(metric, False)  # an unknown name fails before the work
    source = str(model) if isinstance(model, (str, Path)) else type(model).__name__
    model = open_source(model)
    precast, data, torch_model, io, notes = _converted(model, inputs, targets, conversion, seed)
    (function_name,) = precast.program.functions
    lowered, ops = lower_candidates(
        precast.program, function_name, precast.layer_of, precast.line_of
    )
    notes += _never_cast(precast, ops)
    bind = _binder(precast, lowered, torch_model)
    with quiet():
        bound = [_kept(bind(s), data.spool, s) for s in data.samples]
    renamed = replace(data, samples=[s for s, _ in bound])
    calibration, held = renamed.split(heldout)
    references = [r for _, r in bound]
    notes += _check_references(references, data.samples)
    chosen_by = [data.samples[place] for place in calibration.places]
    cut = len(chosen_by)
    measure = metrics.resolve(metric, bool(data.targets))
    sizes = [n for v in calibration.samples[0].values() for n in getattr(v, "shape", ())]
    work = float(sum(op.flops for op in ops) + looped(lowered.nodes, sizes))
    again = 0
    if redraw is not None and measure.combine == "max":
        again = max(redraw(work) - cut, 0)

    def further(count: int, start: int) -> list[Bound]:
        more = islice(enumerate(redrawn(chosen_by, start + count, seed)), start, None)
        with quiet():
            found = (_moved(bind, sample, chosen_by[place % cut]) for place, sample in more)
            return [_kept(bound, data.spool) for bound in found]

    moved = further(again, 0)
    first = data.samples[0].items()
    return Prepared(
        precast=precast,
        lowered=lowered,
        ops=ops,
        metric=measure,
        profiles=profiles,
        calibration=calibration,
        heldout=held,
        references=[references[place] for place in calibration.places],
        heldout_references=[references[place] for place in held.places],
        inputs=[Port.of(k, v) for k, v in first if isinstance(v, torch.Tensor)],
        given=chosen_by,
        torch_model=torch_model,
        io_dtype=io,
        source=source,
        understood=data.understood,
        notes=tuple(notes),
        redrawn=Data([s for s, _ in moved]),
        redrawn_references=[r for _, r in moved],
        further=further,
        flops=work,
    )


def _converted(
    model: Any, inputs: Any, targets: Any, conversion: Conversion, seed: int
) -> tuple[Precast, Data, TorchModel | None, str, list[str]]:
    """The program before the cast, its data, the PyTorch model, the dtype of inputs, and notes."""
    if isinstance(inputs, (str, Path)):
        names, required, shapes = declared_inputs(model)
        inputs = read(str(inputs), names, required, targets, shapes)
    if isinstance(model, ct.models.MLModel):
        precast = from_package(model)
        (function,) = precast.program.functions.values()
        data = pixels(model, as_data(inputs, list(function.inputs), targets))
        check_shapes(model, data)
        data = within_tables(data, function, seed)
        return precast, data, None, "fp32", []
    notes: list[str] = []
    data = as_data(inputs, argument_names(model), targets)
    if pictures := [name for name, value in data.samples[0].items() if is_picture(value)]:
        raise InputError(
            f"input {pictures[0]!r} is a PIL image, which a PyTorch model does not take; give "
            "the tensor that it does, or a package with an image input (mpsearch.convert)"
        )
    torch_model = TorchModel(model, conversion.states, data.declared)
    torch_model.check(data.samples[0])
    if conversion.batches == "apart" and not conversion.states:
        batches, data = data, items(data, torch_model)
        notes += _taken_apart(batches, data)
    half = torch_model.io_half and conversion.target != "iOS15"
    io = conversion.io_dtype or ("fp16" if half else "fp32")
    precast = convert(torch_model, data.samples, conversion.target, io)
    notes += [*_other_shapes(data), *_added(precast.added), *_renamed(precast.renamed)]
    (function,) = precast.program.functions.values()
    data = within_tables(data, function, seed)
    return precast, data, torch_model, io, notes


def _kept(bound: Bound, spool: Spool, given: Mapping[str, Any] = {}) -> Bound:
    """A sample and its references, kept; what the sample shares with the one given is already."""
    known = {value.data_ptr() for value in given.values() if isinstance(value, torch.Tensor)}
    sample = {
        name: value
        if isinstance(value, torch.Tensor) and value.data_ptr() in known
        else spool.keep(value)
        for name, value in bound[0].items()
    }
    return sample, {name: spool.keep(value) for name, value in bound[1].items()}


def _moved(bind: Bind, sample: dict[str, Any], given: dict[str, Any]) -> Bound:
    """A sample that was moved; as it was given where the model does not take it so."""
    try:
        return bind(sample)
    except MpsearchError:  # integers of two samples need not fit together
        return bind(given)


def _other_shapes(data: Data) -> list[str]:
    others = other_shapes(data.samples[0], data.declared)
    if not others:
        return []
    return [
        f"The samples have other shapes than the model's file ({', '.join(others)}); the package "
        "takes those of the samples."
    ]


def _taken_apart(batches: Data, data: Data) -> list[str]:
    if batches is data:
        return []
    return [
        f"Batches were taken apart: {len(batches.samples)} made {len(data.samples)} samples, and "
        f"the package takes one at a time. To keep them whole: {option('batches', 'whole')}."
    ]


def _added(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    listed = ", ".join(f"some uses of {name}" if name in PARTLY else name for name in names)
    return [
        f"coremltools {ct.__version__} does not convert {listed}: mpsearch did, by MIL ops that "
        "compute the same; op_selector.py carries it along."
    ]


def _never_cast(precast: Precast, ops: Sequence[CandidateOp]) -> list[str]:
    """That coremltools leaves ops with constants beyond FP16 in FP32, whatever is chosen."""
    (function,) = precast.program.functions.values()
    chosen, overflows = {op.name for op in ops}, ct.transform.FP16ComputePrecision.fp16_overflow
    found = [op.name for op in function.operations if op.name not in chosen and overflows(op)]
    if not found:
        return []
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return [
        f"coremltools leaves {', '.join(found[:4])}{more} in FP32 whatever is chosen: it casts no "
        "op whose constants FP16 cannot hold. The counts here are without them."
    ]


def _renamed(names: Mapping[str, str]) -> list[str]:
    """That inputs and outputs have other names in the package, and why."""
    return [
        f"{given} is named {name!r} in the package: coremltools "
        + (
            "reserves the name."
            if name.endswith("_workaround")
            else "knows names of letters, digits and underscores, each used once."
        )
        for given, name in names.items()
    ]


def _not_finite(value: Any) -> bool:
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return floats and not bool(torch.isfinite(value).all())


def _check_references(references: list[Outputs], samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes on values that nothing can be compared with.

    Raises
    ------
    InputError
        If a sample has no others.
    """
    lost: dict[str, int] = {}
    for place, outputs in enumerate(references):
        finite = {name: int(torch.isfinite(v).sum()) for name, v in outputs.items()}
        if not any(finite.values()):
            empty = not any(v.numel() for v in outputs.values())
            what = "has no values" if empty else "is NaN or infinite everywhere"
            lost_in = [name for name, value in samples[place].items() if _not_finite(value)]
            if lost_in:
                raise InputError(
                    f"sample {place}: the input {lost_in[0]} holds NaN or infinity, and the model "
                    "gives nothing else; leave the sample out"
                )
            raise InputError(
                f"sample {place}: what the model gives in FP32 {what}, so that there is nothing "
                "to compare with; give samples on which it works"
            )
        for name, count in finite.items():
            lost[name] = lost.get(name, 0) + outputs[name].numel() - count
    return [
        f"{count:,} values of output {name!r} are NaN or infinite in FP32 as well; they are "
        "expected to be the same, and the others are compared."
        for name, count in lost.items()
        if count
    ]


def open_source(model: Any) -> Any:
    """The model behind a path; other models as they are.

    Raises
    ------
    InputError
        If it is no model that mpsearch knows.
    """
    if isinstance(model, (str, Path)):
        return load_model(str(model))
    model = unwrapped(model)
    known = (torch.nn.Module, torch.export.ExportedProgram, ct.models.MLModel)
    if not isinstance(model, known):
        raise InputError(
            f"model is a {type(model).__name__}; expected an nn.Module, a ScriptModule, an "
            "ExportedProgram, an MLModel or a path"
        )
    return model


def check_device(device: str) -> None:
    """Fail early where torch has no such device.

    Raises
    ------
    InputError
        If tensors cannot be made on it.
    """
    try:
        torch.zeros(1, device=torch.device(device)).cpu()
    except Exception as error:  # whatever a backend raises; "meta" holds no values
        raise InputError(
            f"device {device!r} cannot be used: {first_line(error)}; give cpu, cuda or mps"
        ) from error


def as_data(inputs: Any, names: list[str] | None, targets: Any = None) -> Data:
    """Samples as :func:`mpsearch.source.data.collect` makes them; :class:`Data` as it is."""
    return inputs if isinstance(inputs, Data) else collect(inputs, names, targets)


def _binder(precast: Precast, lowered: Function, torch_model: TorchModel | None) -> Bind:
    """Sample -> (sample under the program's input names, reference under its output names)."""
    (function,) = precast.program.functions.values()

    def states() -> dict[str, torch.Tensor]:
        """Zeros, as every sample starts from."""
        kinds = {name: function.inputs[name].sym_type.wrapped_type() for name in lowered.states}
        return {k: torch.zeros(tuple(t.get_shape()), dtype=torch.half) for k, t in kinds.items()}

    if torch_model is None:
        runner = Executor(precast.program)

        def of_package(sample: dict[str, Any]) -> Bound:
            out = runner.predict(sample, runner.make_state() if lowered.states else None)
            bound = runner.bind(sample) | states()
            return bound, {k: torch.as_tensor(v) for k, v in out.items()}

        return of_package

    def of_torch(sample: dict[str, Any]) -> Bound:
        values = list(torch_model(sample).values())
        names = [v.name for v in function.outputs]
        if len(names) != len(values):
            raise InputError(
                f"the converted model has {len(names)} outputs, the PyTorch model {len(values)}"
            )
        tensors = [v for v in sample.values() if isinstance(v, torch.Tensor)]
        bound: dict[str, Any] = {}
        for name, port, value in zip(lowered.inputs, precast.inputs, tensors, strict=True):
            dtype = {"fp16": torch.float16, "fp32": torch.float32}.get(port.dtype or "")
            bound[name] = value.to(dtype or torch.int32)
        return bound | states(), dict(zip(names, values, strict=True))

    return of_torch
