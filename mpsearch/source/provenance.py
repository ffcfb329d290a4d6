"""Where ops come from: PyTorch modules, and lines of Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._ct import quiet

with quiet():
    from coremltools.converters.mil.mil import Operation
    from coremltools.converters.mil.mil.scope import ScopeSource


@contextmanager
def tagged(module: Any, paths: dict[str, str]) -> Iterator[None]:
    """Give every submodule a class of its own while tracing.

    coremltools keeps the *types* of the modules that an op came through, and their names only
    down from containers that were called, so that ``encoder.3`` of two module lists look alike.
    A class name that stands for the path tells them apart.
    """
    changed: list[tuple[nn.Module, type]] = []
    if not isinstance(module, torch.jit.ScriptModule):
        for i, (path, m) in enumerate(module.named_modules()):
            if isinstance(m, torch.jit.ScriptModule):
                continue
            tag = f"{type(m).__name__}_mp{i}"
            try:
                original = type(m)
                m.__class__ = type(tag, (original,), {"__module__": original.__module__})
            except TypeError:
                continue
            changed.append((m, original))
            paths[tag] = path
    try:
        yield
    finally:
        for m, original in changed:
            m.__class__ = original


def tagged_layer(paths: dict[str, str]) -> Callable[[Operation], str]:
    def layer(op: Operation) -> str:
        tags = op.scopes.get(ScopeSource.TORCHSCRIPT_MODULE_TYPE, [])
        for tag in reversed(tags):
            if str(tag) in paths:
                return paths[str(tag)]
        return ""

    return layer


def exported_layers(program: Any) -> Callable[[Operation], str]:
    layers = {}
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if stack:
            path = list(stack.values())[-1][0]
            layers[node.name] = path.removeprefix("L['self'].").removeprefix("L['self']")

    def layer(op: Operation) -> str:
        name = op.name
        while name:
            if name in layers:
                return str(layers[name])
            name = name.rpartition("_")[0]
        return ""

    return layer


#: Frames of a Python stack, innermost first in TorchScript's notation, last in torch.export's.
_TRACED_FRAME = re.compile(r"^(?P<file>.+)\((?P<line>\d+)\): ", re.MULTILINE)


_EXPORTED_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+)', re.MULTILINE)


_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent))


def traced_lines(traced: Any) -> dict[str, str]:
    """Traced value -> the line of the user's code that computed it."""
    try:
        nodes = list(named_graph(traced).nodes())
    except RuntimeError:  # scripted modules that call what cannot be inlined
        return {}
    found = {}
    for node in nodes:
        line = _users_line(_TRACED_FRAME.finditer(node.sourceRange()))
        if line:
            found.update({value.debugName(): line for value in node.outputs()})
    return found


def exported_lines(program: Any) -> dict[str, str]:
    """Node of an exported program -> the line of the user's code that computed it."""
    found = {}
    for node in program.graph.nodes:
        frames = list(_EXPORTED_FRAME.finditer(node.meta.get("stack_trace") or ""))
        if line := _users_line(reversed(frames)):
            found[node.name] = line
    return found


def _users_line(frames: Iterable[re.Match[str]]) -> str:
    """The innermost frame outside torch, as ``file:line``.

    Files of installed packages are named from the package on, others from where the user stands.
    """
    for frame in frames:
        file = frame["file"]
        if not file.startswith(_NOT_THE_USERS):
            path = Path(file.rpartition("site-packages/")[2])
            here = path.is_relative_to(Path.cwd())
            return f"{path.relative_to(Path.cwd()) if here else path}:{frame['line']}"
    return ""


def line_of(lines: dict[str, str]) -> Callable[[Operation], str]:
    """Ops are named after the value that they stand for, several for one with a suffix each."""

    def line(op: Operation) -> str:
        for name in (op.outputs[0].name if op.outputs else "", op.name):
            while name:
                if name in lines:
                    return lines[name]
                name = name.rpartition("_")[0]
        return ""

    return line


def named_graph(traced: Any) -> Any:
    """A copy of the inlined graph whose values have the names that coremltools gives them.

    It numbers unnamed values anew after the same passes (``_expand_and_optimize_ir``).
    """
    graph = traced.inlined_graph.copy()
    torch._C._jit_pass_inline_fork_wait(graph)
    torch._C._jit_pass_dce(graph)
    torch._C._jit_pass_canonicalize_graph_fuser_ops(graph)
    return torch._C._jit_pass_canonicalize(graph)
