"""Options that commands share: what they are called, what they take, what they offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
from click.shell_completion import CompletionItem

from .. import options as choices

if TYPE_CHECKING:
    from ..isolated import LoadLimits

G = TypeVar("G", bound=msgspec.Struct)


class _Named(click.ParamType):
    """Words that are offered, and checked where they are used: other values may stand for code."""

    def __init__(self, name: str, known: Callable[[], Sequence[str]]) -> None:
        self.name = name
        self._known = known

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(self._known())}]"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(word) for word in self._known() if word.startswith(incomplete)]


class Number(click.ParamType):
    """A number, or a percentage: 0.1% is 0.001."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        text = str(value).strip()
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value!r} is no number; give one such as 0.001 or 0.1%")


class _Numerics(_Named):
    """Profiles, several with commas between them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        choices.profile_names(str(value))
        return value


class _Strategy(_Named):
    """An installed strategy."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value not in self._known():
            self.fail(choices.unknown_strategy(str(value), self._known()))
        return value


json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
numerics = click.option(
    "--numerics",
    type=_Numerics("numerics", lambda: choices.PROFILES),
    default="ieee",
    show_default=True,
    help="How FP16 computes; several with commas, or a file of mpsearch probe.",
)
units = click.option(
    "--compute-units",
    type=click.Choice(choices.COMPUTE_UNITS),
    default="CPU_AND_NE",
    show_default=True,
    help="Which units of a Mac or an iPhone may compute.",
)
iphone = click.option(
    "--iphone",
    metavar="TEAM",
    help="On the iPhone attached to this Mac, with apps signed by this development team.",
)
strategy = click.option(
    "--strategy",
    type=_Strategy("strategy", choices.strategy_names),
    default="greedy-optuna",
    show_default=True,
    help="How to search.",
)
heldout = click.option(
    "--heldout",
    type=Number(),
    default=0.3,
    show_default=True,
    help="Share of the samples that the search does not see.",
)


def options(*options: Any) -> Callable[[Any], Any]:
    """Several options as one decorator."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


#: How files are opened.
opening = options(
    click.option("--weights", help="State dict to load into the module of a factory."),
    click.option("--allow-pickle", is_flag=True, help="Load pickles. They can run any code."),
    click.option(
        "--load-seconds",
        type=float,
        default=5.0,
        show_default=True,
        help="Processor time for opening a file, in seconds, beyond what its size explains.",
    ),
    click.option(
        "--load-gib",
        type=float,
        default=1.0,
        show_default=True,
        help="Memory for opening a file, in GiB, beyond what its size explains.",
    ),
)
#: What the model and the data are.
source = options(
    opening,
    click.option("--inputs", help="Samples: .npz, .pt, .safetensors or package.module:callable."),
    click.option(
        "--targets",
        help="What a task metric compares with: a file, or pairs where --inputs gives (sample, "
        "target).",
    ),
    click.option(
        "--random",
        "random_",
        type=int,
        help="Draw so many inputs at random (default without --inputs: 16).",
    ),
    click.option(
        "--shape",
        multiple=True,
        metavar="NAME=1,3,224,224",
        help="Shape of an input to draw; integers as NAME=1,8:int.",
    ),
    click.option(
        "--metric",
        type=_Named("metric", lambda: choices.METRICS),
        help="How errors are measured, or package.module:callable (default rel_l2).",
    ),
    json,
)
conversion = options(
    click.option(
        "--target",
        type=click.Choice(choices.TARGETS),
        default="iOS17",
        show_default=True,
        help="Minimum deployment target.",
    ),
    click.option(
        "--io-dtype",
        type=click.Choice(choices.IO_DTYPES),
        help="Dtype of float inputs and outputs (default: as the model has).",
    ),
    click.option(
        "--batches",
        type=click.Choice(choices.BATCHES),
        default="apart",
        show_default=True,
        help="Whether rows of a batch are samples of their own.",
    ),
    click.option(
        "--state", "states", multiple=True, help="Name of a buffer that is a state (from iOS18 on)."
    ),
)
execution = options(
    click.option("--device", default="cpu", show_default=True, help="Torch device that computes."),
    click.option("--cache-bytes", type=int, help="Limit for remembered results, in bytes."),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of all that is random."
    ),
    click.option(
        "--progress/--no-progress",
        default=None,
        help="Show a progress bar (default: on a terminal).",
    ),
)
jobs = click.option(
    "--jobs", type=int, default=1, show_default=True, help="Processes that evaluate sets."
)
cluster = click.option(
    "--cluster",
    metavar="WHERE",
    help="Dask cluster that helps: tcp://host:8786, or local:4.",
)
backend = click.option(
    "--backend",
    type=click.Choice(choices.BACKENDS),
    default="executor",
    show_default=True,
    help="What runs sets: the executor, or Core ML on a Mac.",
)
resume = click.option("--resume", is_flag=True, help="Go on from what an earlier run evaluated.")
storage = click.option(
    "--storage",
    metavar="URL",
    help="Where to store evaluations: sqlite:///study.db, postgresql://..., journal:study.log.",
)


def load_limits(options: dict[str, Any]) -> LoadLimits:
    """The limits for opening files, taken out of what was typed."""
    from ..isolated import LoadLimits

    seconds, gib = options.pop("load_seconds"), options.pop("load_gib")
    return LoadLimits(
        choices.positive(seconds, "--load-seconds", "seconds"),
        choices.positive(gib, "--load-gib", "GiB"),
    )


def group(kind: type[G], options: dict[str, Any]) -> G:
    """A group of options, taken out of what was typed."""
    names = [name for name in kind.__struct_fields__ if name in options]
    return kind(**{name: options.pop(name) for name in names})
