"""Draws a run: a command, a model, a source, and every option; and knows which are refused.

A run is a function of its seed alone. Most options are left out or valid. Some pairs are refused,
and now and then one thing is wrong on purpose: :func:`expected` gives the words of the refusal.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mpsearch import options as choices
from mpsearch.options import IN_DB

from .models import ARCHITECTURES

SOURCES = ("module", "pt", "pt2", "package", "factory", "bf16", "fp16")
COMMANDS = ("optimize", "analyze", "pareto", "check", "apply")
#: The files that the shell takes samples from; in Python, what holds them.
FILES = ("npz", "pt", "safetensors", "callable")
FORMS = ("list", "tuples", "batch", "loader")
#: Functions as metrics: without targets, and with.
FUNCTIONS = ("worst", "agreement")

#: Types and a layer that each model has, for pins.
PINS = {
    "text": ("type:softmax", "type:linear", "layer:norms.*", "type:gelu"),
    "vision": ("type:conv", "type:linear", "layer:head", "type:relu6"),
    "unet": ("type:conv", "type:conv_transpose", "layer:norm", "type:si*"),
    "audio": ("type:linear", "type:log", "layer:head", "type:conv"),
    "llama": ("type:softmax", "type:linear", "layer:norms.*", "type:matmul"),
    "detector": ("type:conv", "type:sigmoid", "layer:boxes", "type:exp"),
    "vae": ("type:conv", "type:softmax", "layer:attention.*", "type:tanh"),
    "points": ("type:conv", "type:exp", "layer:head", "type:linear"),
    "states": ("type:softmax", "type:linear", "layer:wide", "type:matmul"),
    "ints": ("type:linear", "type:softplus", "layer:last", "type:sin"),
}


@dataclass(frozen=True)
class Run:
    """What is run.

    Attributes
    ----------
    shell
        Whether through the command line; in Python otherwise.
    weights
        The seed of the model's weights.
    source
        One of :data:`SOURCES`.
    variant
        Which of a source's kinds: a number that the kinds are counted by.
    samples
        How many.
    form
        How the samples are given: one of :data:`FORMS`, and one of :data:`FILES` in the shell.
    budget
        Relative to the outputs.
    options
        By the name that they have in Python, those that are not left out.
    made
        For ``check`` and ``apply``: the options of the search whose result they take.
    wrong
        The name of what is wrong on purpose (:data:`WRONG`); empty otherwise.
    """

    seed: int
    command: str
    architecture: str
    weights: int
    source: str
    variant: int
    shell: bool
    samples: int
    form: str
    budget: float
    options: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    wrong: str = ""

    @property
    def searched(self) -> Run:
        """For ``check`` and ``apply``: the search whose result they take."""
        return replace(self, command="optimize", shell=False, options=self.made, wrong="")

    def get(self, name: str, default: Any = None) -> Any:
        """An option's value."""
        return self.options.get(name, default)

    @property
    def target(self) -> str:
        """The deployment target."""
        return str(self.get("target", "iOS17"))

    @property
    def has_layers(self) -> bool:
        """Whether the source keeps the layers of its ops: a package of coremltools' does not."""
        return self.source != "package" or self.variant % 2 == 0


def draw(seed: int) -> Run:
    """The run of a seed."""
    chance = random.Random(seed)
    command = chance.choices(COMMANDS, (10, 3, 2, 3, 3))[0]
    architecture = chance.choice(list(ARCHITECTURES))
    kept = ARCHITECTURES[architecture].states
    source = chance.choice([s for s in SOURCES if not (kept and s in ("pt2", "package"))])
    shell = chance.random() < 0.5
    run = Run(
        seed=seed,
        command=command,
        architecture=architecture,
        weights=chance.randrange(1000),
        source=source,
        variant=chance.randrange(8),
        shell=shell,
        samples=chance.randint(3, 8),
        form=chance.choice(FILES if shell else FORMS),
        budget=10 ** chance.uniform(-4, -1),
    )
    if run.form in ("batch", "loader") and (kept or source in ("pt2", "package")):
        run = replace(run, form="list")
    options = {
        name: value for name, how in _TABLE.items() if (value := how(chance, run)) is not None
    }
    run = replace(run, options={k: v for k, v in options.items() if k in _taken(run)})
    run = replace(run, options=_completed(run))
    if command in ("check", "apply"):
        run = replace(run, made=_made(run, options))
    if chance.random() < 0.15:
        fitting = [name for name, wrong in WRONG.items() if wrong.fits(run)]
        run = WRONG[chance.choice(fitting)].into(run, fitting)
    return run


