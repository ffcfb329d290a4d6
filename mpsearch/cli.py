"""The command line: parse, call the API, print."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from .errors import InfeasibleError, InputError, MpsearchError, VerificationError
from .files import check_writable, foreign, printable, temporary_room

_OK, _CHECK_FAILED, _BAD_INPUT, _INFEASIBLE, _INTERRUPTED = 0, 1, 2, 3, 130
_EXIT = {
    "met": _OK,
    "fp16_suffices": _OK,
    "infeasible": _INFEASIBLE,
    "interrupted": _INTERRUPTED,
    "unwritten": _BAD_INPUT,
}

_MODEL = "MODEL is a TorchScript file, a .pt2, a pickled module (with --allow-pickle), an FP32 \
.mlpackage, or package.module:factory."


class _Group(click.Group):
    """Ends every error in one line and its exit code, and leaves nothing temporary behind."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        with _signals():
            sys.exit(self._code(*args, **kwargs))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # here, before click makes lines of its own of it
            ctx.exit(_fail("interrupted", "before anything was found", _INTERRUPTED))

    def _code(self, *args: Any, **kwargs: Any) -> int:
        try:
            return int(super().main(*args, **kwargs) or _OK)
        except click.ClickException as error:
            return _fail("error", error.format_message(), _BAD_INPUT)
        except InfeasibleError as error:
            return _fail("error", str(error), _INFEASIBLE)
        except VerificationError as error:
            return _fail("defect", str(error), _BAD_INPUT)
        except MpsearchError as error:
            return _fail("error", str(error), _BAD_INPUT)
        except OSError as error:
            if isinstance(error, BrokenPipeError):  # stdout is closed, as by head
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return _OK
            return _fail("error", f"the system refuses: {error}", _BAD_INPUT)
        except Exception as error:
            if os.environ.get("MPSEARCH_TRACEBACK"):
                raise
            said = f"{type(error).__name__}: {error}; MPSEARCH_TRACEBACK=1 shows where. Report it"
            return _fail("defect", said, _BAD_INPUT)


def _fail(kind: str, message: str, code: int) -> int:
    click.echo(f"{kind}: {printable(' '.join(message.split()))}", err=True)
    return code


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does, unless they are ignored (nohup)."""
    before: dict[int, Any] = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        mine = threading.current_thread() is threading.main_thread()
        if number is not None and mine and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mpsearch")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Find the fewest ops that must stay FP32 for a model to work in Core ML's FP16."""
    ctx.with_resource(temporary_room())


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def _source(command: Any) -> Any:
    """Options that say what the model and the data are."""
    for option in reversed(
        [
            click.option(
                "--weights",
                multiple=True,
                help="State dict for package.module:factory. With optimize also fp16 or int8: "
                "how weights are stored where the budget allows.",
            ),
            click.option("--allow-pickle", is_flag=True, help="Load pickles, which can run code."),
            click.option("--inputs", help=".npz, .pt, .safetensors or package.module:callable."),
            click.option(
                "--targets",
                help="What a task metric compares with (same formats), or pairs: the callable of "
                "--inputs gives (sample, target).",
            ),
            click.option("--random", "random_", type=int, help="Draw N random samples instead."),
            click.option(
                "--shape",
                multiple=True,
                metavar="NAME=1,3,224,224",
                help="Shape of an input for --random, where the model does not say.",
            ),
            click.option("--metric", default=None, help="Error measure (default rel_l2)."),
            click.option("--device", default="cpu", show_default=True, help="A torch device."),
            _json,
        ]
    ):
        command = option(command)
    return command


