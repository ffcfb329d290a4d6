"""Where ops come from: PyTorch modules, and lines of Python."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._ct import quiet
from ..program.lowering import torchscript_layer

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


@dataclass(frozen=True, slots=True)
class Nodes:
    """Where the nodes of an exported program come from, by name."""

    layers: dict[str, str]
    lines: dict[str, str]
    names: tuple[str, ...]

    def layer(self, op: Operation) -> str:
        """The PyTorch module that an op is of."""
        return self.layers.get(self._node(op), "")

    def line(self, op: Operation) -> str:
        """The line of the user's code that computed it, as ``file:line``."""
        return self.lines.get(self._node(op), "")

    def _node(self, op: Operation) -> str:
        handles = [h for h in op.scopes.get(ScopeSource.EXIR_DEBUG_HANDLE, []) if h is not None]
        if handles:
            return self.names[int(handles[0])]
        return _named_after(op, self.layers)


def numbered(program: Any) -> Nodes:
    """Number the nodes of a program that is to be converted, for its ops to be told apart.

    coremltools hands the handle by which ExecuTorch knows a node on to every op that it makes of
    it; where a pass has lost it, the op's name says which node it was.
    """
    layers, lines, names = dict[str, str](), dict[str, str](), list[str]()
    for node in program.graph.nodes:
        node.meta = {**node.meta, "debug_handle": len(names)}
        names.append(node.name)
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = stack[-1][0] if stack else ""
        layers[node.name] = path.removeprefix("L['self'].").removeprefix("L['self']")
        frames = list(_EXPORTED_FRAME.finditer(node.meta.get("stack_trace") or ""))
        if line := _users_line(reversed(frames)):
            lines[node.name] = line
    return Nodes(layers, lines, tuple(names))


def scripted_layers(module: Any) -> Callable[[Operation], str]:
    """The module of an op in TorchScript from a file.

    coremltools keeps the name by which each module was called, which for a part of a list is its
    place (``0``). The whole path stands in what the methods take their parts from: those are walked
    in the order of their calls, and laid beside the inlined graph, which lacks what is dead.
    """
    try:
        graph = module.inlined_graph.copy()
        walked = list(_walk(module, "forward", "", ()))
    except (AttributeError, RuntimeError):  # what cannot be inlined, or is no method
        return torchscript_layer
    at = 0
    for node in _nodes(graph):
        if not node.kind().startswith("aten::"):
            continue
        calls = tuple(c for c in _CALLED.findall(node.getModuleHierarchy()) if c != _UNKNOWN)
        while at < len(walked) and walked[at][:2] not in ((node.kind(), calls), (_ANY, calls)):
            at += 1
        if at == len(walked):
            return torchscript_layer
        kind, _, path = walked[at]
        node.s_("layer", path)
        at += kind != _ANY
    named = line_of(
        {
            value.debugName(): node.s("layer")
            for node in _nodes(_as_named(graph))
            if node.hasAttribute("layer")
            for value in node.outputs()
        }
    )
    paths: dict[str, set[str]] = {}
    for _, calls, path in walked:
        paths.setdefault(".".join(calls), set()).add(path)

    def layer(op: Operation) -> str:
        """By the value that it computes; within an operator, by its calls, or by what follows."""
        calls, following = torchscript_layer(op), op
        short = calls
        while short and short not in paths:  # within a call of a function
            short = short.rpartition(".")[0]
        known = paths.get(short, set())
        while not (found := named(following)) and len(known) > 1:
            after = [o for out in following.outputs for o in out.child_ops]
            alike = [o for o in after if torchscript_layer(o) == calls]
            if not alike:
                break
            following = alike[0]
        return found or (min(known) if known else calls)

    return layer


#: A name and its type in a node's module hierarchy, and what stands there for a function.
_CALLED, _UNKNOWN = re.compile(r"([^.()]+)\("), "UNKNOWN_INSTANCE"
#: Any operators: what a function does cannot be looked into.
_ANY = "*"


def _walk(
    module: Any, method: str, path: str, calls: tuple[str, ...]
) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Operators in the order of execution: kind, names of the calls, and the module's path."""
    graph = module.graph if method == "forward" else getattr(module, method).graph
    parts: dict[str, tuple[Any, str]] = {next(graph.inputs()).debugName(): (module, path)}
    for node in _nodes(graph):
        kind = node.kind()
        if kind.startswith("aten::"):
            yield kind, calls, path
        elif kind == "prim::CallFunction":
            yield _ANY, calls, path
        elif kind == "prim::GetAttr" and node.inputsAt(0).debugName() in parts:
            owner, stem = parts[node.inputsAt(0).debugName()]
            part = getattr(owner, node.s("name"), None)
            if isinstance(part, nn.Module):
                below = f"{stem}.{node.s('name')}".lstrip(".")
                parts[node.output().debugName()] = part, below
        elif kind == "prim::CallMethod" and node.inputsAt(0).debugName() in parts:
            part, below = parts[node.inputsAt(0).debugName()]
            inside = calls if part is module else (*calls, below.rpartition(".")[2])
            yield from _walk(part, node.s("name"), below, inside)


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph or block, those within others included."""
    for node in graph.nodes():
        yield node
        for block in node.blocks():
            yield from _nodes(block)


#: Frames of a Python stack, innermost first in TorchScript's notation, last in torch.export's.
_TRACED_FRAME = re.compile(r"^(?P<file>.+)\((?P<line>\d+)\): ", re.MULTILINE)


_EXPORTED_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+)', re.MULTILINE)


#: Folders whose code is not the user's, on this machine and where a file was made.
_NOT_THE_USERS = tuple(
    f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parent.parent)
)
_INSTALLED_TORCH = "/site-packages/torch/"


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


def _users_line(frames: Iterable[re.Match[str]]) -> str:
    """The innermost frame outside torch, as ``file:line``.

    Files of installed packages are named from the package on, others from where the user stands.
    """
    for frame in frames:
        file = frame["file"]
        if not (file.startswith(_NOT_THE_USERS) or _INSTALLED_TORCH in file):
            path = Path(file.rpartition("site-packages/")[2])
            here = path.is_relative_to(Path.cwd())
            return f"{path.relative_to(Path.cwd()) if here else path}:{frame['line']}"
    return ""


def line_of(lines: dict[str, str]) -> Callable[[Operation], str]:
    """What is known of an op by the value that it stands for."""
    return lambda op: lines.get(_named_after(op, lines), "")


def _named_after(op: Operation, known: Container[str]) -> str:
    """Ops are named after the value that they stand for, several for one with a suffix each."""
    for name in (op.outputs[0].name if op.outputs else "", op.name):
        while name:
            if name in known:
                return name
            name = name.rpartition("_")[0]
    return ""


def named_graph(traced: Any) -> Any:
    """A copy of the inlined graph whose values have the names that coremltools gives them.

    It numbers unnamed values anew after the same passes (``_expand_and_optimize_ir``).
    """
    return _as_named(traced.inlined_graph.copy())


def _as_named(graph: Any) -> Any:
    torch._C._jit_pass_inline_fork_wait(graph)
    torch._C._jit_pass_dce(graph)
    torch._C._jit_pass_canonicalize_graph_fuser_ops(graph)
    return torch._C._jit_pass_canonicalize(graph)
