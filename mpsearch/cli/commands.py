"""The commands: parse, call a flow, print."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from .. import options as choices
from ..errors import InputError
from ..files import check_writable, foreign, printable
from ..hints import shell
from ..options import Constraints, Conversion, Execution, Limits
from ..temporary import own_temporary_folder
from . import early
from . import options as shared
from .ending import CHECK_FAILED, EXIT, OK, Group, shortened
from .process import cleaned

if TYPE_CHECKING:
    from ..flows.progress import Progress
    from ..results.unfinished import Unfinished

_EXAMPLES = """\
mpsearch optimize model.pt --budget 1e-3
mpsearch optimize model.pt --inputs samples.npz --metric max_abs --budget 1e-2
mpsearch optimize package.module:factory --weights model.safetensors \\
    --inputs package.module:samples --budget 1e-3 --rescale fold"""
_MODEL = "MODEL is a TorchScript file, a .pt2, a pickled module (with --allow-pickle), an FP32 \
.mlpackage, or package.module:factory."


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mpsearch")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning"]),
    default="warning",
    show_default=True,
    help="What is logged on stderr.",
)
@click.pass_context
def main(ctx: click.Context, log_level: str) -> None:
    """Find the fewest ops that must stay FP32 for a model to work in Core ML's FP16.

    An op is one operation of the converted model, such as a convolution or a sum.
    """
    logger, handler = logging.getLogger("mpsearch"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(log_level.upper())
    ctx.call_on_close(lambda: logger.removeHandler(handler))
    ctx.with_resource(own_temporary_folder())
    ctx.with_resource(shell())


def _loading(show: bool | None) -> Progress:
    """Say at once that something happens: torch and coremltools take seconds to load."""
    from ..flows.progress import Progress

    bar = Progress(show)
    click.get_current_context().call_on_close(bar.close)
    bar.stage("loading")
    return bar


def _load(model: str, options: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """The model and its data; takes what says so out of ``options``."""
    weights, allow_pickle = options.pop("weights"), options.pop("allow_pickle")
    inputs, targets = options.pop("inputs"), options.pop("targets")
    random_, shape = options.pop("random_"), options.pop("shape")
    limits = shared.load_limits(options)

    from ..source import data, drawing
    from ..source.declared import declared_inputs
    from ..source.loading import load_model

    loaded = load_model(model, weights, allow_pickle, limits)
    names, required, shapes = declared_inputs(loaded, shape, model)
    if inputs is not None:
        return loaded, data.read(inputs, names, required, targets, shapes, limits)
    count = drawing.COUNT if random_ is None else random_

    def missing(unknown: Sequence[str]) -> InputError:
        return _shapes_missing(loaded, unknown)

    return loaded, drawing.drawn(shapes, names, required, count, seed, missing)


def _shapes_missing(model: Any, names: Sequence[str]) -> InputError:
    """Says which inputs have no shape, and what to type."""
    from ..source.guessing import guessed

    found = guessed(model, names)
    texts = {
        name: ",".join(map(str, shape)) + (":int" if str(dtype) == "torch.int64" else "")
        for name, (shape, dtype) in found.items()
    }
    typed = [f"--shape {name}={texts.get(name, '1,3,224,224')}" for name in names]
    ran = "it runs with these" if found else "for instance, and 1,8:int for integers"
    plural = "s" if len(names) > 1 else ""
    return InputError(
        f"the model does not say the shape{plural} of {', '.join(map(repr, names))}; give data "
        f"with --inputs, or your sizes ({ran}): "
        + " ".join([shlex.join(["mpsearch", *sys.argv[1:]]), *typed])
    )


@main.command(epilog=_MODEL, examples=_EXAMPLES)
@click.argument("model")
@click.option(
    "--budget",
    type=shared.Number(),
    required=True,
    help="Largest error allowed, such as 1e-3 or 0.1%.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Directory to write (default: MODEL-mixed).",
)
@shared.source
@shared.heldout
@shared.strategy
@shared.numerics
@shared.conversion
@click.option(
    "--weight-dtype",
    type=click.Choice(choices.WEIGHT_DTYPES),
    help="Dtype that weights are stored in, as far as the budget allows.",
)
@click.option(
    "--rescale",
    type=click.Choice(choices.RESCALED),
    default="off",
    show_default=True,
    help="Scale tensors by powers of two: in constants (fold), or also by inserted ops.",
)
@click.option(
    "--rewrite",
    is_flag=True,
    help="Rewrite softplus, logsumexp, softmax, exp, log, masks and keys for FP16.",
)
@click.option(
    "--keep-fp32",
    multiple=True,
    metavar="PIN",
    help="Ops to keep FP32: type:softmax, layer:enc.3.*, op:x*.",
)
@click.option("--keep-fp16", multiple=True, metavar="PIN", help="Ops to leave FP16.")
@click.option(
    "--by",
    type=click.Choice(choices.GRANULARITIES),
    default="op",
    show_default=True,
    help="Decide op by op, or layer by layer (ops of no layer one by one).",
)
@click.option(
    "--minimize",
    type=click.Choice(choices.MINIMIZED),
    default="ops",
    show_default=True,
    help="What to keep small; casts: FP32 ops and casts together.",
)
@click.option(
    "--objective",
    type=click.Choice(choices.OBJECTIVES),
    default="unseen",
    show_default=True,
    help="Hold on inputs like the samples, or on the samples alone.",
)
@click.option(
    "--coverage",
    type=shared.Number(),
    default=0.95,
    show_default=True,
    help="Share of inputs on which the budget must hold.",
)
@click.option(
    "--confidence",
    type=shared.Number(),
    default=0.95,
    show_default=True,
    help="Confidence with which that share is promised.",
)
@click.option(
    "--tolerate-overflow",
    is_flag=True,
    help="Leave ops in FP16 that overflow, if the budget is met.",
)
@click.option(
    "--hazards",
    type=click.Choice(choices.HAZARD_ACTIONS),
    default="pin",
    show_default=True,
    help="What to do about ops that fail at run time in FP16.",
)
@click.option("--trials", type=int, help="Sets that may be tried (default 300).")
@click.option("--timeout", type=float, help="Seconds that the search may take.")
@click.option("--prove", is_flag=True, help="Try all smaller sets as well, if they are few.")
@shared.execution
@shared.jobs
@shared.cluster
@shared.backend
@shared.units
@shared.storage
@shared.resume
@click.option(
    "--verbose",
    "-v",
    is_flag=True,
    help="Show proposals, conflicts and bounds as they come.",
)
@click.pass_context
def optimize(
    ctx: click.Context,
    /,
    model: str,
    budget: float,
    out: Path | None,
    metric: str | None,
    as_json: bool,
    resume: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Search MODEL and write the mixed-precision package."""
    started = time.perf_counter()
    early.check(model, options, budget, metric)
    target = out or Path(_stem(model) + "-mixed")
    check_writable(target, foreign)
    conversion, constraints = shared.group(Conversion, options), shared.group(Constraints, options)
    limits, weights = shared.group(Limits, options), options["weights"]
    name = model if weights is None else f"{model} --weights {shlex.quote(weights)}"
    options["resume"] = resume and options["storage"] is not None
    execution = shared.group(Execution, options)

    if verbose:
        logging.getLogger("mpsearch.search").setLevel(logging.INFO)
    bar = _loading(execution.progress)
    from ..ending import Ending
    from ..flows.isolation import neutral
    from ..flows.request import Request
    from ..flows.running import run
    from ..report import text
    from ..results.unfinished import Unfinished

    request = Request(
        budget,
        _metric(metric),
        None,
        options.pop("heldout"),
        options.pop("strategy"),
        options.pop("numerics"),
        conversion,
        constraints,
        limits,
        execution,
    )
    loaded, data = _load(model, options, execution.seed)
    bar.close()
    ending = Ending(limits.timeout)
    with contextlib.ExitStack() as stack:
        under_way = None
        if execution.storage is None:
            under_way = Unfinished(target, resume)
            stack.enter_context(cleaned(under_way.close))
            kept = msgspec.structs.replace(execution, storage=under_way.url, resume=resume)
            request = dataclasses.replace(request, execution=kept)
        stack.enter_context(ending.listening())
        with neutral():
            result = run(request, loaded, data, ending, name, started=started)
        written, lost = _save(result, target, under_way)
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    else:
        _say(text.summary(result, written, _paint, _columns()))
    if verbose:
        click.echo(printable(text.passes(result.trials)), err=True)
    if lost is not None:
        raise lost
    if written is not None and written != target:
        said = printable(f"note: {target} holds a better result, which was kept")
        click.echo(said, err=True)
    cut_short = result.status == "interrupted" and not ending.interrupted
    ctx.exit(OK if cut_short else EXIT[result.status])