def _load(model: str, options: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """The model and its data; takes what says so out of ``options``."""
    files, allow_pickle = options.pop("weights"), options.pop("allow_pickle")
    inputs, targets = options.pop("inputs"), options.pop("targets")
    random_, shape = options.pop("random_"), options.pop("shape")

    from . import options as checks
    from .source import data
    from .source.loading import load_model
    from .source.prepare import declared_inputs

    if (inputs is None) == (random_ is None):
        raise InputError("give calibration data with --inputs, or --random N to do without")
    if random_ is not None:
        random_ = checks.count(random_, "--random")
        if targets is not None:
            raise InputError("--targets goes with --inputs; random samples have none")
    seed = checks.seed(seed)
    if len(files) > 1:
        raise InputError(f"--weights {files[1]!r}: there is a state dict already, {files[0]!r}")
    loaded = load_model(model, files[0] if files else None, allow_pickle)
    names, required, shapes = declared_inputs(loaded, shape)
    if inputs is not None:
        return loaded, data.read(inputs, names, required, targets, shapes)
    assert random_ is not None
    return loaded, data.drawn(shapes, names, required, random_, seed)


@main.command(epilog=_MODEL)
@click.argument("model")
@click.option("--budget", type=float, required=True, help="Largest error allowed.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Directory to write.")
@_source
@click.option("--strategy", default="greedy-optuna", show_default=True)
@click.option("--numerics", default="ieee", show_default=True, help="ieee, ane, strict or several.")
@click.option("--target", default="iOS17", show_default=True, help="iOS15 to iOS18.")
@click.option("--trials", type=int, help="Evaluations allowed (default 300).")
@click.option("--timeout", type=float, help="Seconds allowed.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--keep-fp32", multiple=True, metavar="PIN", help="type:softmax, layer:enc.3.*, op:x*"
)
@click.option("--keep-fp16", multiple=True, metavar="PIN", help="The same, to stay FP16.")
@click.option("--by", default="op", show_default=True, help="Decide by op or by layer.")
@click.option(
    "--minimise", default="ops", show_default=True, help="ops, casts, bytes or flops in FP32."
)
@click.option("--prove", is_flag=True, help="Try all smaller sets as well, where they are few.")
@click.option("--forbid-overflow", is_flag=True, help="Leave no op in FP16 that overflows.")
@click.option(
    "--hazards", default="pin", show_default=True, help="Known runtime faults: pin, warn or off."
)
@click.option("--storage", help="Keep Optuna's study there, e.g. sqlite:///study.db.")
@click.option("--heldout", type=float, default=0.25, show_default=True, help="Share kept aside.")
@click.option("--io-dtype", help="fp32 or fp16 inputs and outputs (default: as the model has).")
@click.option("--state", "states", multiple=True, help="A buffer that is a state (iOS18).")
@click.option("--cache-bytes", type=int, help="Bytes of results to remember.")
@click.option("--progress/--no-progress", default=None, help="Show a bar (default: on a terminal).")
@click.option("--verbose", "-v", is_flag=True, help="Show what each pass did, on stderr.")
@click.pass_context
def optimize(
    ctx: click.Context,
    /,
    model: str,
    budget: float,
    out: Path | None,
    metric: str | None,
    device: str,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Search MODEL and write the mixed-precision package."""
    target = out or Path(_stem(model) + "-mixed")
    check_writable(target, foreign)

    from . import options as checks
    from .ending import Ending
    from .flows import optimize as api
    from .package.weights import STORAGES
    from .report import text

    given = options["weights"]
    storages = [w for w in given if w in STORAGES]
    options["weights"] = tuple(w for w in given if w not in STORAGES)
    if len(storages) > 1:
        raise InputError(f"--weights is given as {' and as '.join(storages)}; choose one")
    loaded, data = _load(model, options, options["seed"])
    options["weights"] = storages[0] if storages else None
    timeout = options.pop("timeout")
    ending = Ending(None if timeout is None else checks.positive(timeout, "timeout", "seconds"))
    with ending.listening():
        result = api.optimize(
            loaded,
            data,
            budget,
            "rel_l2" if metric is None else metric,
            device=device,
            name=model,
            ending=ending,
            **options,
        )
        written, lost = _save(result, target)
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    else:
        _say(text.summary(result, written, _paint))
    if verbose:
        click.echo(printable(text.passes(result.history)), err=True)
    if lost is not None:
        raise lost
    if written is not None and written != target:
        said = printable(f"note: {target} holds a better result, which was kept")
        click.echo(said, err=True)
    ctx.exit(_EXIT[result.status])


def _save(result: Any, target: Path) -> tuple[Path | None, InputError | None]:
    """Where the result was written, and what went wrong; what cannot be written is shown."""
    if result.status == "infeasible":
        return None, None
    try:
        return result.save(target), None
    except InputError as error:
        return None, error


def _say(message: str) -> None:
    """Print to stdout, in colour only on a terminal, and never where NO_COLOR is set."""
    click.echo(message, color=False if os.environ.get("NO_COLOR") else None)


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
@_source
@click.option("--budget", type=float, help="What counts as harm (default 2**-9).")
@click.option("--numerics", default="ieee", show_default=True, help="ieee, ane, strict or several.")
@click.option("--target", default="iOS17", show_default=True, help="iOS15 to iOS18.")
@click.option("--io-dtype", help="fp32 or fp16 inputs and outputs (default: as the model has).")
@click.option("--state", "states", multiple=True, help="A buffer that is a state (iOS18).")
@click.option("--top", type=int, default=20, show_default=True, help="Rows to list.")
@click.option("--by", default="op", show_default=True, help="List by op or by layer.")
@click.option(
    "--model-explorer",
    "graph",
    type=click.Path(path_type=Path),
    help="Also write the graph, with node data beside it, for Google's Model Explorer.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--progress/--no-progress", default=None, help="Show a bar (default: on a terminal).")
def analyze(
    model: str,
    metric: str | None,
    device: str,
    as_json: bool,
    top: int,
    by: str,
    graph: Path | None,
    **options: Any,
) -> None:
    """Say which ops FP16 breaks in MODEL, and why."""
    from . import options as checks
    from .flows import analyze as analysis
    from .report import model_explorer, text

    if by not in ("op", "layer"):
        raise InputError(f"--by {by!r} is not known; choose op or layer")
    top = checks.count(top, "--top", 0)
    if graph is not None:
        model_explorer.check_writable(graph)
    loaded, data = _load(model, options, options["seed"])
    measure = "rel_l2" if metric is None else metric
    found = analysis.analyze(loaded, data, measure, device=device, **options)
    if graph is not None:
        model_explorer.write(found, graph)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
        return
    _say(text.analysis(found, top, by, _paint))


@main.command(epilog=_MODEL)
@click.argument("model")
@_source
@click.option("--points", type=int, default=8, show_default=True, help="Budgets to search for.")
@click.option("--strategy", default="greedy-optuna", show_default=True)
@click.option("--numerics", default="ieee", show_default=True, help="ieee, ane, strict or several.")
@click.option("--target", default="iOS17", show_default=True, help="iOS15 to iOS18.")
@click.option("--trials", type=int, default=600, show_default=True, help="Evaluations allowed.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--heldout", type=float, default=0.25, show_default=True, help="Share kept aside.")
@click.option("--progress/--no-progress", default=None, help="Show a bar (default: on a terminal).")
def pareto(
    model: str,
    metric: str | None,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what error each number of FP32 ops can buy."""
    from .flows import pareto as front
    from .report import text

    loaded, data = _load(model, options, options["seed"])
    measure = "rel_l2" if metric is None else metric
    found = front.pareto(loaded, data, measure, device=device, **options)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
        return
    _say(text.front(found))


@main.command(epilog=_MODEL)
@click.argument("config")
@click.argument("model")
@click.option("--weights", help="State dict for package.module:factory.")
@click.option("--allow-pickle", is_flag=True, help="Load pickles, which can run code.")
@click.option("--inputs", help="An example, where zeros will not do.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, help="The .mlpackage to write."
)
@_json
def apply(
    config: str,
    model: str,
    weights: str | None,
    allow_pickle: bool,
    inputs: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Convert MODEL with a stored CONFIG (precision.json or its directory)."""
    from .files import written
    from .flows import stored
    from .package import config as configs
    from .package import emission
    from .source import data
    from .source.loading import load_model
    from .source.prepare import declared_inputs

    if out.suffix != ".mlpackage":
        raise InputError(f"--out {out} is no .mlpackage; give a path that ends in .mlpackage")
    check_writable(out, emission.foreign_package)
    parsed = configs.read(config)
    loaded = load_model(model, weights, allow_pickle)
    names, required, shapes = declared_inputs(loaded, ())
    example = None if inputs is None else data.read(inputs, names, required, None, shapes).samples
    converted = stored.apply(parsed, loaded, example)
    with written(out, emission.foreign_package) as scratch:
        converted.save(str(scratch))
    click.echo(json.dumps({"written": str(out)}) if as_json else f"wrote {out}")


@main.command(epilog=_MODEL)
@click.argument("config")
@click.argument("model")
@_source
@click.option("--budget", type=float, help="Instead of the config's.")
@click.pass_context
def check(
    ctx: click.Context,
    /,
    config: str,
    model: str,
    budget: float | None,
    metric: str | None,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure whether CONFIG still holds for MODEL; exit 1 where it does not."""
    from .flows import stored
    from .package import config as configs
    from .report import text

    parsed = configs.read(config)
    loaded, data = _load(model, options, parsed.seed)
    report = stored.check(parsed, loaded, data, budget=budget, metric=metric, device=device)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _say(text.check(report, _paint))
    ctx.exit(_OK if report.holds else _CHECK_FAILED)


@main.command()
@click.argument("model")
@click.option("--inputs", required=True, help=".npz keyed by input name.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, help="The .npz to write."
)
@click.option("--numerics", default="ieee", show_default=True, help="ieee, ane, strict or wide.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--function", "function_name", help="Which function of a multi-function package.")
@_json
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

    Arrays have the model's own input shapes, or one more axis in front: one prediction for each
    of its rows.
    """
    from .flows.predict import predict_file
    from .flows.surroundings import neutral
    from .source.prepare import check_device

    check_device(device)
    with neutral():
        names = predict_file(model, inputs, out, numerics, device, function_name)
    found = {"written": str(out), "outputs": names}
    click.echo(json.dumps(found) if as_json else printable(f"wrote {out}: {', '.join(names)}"))


@main.command()
@click.argument("directory")
@_json
def report(directory: str, as_json: bool) -> None:
    """Write report.html anew into DIRECTORY, one that optimize wrote."""
    from .report import html

    written = html.write(directory)
    click.echo(json.dumps({"written": str(written)}) if as_json else f"wrote {written}")


if __name__ == "__main__":
    main()