# --- options --------------------------------------------------------------------------------

Draw = Callable[[random.Random, Run], Any]


def _some(share: float, values: Any) -> Draw:
    """One of the values with this chance; None, left out, otherwise."""
    return lambda chance, run: chance.choice(list(values)) if chance.random() < share else None


def _pins(chance: random.Random, run: Run) -> Any:
    known = PINS[run.architecture]
    return (chance.choice(known),) if chance.random() < 0.15 else None


def _trials(chance: random.Random, run: Run) -> Any:
    return chance.randint(5, 60)


def _profiles(chance: random.Random, run: Run) -> Any:
    count = chance.choices((0, 1, 2, 3), (5, 10, 3, 1))[0]
    found = chance.sample(choices.PROFILES, count)
    if "strict" in found and chance.random() < 0.5:
        found.remove("strict")  # it adds one by one, and takes as long as all else together
    return ",".join(found) or None


def _metric(chance: random.Random, run: Run) -> Any:
    known = [*choices.METRICS, *FUNCTIONS]
    return chance.choice(known) if chance.random() < 0.6 else None


_TABLE: dict[str, Draw] = {
    "target": _some(0.5, choices.TARGETS),
    "io_dtype": _some(0.3, choices.IO_DTYPES),
    "batches": _some(0.3, choices.BATCHES),
    "weight_dtype": _some(0.25, choices.WEIGHT_DTYPES),
    "rescale": _some(0.4, choices.RESCALED),
    "rewrite": _some(0.3, [True]),
    "keep_fp32": _pins,
    "keep_fp16": _pins,
    "by": _some(0.25, choices.GRANULARITIES),
    "minimize": _some(0.4, choices.MINIMIZED),
    "objective": _some(0.3, choices.OBJECTIVES),
    "coverage": _some(0.2, (0.5, 0.9, 0.999)),
    "confidence": _some(0.2, (0.5, 0.9, 0.999)),
    "tolerate_overflow": _some(0.2, [True]),
    "hazards": _some(0.3, choices.HAZARD_ACTIONS),
    "trials": _trials,
    "timeout": _some(0.08, (0.2, 1.0, 3.0)),
    "prove": _some(0.05, [True]),
    "cache_bytes": _some(0.15, (0, 1 << 16, 1 << 28)),
    "seed": _some(0.3, (1, 7, 2**32 - 1)),
    "storage": _some(0.12, ("sqlite:///study.db", "journal:study.log")),
    "resume": _some(0.06, [True]),
    "jobs": _some(0.06, (2,)),
    "cluster": _some(0.012, ("local:1",)),
    "backend": _some(0.05, choices.BACKENDS),
    "compute_units": _some(0.1, choices.COMPUTE_UNITS),
    "progress": _some(0.2, (True, False)),
    "metric": _metric,
    "heldout": _some(0.4, (0.0, 0.2, 0.5)),
    "strategy": _some(0.5, choices.strategy_names()),
    "numerics": _profiles,
    "points": _some(1.0, (2, 3, 5)),
    "pairs": _some(0.5, [True]),
    "budget": _some(0.5, [True]),
    "json": _some(0.5, [True]),
    "verbose": _some(0.2, [True]),
    "top": _some(0.3, (0, 3, 1000)),
    "model_explorer": _some(0.2, ["graph.json"]),
    "junit": _some(0.3, ["check.xml"]),
    "markdown": _some(0.3, ["check.md"]),
    "sarif": _some(0.3, ["check.sarif"]),
    "random": _some(0.1, [True]),
    "example": _some(0.5, [True]),
}