def _save(
    result: Any, target: Path, under_way: Unfinished | None
) -> tuple[Path | None, InputError | None]:
    """Where the result was written, and what went wrong; what cannot be written is shown."""
    study = None if under_way is None or not under_way.study.exists() else under_way.study
    try:
        written = None if result.status == "infeasible" else result.save(target, study)
    except InputError as error:
        return None, error
    if under_way is not None:
        under_way.done = result.status not in ("interrupted", "unwritten")
    return written, None


def _columns() -> int:
    """How wide text is to be: as the terminal, but no wider than reads well."""
    return max(min(shutil.get_terminal_size((80, 24)).columns, 80) - 2, 30)


def _say(message: str) -> None:
    """Print to stdout, in color only on a terminal, and never where NO_COLOR is set."""
    lines = [shortened(line) for line in message.split("\n")]
    click.echo("\n".join(lines), color=False if os.environ.get("NO_COLOR") else None)


def _paint(message: str, mood: str) -> str:
    if mood == "quiet":
        return click.style(message, dim=True)
    return click.style(message, fg={"good": "green", "bad": "red"}[mood])


def _stem(model: str) -> str:
    """A name for outputs, of the characters that any file system takes."""
    name = Path(model).stem if Path(model).exists() else model.rpartition(":")[2]
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".-") or "model"


