"""PyTorch models, as mpsearch calls them: on copies, in FP32, the same every time."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import math
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .._ct import quiet
from ..errors import InputError
from ..isolated import contained
from ..usercode import guarded, reason
from .data import Shapes, argument_names, other_shapes
from .flat import flatten
from .nohalf import NoHalf

Sample = Mapping[str, Any]


#: Modules that torch has a fast path for.
_FAST = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
HALF = (torch.float16, torch.bfloat16)


class TorchModel:
    """A PyTorch model as mpsearch uses it: an FP32 copy in eval mode, called with named samples.

    The caller's model is never changed. Parameters that are FP32 on the CPU already are shared
    with it; buffers, which a forward pass may write to, are copied.

    Parameters
    ----------
    model
        An ``nn.Module``, ``ScriptModule`` or ``ExportedProgram``.
    states
        Names of buffers that are states in Core ML: all zeros before every sample.
    declared
        The shapes that its file declares, by input, for messages.

    Raises
    ------
    InputError
        If a state is no buffer of the model.
    """

    def __init__(
        self, model: Any, states: Iterable[str] = (), declared: Shapes = MappingProxyType({})
    ) -> None:
        self._declared = declared
        with guarded("copying the model"):
            self._copy(unwrapped(model))
        buffers = dict(self.module.named_buffers())
        self.states: dict[str, Tensor] = {}
        for name in states:
            if name not in buffers:
                known = ", ".join(buffers) or "none"
                raise InputError(f"state {name!r} is no buffer of the model; it has {known}")
            self.states[name] = buffers[name]

    def _copy(self, model: Any) -> None:
        self.source = model
        self.exported = model if isinstance(model, torch.export.ExportedProgram) else None
        module = model.module() if self.exported is not None else model
        self.half = any(t.dtype in HALF for t in (*module.parameters(), *module.buffers()))
        self._declared_half = _first_float(module) in HALF
        if isinstance(module, torch.jit.ScriptModule):
            with contained():  # a copy runs what the file says of its state
                self.module: Any = copy.deepcopy(module).eval().float().cpu()
        elif self.exported is not None:
            self.module = module.float() if self.half else module
        else:
            self.module = fp32_copy(module)

    @property
    def attention(self) -> bool:
        """Whether torch has a fast path for parts of it."""
        return any(isinstance(m, _FAST) for m in self.module.modules())

    @property
    def io_half(self) -> bool:
        """Whether the model as given takes and gives half precision."""
        return self._declared_half

    def __call__(self, sample: Sample, shaken: bool = False) -> dict[str, Tensor]:
        """The outputs for one sample, by name, in FP32.

        ``shaken`` gives the model other random numbers than usual.
        """
        with torch.no_grad(), deterministic(shaken), quiet(), self.in_fp32(), self._apart():
            # Copies: a model may change its inputs in place.
            given = {
                k: widened(v).clone() if isinstance(v, Tensor) else v for k, v in sample.items()
            }
            try:
                out = flatten(self.call(given))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever the user's code raises, sys.exit included
                shapes = ", ".join(
                    f"{k} {tuple(v.shape)}" for k, v in sample.items() if isinstance(v, Tensor)
                )
                raise InputError(
                    f"the model does not run on a sample ({shapes}{self._made_with(sample)}): "
                    f"{reason(error)}"
                ) from error
        if not out:
            raise InputError("the model returns no tensor; expected one at least")
        return {name: widened(value).clone() for name, value in out.items()}

    def _made_with(self, sample: Sample) -> str:
        """The shapes that a file declares, where a sample has others, in words."""
        given = [] if self.exported is None else tree_leaves(self.exported.example_inputs)
        shapes = [str(tuple(v.shape)) for v in given if isinstance(v, Tensor)]
        if shapes:
            return f"; exported with {', '.join(shapes)}"
        if others := other_shapes(sample, self._declared):
            return f"; the model's file has {', '.join(others)}"
        two = [v for v in sample.values() if isinstance(v, Tensor) and v.shape[:2] == (1, 1)]
        return "; a row of a file gets an axis of 1 in front" if two and not self._declared else ""

    def check(self, sample: Sample) -> None:
        """Make sure that the model agrees with itself, and leave out hooks that only look on.

        Raises
        ------
        InputError
            If a second call with the same sample gives other outputs.
        """
        first = self(sample)
        hooks = _users_hooks(self.module)
        for registered, key, _ in hooks:
            del registered[key]
        try:
            second = self(sample, shaken=True)
        except InputError:
            if not hooks:
                raise
            second = {}
        if hooks and not _agree(first, second):
            for registered, key, hook in hooks:  # some of them are part of the model
                registered[key] = hook
            second = self(sample, shaken=True)
        if not _agree(first, second):
            if kept := _assigned(self.module):
                raise InputError(
                    "the model gives other outputs when it is called again with the same sample: "
                    f"its scripted code assigns {', '.join(kept)}, which the next call reads; give "
                    "a module that takes them as inputs and returns them"
                )
            raise InputError(
                "the model gives other outputs when it is called again with the same sample: its "
                "code draws random numbers (dropout left on, randn), or counts its calls; make it "
                "deterministic, there is nothing to compare with otherwise"
            )

    def _apart(self) -> AbstractContextManager[None]:
        """Where the code comes from a file: what keeps it from the terminal and the process."""
        return contained() if isinstance(self.source, torch.jit.ScriptModule) else nullcontext()

    def in_fp32(self) -> AbstractContextManager[Any]:
        """Where the model has half-precision parts: run its code for half precision in FP32.

        Only there: under a function mode torch names traced values by number, not after the
        variables of the forward pass, so that ops would have other names than in a plain trace.
        """
        return NoHalf() if self.half else nullcontext()

    def call(self, sample: Sample) -> Any:
        """The module's own outputs for one sample, from states of zeros."""
        for state in self.states.values():
            state.zero_()
        # Where it fails, torch.fx prints the code that it has generated.
        said = io.StringIO() if self.exported is not None else sys.stderr
        with contextlib.redirect_stderr(said):
            if self.exported is not None:
                return self._call_exported(self.exported, sample)
            if self.positional(sample):
                return self.module(*sample.values())
            return self.module(**sample)

    def _call_exported(self, exported: Any, sample: Sample) -> Any:
        """An exported program takes by name what it was exported with by name."""
        (args, _), keys = exported.call_spec.in_spec.children(), _keywords(exported)
        names = argument_names(exported) or []
        values = [sample[n] for n in names] if set(names) == set(sample) else list(sample.values())
        cut = len(values) - len(keys)
        if not keys or args.num_children != cut:
            return self.module(*values)
        return self.module(*values[:cut], **dict(zip(keys, values[cut:], strict=True)))

    def positional(self, sample: Sample) -> bool:
        """Whether the arguments can be passed in order, without their names."""
        source = self.module if self.exported is None else self.exported
        names = argument_names(source)
        in_order = names is None or list(sample) == names[: len(sample)]
        return in_order and len(sample) <= _by_position(source)


