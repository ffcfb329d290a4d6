"""Bad input for every command, as a table: a name, and what is typed.

To add a row, put a value into one of the lists. COMMANDS has each command as it is when all is
well; a row is that with one thing changed.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import callables

MODEL, DATA = "tests.models:net", "tests.models:batches"
CONFIG, PACKAGE, OUT = "result", "fp32.mlpackage", "out"
HERE = "tests.trials.callables"

Row = tuple[str, list[str]]

#: How each command is called when all is well.
COMMANDS: dict[str, list[str]] = {
    "optimize": [MODEL, "--inputs", DATA, "--budget", "1e-2", "-o", OUT],
    "analyze": [MODEL, "--inputs", DATA],
    "pareto": [MODEL, "--inputs", DATA, "--points", "2", "--trials", "10"],
    "check": [CONFIG, MODEL, "--inputs", DATA],
    "apply": [CONFIG, MODEL, "-o", "out.mlpackage"],
    "run": [PACKAGE, "--inputs", "one.npz", "-o", "y.npz"],
    "report": [CONFIG],
}
_SEARCHES = ("optimize", "analyze", "pareto", "check")

#: Values of options that no command takes, and which commands have the option.
OPTIONS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "--budget": (
        ("optimize", "analyze", "check"),
        ["nan", "inf", "-inf", "-1", "0", "", "x", "1e-2,1", "1e999", "0x1", "--"],
    ),
    "--metric": (
        _SEARCHES,
        ["", "rel_l3", "REL_L2", ":", "tests.models:", ":f", "nowhere:f", f"{HERE}:nobody", " "],
    ),
    "--device": (_SEARCHES + ("run",), ["", "tpu", "cuda:99", "cpu:x", "meta", "0"]),
    "--numerics": (
        ("optimize", "analyze", "pareto", "run"),
        ["", "bf16", "ieee,", ",", "ieee,bf16", "IEEE"],
    ),
    "--target": (("optimize", "analyze", "pareto"), ["", "iOS14", "ios17", "macOS13", "17"]),
    "--seed": (
        ("optimize", "analyze", "pareto"),
        ["-1", "4294967296", "99999999999999999999", "1.5", "x", ""],
    ),
    "--heldout": (("optimize", "pareto"), ["1", "-0.1", "nan", "inf", "2", "x", ""]),
    "--trials": (("optimize", "pareto"), ["0", "-1", "1.5", "x", "", "1e3"]),
    "--timeout": (("optimize",), ["0", "-1", "nan", "inf", "x", ""]),
    "--cache-bytes": (("optimize",), ["-1", "x", "1.5", ""]),
    "--strategy": (("optimize", "pareto"), ["", "luck", "greedy_optuna", "tests.models:net"]),
    "--by": (("optimize", "analyze"), ["", "block", "OP"]),
    "--minimize": (("optimize",), ["", "watts", "op"]),
    "--weight-dtype": (("optimize",), ["", "fp32", "int4"]),
    "--rescale": (("optimize",), ["", "on", "FOLD", "1"]),
    "--hazards": (("optimize",), ["", "maybe", "on"]),
    "--weights": (
        ("optimize", "analyze", "pareto", "check", "apply"),
        ["nowhere.pt", "text.pt", "pickled.pt", "list.pt", "", "pipe.pt", "x.safetensors", "/dev"],
    ),
    "--storage": (("optimize",), ["", "nowhere", "sqlite:////proc/x/y.db", "oracle://", "x://y"]),
    "--io-dtype": (("optimize", "analyze"), ["", "fp8", "float16", "int8"]),
    "--state": (("optimize", "analyze"), ["nobody", "", "head.weight"]),
    "--keep-fp32": (
        ("optimize",),
        [
            "",
            "softmax",
            "type:",
            "type:sofmax",
            "layer:nowhere",
            "op:nobody",
            ":",
            "kind:mul",
            "op:[",
        ],
    ),
    "--keep-fp16": (("optimize",), ["", "softmax", "type:sofmax", "layer:nowhere*", "op:nobody"]),
    "--points": (("pareto",), ["0", "1", "-3", "1001", "x", "", "1.5"]),
    "--top": (("analyze",), ["-1", "x", "", "1.5"]),
    "--targets": (_SEARCHES, ["nowhere.npz", "rows0.npz", "text.npz", "pairs", "", "one.npz"]),
    "--function": (("run",), ["nobody", "main2"]),
    "--nonsense": (tuple(COMMANDS), ["1"]),
}
#: In place of --inputs.
RANDOM = [
    ["--random", "0"],
    ["--random", "-1"],
    ["--random", "x"],
    ["--random", "1000000000000", "--shape", "x=1,4,8"],
    ["--random", "2"],
    ["--random", "2", "--shape", "x"],
    ["--random", "2", "--shape", "x="],
    ["--random", "2", "--shape", "x=1,8:foo"],
    ["--random", "2", "--shape", "x=0,8"],
    ["--random", "2", "--shape", "x=-1,8"],
    ["--random", "2", "--shape", "=1,8"],
    ["--random", "2", "--shape", "y=1,8"],
    ["--random", "2", "--shape", "x=1,99999999999999"],
    ["--random", "2", "--shape", "x=1,4,5"],
    ["--random", "2", "--inputs", DATA],
    ["--random", "2", "--shape", "x=1,4,8", "--targets", "x.npz"],
    [],
]
#: Places that nothing may be written to, of any command.
OUTS = [
    "",
    ".",
    "..",
    "/",
    "/proc/out",
    "/dev/null",
    "taken",
    "taken/out",
    "others",
    "pipe.pt",
    "loop.pt",
    "n" * 300,
    "deep/" + "n" * 300 + "/x",
]
#: What ``report`` is given.
REPORTS = ["", "nowhere", "empty_folder", "taken", "others", "/dev/null", "fp32.mlpackage", "x.npz"]


def rows(
    models: list[str], data: list[str], configs: list[str], results: list[str]
) -> Iterator[Row]:
    """Every row: its name, and the arguments."""
    for option, (commands, values) in OPTIONS.items():
        for command in commands:
            for value in values:
                yield f"{command} {option} {value!r}", [command, *_with(command, option, value)]
    for command in _SEARCHES:
        for given in RANDOM:
            yield (
                f"{command} RANDOM={' '.join(given)}",
                [command, *_without(command, "--inputs"), *given],
            )
        for i, _ in enumerate(COMMANDS[command]):
            cut = COMMANDS[command][:i]
            if "--inputs" not in cut[:-1]:
                yield f"{command} {' '.join(cut)}", [command, *cut]
    for model in models:
        for command in (*_SEARCHES, "apply"):
            yield f"{command} MODEL={model}", [command, *_replaced(command, MODEL, model)]
        yield f"run MODEL={model}", ["run", *_replaced("run", PACKAGE, model)]
    for source in data:
        for command in ("optimize", "analyze", "pareto", "check"):
            yield f"{command} DATA={source}", [command, *_replaced(command, DATA, source)]
        if source not in ("two.npz",):
            yield f"apply DATA={source}", ["apply", *COMMANDS["apply"], "--inputs", source]
        if source not in ("scalar.npz",):
            yield f"run DATA={source}", ["run", *_replaced("run", "one.npz", source)]
    for name in _callables("raise_", "give_", "Uncopyable", "Meta", "Counter", "forward_"):
        for command in ("optimize", "analyze", "check"):
            given = _replaced(command, MODEL, f"{HERE}:{name}")
            yield f"{command} MODEL={name}", [command, *given]
    for name in _callables("raise_", *_DATA):
        for command in ("optimize", "pareto"):
            given = _replaced(command, DATA, f"{HERE}:{name}")
            yield f"{command} DATA={name}", [command, *given]
    for name in _callables("raise_", "metric_"):
        for command in ("optimize", "analyze"):
            given = _with(command, "--metric", f"{HERE}:{name}")
            yield f"{command} METRIC={name}", [command, *given]
    for command, place in (("optimize", OUT), ("apply", "out.mlpackage"), ("run", "y.npz")):
        for out in OUTS:
            yield f"{command} -o {out[:30]!r}", [command, *_replaced(command, place, out)]
            suffix = {"apply": ".mlpackage", "run": ".npz"}.get(command)
            if suffix and out and out.isalpha() and len(out) < 20:
                named = _replaced(command, place, out + suffix)
                yield f"{command} -o {out + suffix!r}", [command, *named]
    for out in OUTS:
        yield (
            f"analyze --model-explorer {out[:30]!r}",
            ["analyze", *COMMANDS["analyze"], "--model-explorer", out],
        )
    for config in configs:
        for command in ("check", "apply"):
            yield f"{command} CONFIG={config}", [command, *_replaced(command, CONFIG, config)]
    for result in [*results, *REPORTS]:
        yield f"report {result!r}", ["report", result]
    for word in ("", "optimise", "--nonsense", "OPTIMIZE", "-x", "\x1b[31m"):
        yield f"mpsearch {word!r}", [word]


_DATA = (
    *("give_none", "give_number", "give_text", "no_samples", "wrong_names", "too_many"),
    *("with_targets", "wrong_shapes", "wrong_dtype", "zero_size", "text_samples"),
    *("object_samples", "nested", "endless", "breaks_midway", "mixed_shapes", "NOT_CALLABLE"),
)


def _callables(*prefixes: str) -> list[str]:
    return [name for name in vars(callables) if name.startswith(prefixes)]


def _with(command: str, option: str, value: str) -> list[str]:
    given = list(COMMANDS[command])
    return [*_cut(given, option), option, value]


def _without(command: str, option: str) -> list[str]:
    return _cut(list(COMMANDS[command]), option)


def _cut(given: list[str], option: str) -> list[str]:
    if option in given:
        place = given.index(option)
        del given[place : place + 2]
    return given


def _replaced(command: str, old: str, new: str) -> list[str]:
    return [new if value == old else value for value in COMMANDS[command]]