@main.command(epilog=_MODEL)
@click.argument("model")
@shared.source
@click.option("--budget", type=shared.Number(), help="What counts as harm (default 2**-9).")
@shared.numerics
@shared.conversion
@click.option("--top", type=int, default=20, show_default=True, help="Rows to list.")
@click.option(
    "--by",
    type=click.Choice(choices.GRANULARITIES),
    default="op",
    show_default=True,
    help="List ops, or layers.",
)
@click.option(
    "--model-explorer",
    "graph",
    type=click.Path(path_type=Path),
    help="Also write the graph, with node data beside it, for Google's Model Explorer.",
)
@shared.execution
def analyze(
    model: str,
    metric: str | None,
    budget: float | None,
    numerics: str,
    as_json: bool,
    top: int,
    by: str,
    graph: Path | None,
    **options: Any,
) -> None:
    """Say which ops FP16 breaks in MODEL, and why."""
    early.check(model, options, budget, metric)
    top = choices.count(top, "--top", 0)
    conversion, execution = shared.group(Conversion, options), shared.group(Execution, options)

    bar = _loading(execution.progress)
    from ..flows import analyze as analysis
    from ..report import model_explorer, text

    if graph is not None:
        model_explorer.check_writable(graph)
    _check(metric, budget, execution.device)
    loaded, data = _load(model, options, execution.seed)
    bar.close()
    found = analysis.analyze(
        loaded,
        data,
        _metric(metric),
        budget=budget,
        numerics=numerics,
        conversion=conversion,
        execution=execution,
    )
    if graph is not None:
        model_explorer.write(found, graph)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
        return
    _say(text.analysis(found, top, by, _paint, _columns()))


def _metric(given: str | None) -> str:
    return "rel_l2" if given is None else given


def _check(metric: str | None, budget: float | None, device: str) -> None:
    """What is wrong with what was typed comes before the model is loaded."""
    from ..evaluation.metrics import resolve
    from ..source.prepare import check_device

    measure = resolve(_metric(metric), False)
    if budget is not None:
        choices.budget(budget, measure.larger_is_better)
    check_device(device)


