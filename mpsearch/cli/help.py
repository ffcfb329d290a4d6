"""How ``--help`` shows options: in groups, those that most people need first."""

from __future__ import annotations

from typing import Any

import click

#: The groups, and the options of each by their Python names.
_GROUPS = {
    "Input": "inputs targets random_ shape function_name weights allow_pickle load_seconds "
    "load_gib",
    "Accuracy": "budget metric heldout coverage confidence objective numerics",
    "Conversion": "target io_dtype batches states weight_dtype rescale rewrite",
    "Search": "keep_fp32 keep_fp16 by minimize tolerate_overflow hazards strategy trials timeout "
    "prove points",
    "Output": "out as_json verbose top graph junit markdown sarif name",
    "Execution": "device jobs cluster backend compute_units iphone storage resume seed cache_bytes "
    "timed progress",
}
#: What most people need.
_FIRST = frozenset(
    ["inputs", "budget", "metric", "target", "rescale", "keep_fp32", "timeout", "out"]
)
_ALL = "help_all"


class Command(click.Command):
    """A command whose ``--help`` shows few options, and whose ``--help-all`` shows all."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        if len(self.params) > len(_FIRST):
            self.params.append(
                click.Option(
                    ["--help-all"],
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=_show_all,
                    help="Show all options and exit.",
                )
            )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, by group."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        folded = any(p.name == _ALL for p in options) and not ctx.meta.get(_ALL)
        left = {p.name: p for p in options if not folded or p.name in _FIRST}
        for title, names in _GROUPS.items():
            rows = [left.pop(name).get_help_record(ctx) for name in names.split() if name in left]
            _section(formatter, title, rows)
        _section(formatter, "Other", [p.get_help_record(ctx) for p in left.values()])
        if folded:
            formatter.write_paragraph()
            formatter.write_text(f"{ctx.command_path} --help-all shows all {len(options)} options.")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what MODEL is, and examples."""
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.splitlines():
                    formatter.write(f"  {line}\n")


def _section(
    formatter: click.HelpFormatter, title: str, rows: list[tuple[str, str] | None]
) -> None:
    shown = [row for row in rows if row is not None]
    if shown:
        with formatter.section(title):
            formatter.write_dl(shown)


def _show_all(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()