_CONVERSION = {"target", "io_dtype", "batches", "states"}
_STORED = {"weight_dtype", "rescale", "rewrite"}
_EXECUTION = {"device", "cache_bytes", "seed", "progress"}
_ELSEWHERE = {"jobs", "cluster", "backend", "compute_units", "storage", "resume"}
_SEARCH = {"trials", "timeout", "heldout", "strategy"}
_BOUND = {
    "keep_fp32",
    "keep_fp16",
    "by",
    "minimize",
    "objective",
    "coverage",
    "confidence",
    "tolerate_overflow",
    "hazards",
    "prove",
}
_MEASURE = {"metric", "numerics", "pairs"}


def _taken(run: Run) -> set[str]:
    """The options that a command takes, in Python or in the shell."""
    everything = _CONVERSION | _EXECUTION | _MEASURE
    found = {
        "optimize": everything | _STORED | _ELSEWHERE | _SEARCH | _BOUND,
        "analyze": everything | {"budget"},
        "pareto": everything | _SEARCH | {"points", "storage", "resume"},
        "check": _MEASURE | {"budget"},
        "apply": {"example"},
    }[run.command]
    if run.shell:
        extra = {
            "optimize": {"verbose", "random"},
            "analyze": {"top", "by", "model_explorer", "random"},
            "pareto": {"random"},
            "check": {"junit", "markdown", "sarif"},
            "apply": set(),
        }[run.command]
        return found | extra | {"json"}
    if run.command in ("analyze", "pareto"):
        return found | _STORED | _ELSEWHERE
    return found | (_EXECUTION if run.command == "check" else set())


def _completed(run: Run) -> dict[str, Any]:
    """The options with what follows from them: states, and what resumes needs."""
    found = dict(run.options)
    if run.command in ("check", "apply"):
        found.pop("progress", None)
    states = ARCHITECTURES[run.architecture].states
    if states and run.command in ("optimize", "analyze", "pareto"):
        found["states"] = states
        if random.Random(run.seed).random() < 0.8:
            found["target"] = random.Random(run.seed).choice(("iOS18", "iOS26"))
    if found.get("metric") == "agreement" and (run.form in ("batch", "loader")):
        found["metric"] = "worst"
    if found.get("metric") != "agreement" or (run.shell and run.form != "callable"):
        found.pop("pairs", None)
    if found.get("metric") == "agreement" and found.get("random"):
        found.pop("random")
    if "cluster" in found:
        found.pop("jobs", None)
    if found.get("prove"):
        found.setdefault("timeout", 30.0)  # up to 2**17 sets are evaluated
    pins = [*found.get("keep_fp32", ()), *found.get("keep_fp16", ())]
    if len(set(pins)) == 2 and not all(pin.startswith("type:") for pin in pins):
        found.pop("keep_fp16")  # whether these name the same ops is not known
    return found