@main.command(epilog=_MODEL)
@click.argument("model")
@shared.source
@shared.heldout
@click.option("--points", type=int, default=8, show_default=True, help="Budgets to search for.")
@shared.strategy
@shared.numerics
@shared.conversion
@click.option("--trials", type=int, help="Sets that may be tried (default 600).")
@click.option("--timeout", type=float, help="Seconds that the search may take.")
@shared.execution
@shared.storage
@shared.resume
def pareto(
    model: str,
    metric: str | None,
    points: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what error each number of FP32 ops can buy."""
    early.check(model, options, None, metric)
    points = choices.count(points, "points", 2, 1000)
    conversion, limits = shared.group(Conversion, options), shared.group(Limits, options)
    execution = shared.group(Execution, options)
    given = {name: options.pop(name) for name in ("heldout", "strategy", "numerics")}
    choices.number(given["heldout"], "heldout")

    bar = _loading(execution.progress)
    from ..flows import pareto as front
    from ..report import text
    from ..search.storage import check_storage

    check_storage(execution.storage)
    _check(metric, None, execution.device)
    loaded, data = _load(model, options, execution.seed)
    bar.close()
    found = front.pareto(
        loaded,
        data,
        _metric(metric),
        points=points,
        conversion=conversion,
        limits=limits,
        execution=execution,
        **given,
    )
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
        return
    _say(text.front(found))


@main.command(epilog=_MODEL)
@click.argument("config")
@click.argument("model")
@shared.opening
@click.option("--inputs", help="An example, where zeros will not do.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, help="The .mlpackage to write."
)
@shared.json
def apply(
    config: str,
    model: str,
    weights: str | None,
    allow_pickle: bool,
    inputs: str | None,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert MODEL with a stored CONFIG (precision.json or its directory)."""
    from ..files import written
    from ..flows import apply as applying
    from ..package import config as configs
    from ..package import emission
    from ..results.plain import counted
    from ..source import data
    from ..source.declared import declared_inputs
    from ..source.loading import load_model

    if out.suffix != ".mlpackage":
        raise InputError(f"--out {out} is no .mlpackage; give a path that ends in .mlpackage")
    check_writable(out, emission.foreign_package)
    parsed = configs.read(config)
    limits = shared.load_limits(options)
    loaded = load_model(model, weights, allow_pickle, limits)
    names, required, shapes = declared_inputs(loaded, ())
    example = None
    if inputs is not None:
        example = data.read(inputs, names, required, None, shapes, limits).samples
    converted = applying.apply(parsed, loaded, example)
    with written(out, emission.foreign_package) as scratch:
        converted.save(str(scratch))
    if as_json:
        click.echo(json.dumps({"written": str(out), "fp32_ops": len(parsed.fp32_ops)}))
        return
    count = counted(len(parsed.fp32_ops), "op")
    _say(
        f"wrote {printable(str(out))}, with {count} in FP32 as {printable(config)} has them. It "
        "was not run: mpsearch check tells whether the budget holds."
    )


@main.command(epilog=_MODEL)
@click.argument("config")
@click.argument("model")
@shared.source
@click.option(
    "--budget", type=shared.Number(), help="Largest error allowed, instead of the config's."
)
@click.option("--numerics", help="Instead of the config's, which names files no more.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML there.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a summary there.")
@click.option("--sarif", type=click.Path(path_type=Path), help="Write the lines that broke there.")
@click.pass_context
def check(
    ctx: click.Context,
    /,
    config: str,
    model: str,
    budget: float | None,
    metric: str | None,
    numerics: str | None,
    device: str,
    junit: Path | None,
    markdown: Path | None,
    sarif: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure whether CONFIG still holds for MODEL; exit 1 where it does not."""
    early.check(model, {**options, "config": config}, budget, metric)
    bar = _loading(None)
    from ..files import written
    from ..flows import check as checking
    from ..package import config as configs
    from ..report import ci, text

    parsed = configs.read(config)
    _check(metric, budget, device)
    execution = Execution(device=device, seed=parsed.execution.seed)
    loaded, data = _load(model, options, execution.seed)
    bar.close()
    report = checking.check(
        parsed,
        loaded,
        data,
        budget=budget,
        metric=metric,
        numerics=numerics,
        execution=execution,
    )
    for path, render in ((junit, ci.junit), (markdown, ci.markdown), (sarif, ci.sarif)):
        if path is not None:
            with written(path, _folder) as scratch:
                scratch.write_text(render(report, config), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _say(text.check(report, _paint, _columns()))
    ctx.exit(OK if report.holds else CHECK_FAILED)


@main.command()
@click.argument("model")
@click.option("--inputs", required=True, help=".npz keyed by input name.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, help="The .npz to write."
)
@click.option(
    "--numerics",
    type=click.Choice(choices.PROFILES),
    default="ieee",
    show_default=True,
    help="How FP16 computes.",
)
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--function", "function_name", help="Which function of a multi-function package.")
@shared.json
def run(
    model: str,
    inputs: str,
    out: Path,
    numerics: str,
    device: str,
    function_name: str | None,
    as_json: bool,
) -> None:
    """Predict with MODEL.mlpackage on any machine.

    Arrays have the model's own input shapes, or are stacked as for optimize (first axis =
    samples): then outputs are, too.
    """
    from ..flows.isolation import neutral
    from ..flows.predict import predict_file
    from ..source.prepare import check_device

    check_device(device)
    with neutral():
        names = predict_file(model, inputs, out, numerics, device, function_name)
    found = {"written": str(out), "outputs": names}
    click.echo(json.dumps(found) if as_json else printable(f"wrote {out}: {', '.join(names)}"))


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("model", required=False)
@shared.source
@shared.units
@shared.iphone
@click.option("--numerics", help="What to simulate, instead of the config's.")
@click.option("--timed/--not-timed", default=True, help="Measure time, devices and ops as well.")
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    directory: Path,
    model: str | None,
    metric: str | None,
    numerics: str | None,
    compute_units: str,
    iphone: str | None,
    timed: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run the package in DIRECTORY on a Mac or an iPhone; exit 1 where it does not hold there.

    With MODEL, what it was made from, the error is measured; without, only how far the device is
    from mpsearch's simulation.
    """
    bar = _loading(None)
    from ..device.coreml import CoreML
    from ..flows.verify import verify as verified
    from ..report import text
    from ..result import PACKAGE

    with contextlib.closing(CoreML(compute_units, iphone)) as device:
        source = str(directory / PACKAGE) if model is None else model
        loaded, data = _load(source, options, 0)
        bar.close()
        given = None if model is None else loaded
        report = verified(
            directory, device, data, given, metric=metric, numerics=numerics, timed=timed
        )
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _say(text.verified(report, _paint, _columns()))
    ctx.exit(CHECK_FAILED if report.holds is False else OK)


@main.command()
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, help="The .json to write."
)
@click.option("--name", help="Of the profile (default: what computes).")
@shared.units
@shared.iphone
def probe(out: Path, name: str | None, compute_units: str, iphone: str | None) -> None:
    """Ask a Mac, or an iPhone attached to it, how it computes in FP16.

    The .json is a numerics profile that --numerics takes on any machine.
    """
    if out.suffix != ".json":
        raise InputError(f"--out {out} is no .json; give a path that ends in .json")
    check_writable(out, _folder)
    bar = _loading(None)
    from ..device.coreml import CoreML
    from ..files import written
    from ..flows.probe import probe as asked

    with contextlib.closing(CoreML(compute_units, iphone)) as device:
        found = asked(device, name, bar.stage)
    bar.close()
    with written(out, _folder) as scratch:
        scratch.write_text(found.to_json(), encoding="utf-8")
    click.echo(printable(f"wrote {out}: {found.name}"))
    for op_type in found.unexplained:
        click.echo(f"{op_type}: what it gives fits no rule; taken as other ops", err=True)


def _folder(path: Path) -> str | None:
    return "it is a folder" if path.is_dir() else None


@main.command()
@click.argument("directory")
@shared.json
def report(directory: str, as_json: bool) -> None:
    """Write report.html anew into DIRECTORY, one that optimize wrote."""
    from ..flows.report import write

    written = write(directory)
    click.echo(json.dumps({"written": str(written)}) if as_json else f"wrote {written}")
