"""Real reports of FP16 going wrong, rebuilt small: each a module with build() and samples().

``SOURCE`` is the report, ``CAUSES`` what its users found it to be (one of them is right),
``CULPRITS`` the op types where they found it, ``BUDGET``, ``METRIC`` and ``NUMERICS`` as for
:func:`mpsearch.optimize`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def cases(names: list[str] | None = None) -> dict[str, Any]:
    """The modules of the zoo by name."""
    found = names or [m.name for m in pkgutil.iter_modules(__path__) if m.name != "masked"]
    loaded = {name: importlib.import_module(f"{__name__}.{name}") for name in found}
    return {name: module for name, module in loaded.items() if hasattr(module, "SOURCE")}


def numerics(case: Any) -> str:
    """The numerics that expose the case."""
    return str(getattr(case, "NUMERICS", "ieee"))