def _made(run: Run, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a search that is not refused."""
    names = ("target", "io_dtype", "numerics", "trials", *_STORED)
    found = {name: options[name] for name in names if name in options}
    if options.get("prove"):
        found["metric"] = "worst"
    if states := ARCHITECTURES[run.architecture].states:
        found |= {"states": states, "target": "iOS18"}
    if found.get("target") == "iOS15":
        found.pop("weight_dtype", None)
        found.pop("io_dtype", None)
    return found


# --- what is wrong on purpose ---------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """One thing that is wrong.

    Attributes
    ----------
    options
        What is given instead.
    words, shell_words
        A piece of the refusal in Python and in the shell; the same where the second is empty. None
        where it cannot be given there.
    commands
        Which take it.
    """

    options: dict[str, Any]
    words: str | None
    shell_words: str | None = ""
    commands: tuple[str, ...] = ("optimize",)
    when: Callable[[Run], bool] = lambda run: True

    def said(self, run: Run) -> str | None:
        """The words for this run."""
        return (self.shell_words or self.words) if run.shell else self.words

    def fits(self, run: Run) -> bool:
        """Whether it can be wrong in this run."""
        known = self.shell_words is not None if run.shell else self.words is not None
        return known and run.command in self.commands and self.when(run)

    def into(self, run: Run, names: list[str]) -> Run:
        """The run with it."""
        (name,) = [n for n in names if WRONG[n] is self]
        return replace(run, options={**run.options, **self.options}, wrong=name)


def _from_torch(run: Run) -> bool:
    return run.source != "package"


def _in_db(run: Run) -> bool:
    return run.get("metric") in IN_DB


_SEARCHES = ("optimize", "pareto")
_MEASURES = ("optimize", "analyze", "pareto")
_ONE_OF = "is not one of"
WRONG: dict[str, Wrong] = {
    "target": Wrong({"target": "iOS14"}, "target 'iOS14' is not known", _ONE_OF, _MEASURES),
    "io_dtype": Wrong({"io_dtype": "bf16"}, "io_dtype 'bf16' is not known", _ONE_OF, _MEASURES),
    "batches": Wrong({"batches": "split"}, "batches 'split' is not known", _ONE_OF, _MEASURES),
    "weight_dtype": Wrong({"weight_dtype": "int4"}, "weight_dtype 'int4' is not known", _ONE_OF),
    "rescale": Wrong({"rescale": "both"}, "rescale 'both' is not known", _ONE_OF),
    "by": Wrong({"by": "block"}, "by 'block' is not known", _ONE_OF),
    "minimize": Wrong({"minimize": "time"}, "minimize 'time' is not known", _ONE_OF),
    "objective": Wrong({"objective": "all"}, "objective 'all' is not known", _ONE_OF),
    "hazards": Wrong({"hazards": "skip"}, "hazards 'skip' is not known", _ONE_OF),
    "coverage": Wrong({"coverage": 1.0}, "coverage is 1, expected a share above 0 and below 1"),
    "confidence": Wrong({"confidence": 0.0}, "confidence is 0, expected a share above 0"),
    "trials": Wrong({"trials": 0}, "trials is 0, expected a whole number", "", _SEARCHES),
    "half trials": Wrong({"trials": 2.5}, "trials is 2.5, expected a whole", "not a valid int"),
    "timeout": Wrong({"timeout": -1.0}, "timeout is -1, expected seconds above 0", "", _SEARCHES),
    "timeout text": Wrong({"timeout": "soon"}, "expected a number", "is not a valid float"),
    "heldout": Wrong({"heldout": 1.0}, "heldout is 1.0, expected a share", "", _SEARCHES),
    "heldout nan": Wrong({"heldout": math.nan}, "expected a finite number", "", _SEARCHES),
    "seed": Wrong({"seed": -1}, "seed is -1, expected a whole number", "", _MEASURES),
    "cache": Wrong({"cache_bytes": -1}, "cache_bytes is -1, expected a whole", "", _MEASURES),
    "jobs": Wrong({"jobs": 0}, "jobs is 0, expected a whole number"),
    "cluster": Wrong({"cluster": "nowhere"}, "cluster is 'nowhere', expected tcp://host:port"),
    "both": Wrong({"cluster": "local:1", "jobs": 2}, "give one of them"),
    "storage": Wrong(
        {"storage": "nothing://x"}, "storage 'nothing://x' cannot be opened", "", _SEARCHES
    ),
    "resume": Wrong({"storage": None, "resume": True}, "resume needs the storage", None, _SEARCHES),
    "numerics": Wrong(
        {"numerics": "ieee754"}, "numerics 'ieee754' is not known", "", (*_MEASURES, "check")
    ),
    "no profile": Wrong(
        {"numerics": "ieee,lost.json"}, "lost.json does not exist", "", (*_MEASURES, "check")
    ),
    "metric": Wrong({"metric": "l3"}, "metric 'l3' is not known", "", (*_MEASURES, "check")),
    "strategy": Wrong(
        {"strategy": "best"},
        "strategy 'best' is not known",
        "",
        _SEARCHES,
    ),
    "pin": Wrong({"keep_fp32": ("softmax",)}, "expected 'type:softmax'"),
    "no pin": Wrong({"keep_fp16": ("type:nothing",)}, "matches no candidate op"),
    "pins": Wrong(
        {"keep_fp16": ("type:*",), "keep_fp32": ("type:*",)}, "is pinned to FP32 and to FP16"
    ),
    "text": Wrong({"keep_fp32": "type:linear"}, "expected a list of texts", None),
    "state": Wrong(
        {"states": ("lost",)}, "state 'lost' is no buffer", "", _MEASURES, when=_from_torch
    ),
    "points": Wrong({"points": 1}, "points is 1, expected a whole number", "", ("pareto",)),
    "device": Wrong(
        {"device": "quantum"}, "device 'quantum' cannot be used", "", ("optimize", "analyze")
    ),
    "budget": Wrong(
        {"budget": -1.0}, "budget is -1, expected a number above 0", when=lambda r: not _in_db(r)
    ),
    "budget nan": Wrong({"budget": math.nan}, "expected a finite number"),
    "budget text": Wrong({"budget": "small"}, "budget is 'small'", "'small' is no number"),
    "input": Wrong(
        {"input": "unknown"},
        "is not known; the model takes",
        "has the key 'unknown'",
        (*_MEASURES, "check"),
        when=lambda run: run.form in ("list", "npz", "safetensors") and not run.get("random"),
    ),
    "no samples": Wrong(
        {"input": "empty"}, "the data holds no samples", None, (*_MEASURES, "check")
    ),
    "targets": Wrong(
        {"input": "targets", "metric": "agreement", "pairs": None},
        "targets hold 1 rows",
        "",
        _MEASURES,
        when=lambda run: run.form in ("list", "tuples", "npz") and not run.get("random"),
    ),
    "two data": Wrong({"input": "both"}, None, "--random draws it; give one of them", _MEASURES),
    "no random": Wrong({"random": 0}, None, "--random is 0, expected a whole number", _MEASURES),
    "no model": Wrong({"input": "model"}, "does not exist; give", "", COMMANDS),
    "weights": Wrong(
        {"input": "weights"},
        None,
        "--weights goes with package.module:factory, not with a file",
        COMMANDS,
        when=lambda run: run.source in ("pt", "pt2", "package"),
    ),
    "out": Wrong({"input": "out"}, None, "is no .mlpackage", ("apply",)),
}


# --- what is refused ------------------------------------------------------------------------


def expected(run: Run) -> tuple[str, ...]:
    """Pieces of the refusals that a run may end in: in one of them, or, where empty, in none."""
    if run.wrong:
        words = WRONG[run.wrong].said(run)
        assert words is not None
        return (words, *_pairs(run))
    return tuple(_pairs(run))


def _pairs(run: Run) -> list[str]:
    found = [*_of_conversion(run), *_of_execution(run), *_of_layers(run)]
    # A config names no function.
    if run.command == "check" and run.get("metric") is None and "metric" in run.made:
        found.append("a function, which a config does not bring along")
    return found


def _of_conversion(run: Run) -> list[str]:
    found = []
    if run.command in ("check", "apply"):
        return found
    if run.get("weight_dtype") and run.target == "iOS15":
        found.append("needs constexpr ops, which iOS15 has not")
    if run.source == "package":
        return found
    if run.get("io_dtype") == "fp16" and run.target == "iOS15":
        found.append("--io-dtype fp16 needs --target iOS16 or newer")
    if run.get("states") and run.target not in ("iOS18", "iOS26"):
        found.append("states need --target iOS18 or newer")
    return found


def _of_execution(run: Run) -> list[str]:
    found = []
    own = run.shell and run.command == "optimize"  # it keeps a study by itself
    if run.get("resume") and run.get("storage") is None and not own:
        found.append("resume needs the storage")
    if run.get("backend") == "coreml":
        if run.get("jobs", 1) > 1 or run.get("cluster"):
            found.append("evaluates in one process; leave jobs and cluster out")
        elif run.command == "optimize" and sys.platform != "darwin":
            found.append("Core ML runs on a Mac")
    return found


def _of_layers(run: Run) -> list[str]:
    if run.command != "optimize":
        return []
    found = []
    if not run.has_layers:
        pins = [*run.get("keep_fp32", ()), *run.get("keep_fp16", ())]
        if run.get("by") == "layer" or any(pin.startswith("layer:") for pin in pins):
            found.append("the model's layers are not known")
    if run.get("keep_fp32") and run.get("keep_fp32") == run.get("keep_fp16"):
        found.append("is pinned to FP32 and to FP16")
    return found
