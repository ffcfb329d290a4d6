"""The command line: parse, call the API, print."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .errors import InfeasibleError, MpsearchError, VerificationError

_OK, _CHECK_FAILED, _BAD_INPUT, _INFEASIBLE, _INTERRUPTED = 0, 1, 2, 3, 130
_EXIT = {
    "met": _OK,
    "fp16_suffices": _OK,
    "infeasible": _INFEASIBLE,
    "interrupted": _INTERRUPTED,
}

_MODEL = "MODEL is a TorchScript file, a .pt2, a pickled module (with --allow-pickle), an FP32 \
.mlpackage, or package.module:factory."


class _Group(click.Group):
    """Ends every error of ours in one line and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MpsearchError as error:
            code = _INFEASIBLE if isinstance(error, InfeasibleError) else _BAD_INPUT
            kind = "defect" if isinstance(error, VerificationError) else "error"
            click.echo(f"{kind}: {' '.join(str(error).split())}", err=True)
            ctx.exit(code)
        except KeyboardInterrupt:
            click.echo("interrupted before anything was found", err=True)
            ctx.exit(_INTERRUPTED)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mpsearch")
def main() -> None:
    """Find the fewest ops that must stay FP32 for a model to work in Core ML's FP16."""
    # Models and metrics may be named as package.module:name next to where the user stands.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _source(command: Any) -> Any:
    """Options that say what the model and the data are."""
    for option in reversed(
        [
            click.option("--weights", help="State dict for package.module:factory."),
            click.option("--allow-pickle", is_flag=True, help="Load pickles, which can run code."),
            click.option("--inputs", help=".npz, .pt, .safetensors or package.module:callable."),
            click.option("--targets", help="What a task metric compares with (same formats)."),
            click.option("--random", "random_", type=int, help="Draw N random samples instead."),
            click.option(
                "--shape",
                multiple=True,
                metavar="NAME=1,3,224,224",
                help="Shape of an input for --random, where the model does not say.",
            ),
            click.option("--metric", default=None, help="Error measure (default rel_l2)."),
            click.option("--device", default="cpu", show_default=True, help="A torch device."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout."),
        ]
    ):
        command = option(command)
    return command


def _load(model: str, options: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """The model and its data; takes what says so out of ``options``."""
    weights, allow_pickle = options.pop("weights"), options.pop("allow_pickle")
    inputs, targets = options.pop("inputs"), options.pop("targets")
    random_, shape = options.pop("random_"), options.pop("shape")

    from . import data
    from .errors import InputError
    from .loading import load_model
    from .prepare import declared_inputs

    if (inputs is None) == (random_ is None):
        raise InputError("give calibration data with --inputs, or --random N to do without")
    loaded = load_model(model, weights, allow_pickle)
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
    **options: Any,
) -> None:
    """Search MODEL and write the mixed-precision package."""
    from . import api
    from .emission import check_writable

    target = out or Path(_stem(model) + "-mixed")
    check_writable(target)
    loaded, data = _load(model, options, options["seed"])
    result = api.optimize(
        loaded, data, budget, metric or "rel_l2", device=device, name=model, **options
    )
    written = None if result.status == "infeasible" else result.save(target)
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    else:
        click.echo(_summary(result, written))
    ctx.exit(_EXIT[result.status])


def _stem(model: str) -> str:
    return model.rpartition(":")[2] if not Path(model).exists() else Path(model).stem


def _value(error: float | None) -> str:
    return "-" if error is None else f"{error:.3g}"


def _bound(result: Any) -> str:
    if result.proven:
        return " (proven least)"
    return f" (at least {result.lower_bound})" if result.lower_bound else ""


def _summary(result: Any, written: Path | None) -> str:
    lines = [result.explanation, ""]
    lines += [
        f"  error  all FP16      {_value(result.error_fp16)}",
        f"         all FP32      {_value(result.error_fp32)}",
    ]
    if written is not None:
        lines += [
            f"         this package  {_value(result.error)}   ({result.metric}, "
            f"budget {result.budget:g})",
            f"         held-out      {_value(result.heldout_error)}",
            f"  cost   {len(result.kept)} of {result.candidate_ops} ops in FP32"
            + _bound(result)
            + f", {result.casts} casts",
        ]
    lines.append(
        f"  search {result.evaluations} evaluations, {result.seconds:.1f} s, "
        f"{result.forward_equivalents:.1f} forwards"
    )
    if result.kept:
        lines += ["", *_table(result.kept)]
    for note in result.notes:
        lines += ["", *textwrap.wrap(f"note: {note}", 78)]
    if written is not None:
        lines += ["", f"wrote {written}/"]
    return "\n".join(lines)


def _table(kept: Any) -> list[str]:
    """Ops kept in FP32, in 80 columns."""
    rows = [("op", "type", "layer", "alone")]
    rows += [
        (
            op.name,
            op.type,
            op.layer or "-",
            "inf" if op.sensitivity is None else f"{op.sensitivity:.2g}",
        )
        for op in kept
    ]
    return _columns(rows, (26, 20, 26, 8))


@main.command(epilog=_MODEL)
@click.argument("model")
@_source
@click.option("--budget", type=float, help="What counts as harm (default 2**-9).")
@click.option("--numerics", default="ieee", show_default=True, help="ieee, ane, strict or several.")
@click.option("--target", default="iOS17", show_default=True, help="iOS15 to iOS18.")
@click.option("--io-dtype", help="fp32 or fp16 inputs and outputs (default: as the model has).")
@click.option("--state", "states", multiple=True, help="A buffer that is a state (iOS18).")
@click.option("--top", type=int, default=20, show_default=True, help="Ops to list.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--progress/--no-progress", default=None, help="Show a bar (default: on a terminal).")
def analyze(
    model: str,
    metric: str | None,
    device: str,
    as_json: bool,
    top: int,
    **options: Any,
) -> None:
    """Say which ops FP16 breaks in MODEL, and why."""
    from . import analysis

    loaded, data = _load(model, options, options["seed"])
    found = analysis.analyze(loaded, data, metric or "rel_l2", device=device, **options)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
        return
    for line in textwrap.wrap(found.explanation, 78):
        click.echo(line)
    click.echo(f"\n  error  all FP16  {_value(found.error_fp16)}")
    click.echo(f"         all FP32  {_value(found.error_fp32)}   ({found.metric})")
    rows = [
        (
            op.name,
            op.type,
            op.layer or "-",
            op.verdict,
            _value(op.sensitivity),
            "-" if op.range is None else _value(op.range.largest),
        )
        for op in found.culprits
    ]
    if rows:
        header = ("op", "type", "layer", "verdict", "alone", "largest")
        click.echo("")
        for line in _columns([header, *rows[:top]], (18, 14, 16, 12, 7, 8)):
            click.echo(line)
        if len(rows) > top:
            click.echo(f"  and {len(rows) - top} more; --top {len(rows)} lists all")
    for note in found.notes:
        click.echo("\n" + "\n".join(textwrap.wrap(f"note: {note}", 78)))


def _columns(rows: Sequence[tuple[str, ...]], limits: tuple[int, ...]) -> list[str]:
    """Rows in columns no wider than their limits; what is cut loses its front."""
    widths = [min(max(len(row[i]) for row in rows), limit) for i, limit in enumerate(limits)]
    return ["  " + "  ".join(map(_fit, row, widths)).rstrip() for row in rows]


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else "..." + text[-(width - 3) :]


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
    from . import front

    loaded, data = _load(model, options, options["seed"])
    found = front.pareto(loaded, data, metric or "rel_l2", device=device, **options)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
        return
    click.echo(
        f"  FP32 ops  {found.metric:>10}    held-out   casts   (of {found.candidate_ops} ops)"
    )
    for point in found.points:
        click.echo(
            f"  {len(point.fp32_ops):8}  {_value(point.error):>10}  "
            f"{_value(point.heldout_error):>10}  {point.casts:6}"
        )
    click.echo(f"  all FP32  {_value(found.error_fp32):>10}")


@main.command(epilog=_MODEL)
@click.argument("config")
@click.argument("model")
@click.option("--weights", help="State dict for package.module:factory.")
@click.option("--allow-pickle", is_flag=True, help="Load pickles, which can run code.")
@click.option("--inputs", help="An example, where zeros will not do.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), required=True, help="The .mlpackage to write."
)
def apply(
    config: str, model: str, weights: str | None, allow_pickle: bool, inputs: str | None, out: Path
) -> None:
    """Convert MODEL with a stored CONFIG (precision.json or its directory)."""
    from . import config as configs
    from . import data, emission, stored
    from .errors import InputError
    from .loading import load_model
    from .prepare import declared_inputs

    if out.suffix != ".mlpackage":
        raise InputError(f"--out {out} is no .mlpackage; give a path that ends in .mlpackage")
    parsed = configs.read(config)
    loaded = load_model(model, weights, allow_pickle)
    names, required, shapes = declared_inputs(loaded, ())
    example = None if inputs is None else data.read(inputs, names, required, None, shapes).samples
    converted = stored.apply(parsed, loaded, example)
    with emission.directory(out) as scratch:
        converted.save(str(scratch))
    click.echo(f"wrote {out}")


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
    from . import config as configs
    from . import stored

    parsed = configs.read(config)
    loaded, data = _load(model, options, parsed.seed)
    report = stored.check(parsed, loaded, data, budget=budget, metric=metric, device=device)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        verdict = "holds" if report.holds else "does not hold"
        click.echo(
            f"the config {verdict}: error {_value(report.error)}, budget {report.budget:g} "
            f"({report.metric}; all FP16 {_value(report.error_fp16)}, "
            f"all FP32 {_value(report.error_fp32)})"
        )
        for op in report.unmatched:
            click.echo(f"not in the model: {op.name} ({op.type}, {op.layer or 'no layer'})")
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
def run(
    model: str, inputs: str, out: Path, numerics: str, device: str, function_name: str | None
) -> None:
    """Predict with MODEL.mlpackage on any machine.

    Arrays have the model's own input shapes, or one more axis in front: one prediction for each
    of its rows.
    """
    from .batch import predict_file
    from .prepare import check_device

    check_device(device)
    names = predict_file(model, inputs, out, numerics, device, function_name)
    click.echo(f"wrote {out}: {', '.join(names)}")


if __name__ == "__main__":
    main()