def _by_position(model: Any) -> float:
    """How many arguments a model takes without their names."""
    if isinstance(model, (torch.jit.ScriptModule, torch.export.ExportedProgram)):
        return math.inf
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return math.inf
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _assigned(module: Any) -> list[str]:
    """The attributes that scripted code assigns, by name."""
    if not isinstance(module, torch.jit.ScriptModule):
        return []
    graph: Any = module.inlined_graph
    return sorted({node.s("name") for node in graph.findAllNodes("prim::SetAttr")})


def _keywords(exported: Any) -> list[str]:
    """What an exported program takes by name only, in order."""
    _, kwargs = exported.call_spec.in_spec.children()
    return list(kwargs.context or [])


def unwrapped(model: Any) -> Any:
    """The module inside what trains it: DataParallel, DistributedDataParallel, torch.compile."""
    # Whoever has a compiled module has loaded its class; to load it here takes seconds.
    compiler = sys.modules.get("torch._dynamo")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif compiler is not None and isinstance(model, compiler.OptimizedModule):
            model = model._orig_mod
        else:
            return model


def _users_hooks(module: nn.Module) -> list[tuple[dict[int, Any], int, Any]]:
    """Hooks that torch has not made itself (those of weight_norm it has): where, key, hook."""
    found = []
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        for registered in (part._forward_hooks, part._forward_pre_hooks):
            for key, hook in list(registered.items()):
                home = getattr(hook, "__module__", None) or type(hook).__module__
                if not home.startswith("torch."):
                    found.append((registered, key, hook))
    return found  # type: ignore[return-value]


#: How far, in relative L2, two calls of a model may lie apart: sums in another order do.
_SAME = 1e-4


def _agree(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    if first.keys() != second.keys():
        return False
    for a, b in zip(first.values(), second.values(), strict=True):
        if a.shape != b.shape or not torch.equal(torch.isfinite(a), torch.isfinite(b)):
            return False
        a, b = (x.double().nan_to_num(0.0, 0.0, 0.0) for x in (a, b))
        if float((a - b).norm()) > _SAME * float(a.norm()):
            return False
    return True


def widened(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (*HALF, torch.float64) else value


def _first_float(module: nn.Module) -> torch.dtype | None:
    for p in module.parameters():
        if p.is_floating_point():
            return p.dtype
    return None


def fp32_copy(module: nn.Module) -> nn.Module:
    """A copy in eval mode, FP32, on the CPU, that shares the parameters that are so already."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        if p.device.type == "cpu" and p.dtype is torch.float32:
            memo[id(p)] = p
        else:
            data = p.detach().cpu()
            data = data.float() if data.is_floating_point() else data
            memo[id(p)] = nn.Parameter(data, requires_grad=False)
    for b in module.buffers():
        data = b.detach().cpu().clone()
        memo[id(b)] = data.float() if data.dtype in HALF else data
    for m in module.modules():
        for value in vars(m).values():
            # What hooks have computed from parameters (weight_norm) cannot be copied as it is.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    clone = copy.deepcopy(module, memo)
    for m in clone.modules():
        m.training = False
    return clone


@contextmanager
def deterministic(shaken: bool = False) -> Iterator[None]:
    """Leave the global random states of torch, numpy and Python as they were.

    ``shaken`` moves them on within the block. Attention is computed op by op within: torch's own
    fast path goes through nested tensors, which coremltools does not know.
    """
    state, python = np.random.get_state(), random.getstate()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=[]):
            if shaken:
                torch.rand(1), np.random.rand(), random.random()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        np.random.set_state(state)
        random.setstate(python)
