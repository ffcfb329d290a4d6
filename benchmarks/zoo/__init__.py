"""Real reports of FP16 going wrong, rebuilt small: each a module with build() and samples().

``SOURCE`` is the report, ``CAUSES`` what its users found it to be (one of them is right),
``CULPRITS`` the op types where they found it, ``BUDGET``, ``METRIC`` and ``NUMERICS`` as for
:func:`mpsearch.optimize`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

#: Cases that are only ever measured: nothing is tuned on them. The others may be looked at. Seeds
#: other than 0 are for measuring, of all cases.
HELD_OUT = frozenset(
    [
        "convnext_layernorm",
        "efficientvit",
        "grid_sample",
        "instance_norm",
        "log_softmax",
        "mask_1e4",
        "mask_6e4",
        "minilm_tight",
        "qk_logits",
        "residual_vit",
        "rmsnorm_outlier",
        "rt_detr",
        "sensevoice",
        "stylegan2",
        "vector_quantiser",
        "window_attention",
    ]
)


def cases(names: list[str] | None = None) -> dict[str, Any]:
    """The modules of the zoo by name."""
    found = names or [m.name for m in pkgutil.iter_modules(__path__) if m.name != "masked"]
    loaded = {name: importlib.import_module(f"{__name__}.{name}") for name in found}
    return {name: module for name, module in loaded.items() if hasattr(module, "SOURCE")}


def numerics(case: Any) -> str:
    """The numerics that expose the case."""
    return str(getattr(case, "NUMERICS", "ieee"))


def drawn(case: Any, seed: int, count: int | None = None) -> tuple[Any, Any]:
    """A case with weights and samples of a seed, where it draws any: (model, samples)."""
    given = {} if count is None else {"count": count}
    return _seeded(case.build, seed), _seeded(case.samples, seed, **given)


def _seeded(function: Callable[..., Any], seed: int, **given: Any) -> Any:
    if "seed" in inspect.signature(function).parameters:
        given["seed"] = seed
    return function(**given)
