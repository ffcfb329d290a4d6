"""Multiplies what ops of a MIL program take by powers of two.

What stands below the imports is copied into ``rescale.py`` as it is, so that it needs no more than
they give.
"""

from __future__ import annotations

import numpy as np

from .._ct import quiet

with quiet():
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - its usual name
    from coremltools.converters.mil.mil import types


def rescale(program, scales):  # type: ignore[no-untyped-def]
    """Multiply inputs of ops by powers of two, in place.

    ``scales`` has a dict for each op: its name (``op``), ``type``, the ``shape`` of its first
    output, and the exponent for each of its ``inputs`` that is scaled, items of lists as
    ``values.0``. The type ``output`` stands for an output of the program. Constants are scaled as
    they are; what is computed is multiplied by one more op, once for all that need the same.

    Raises ValueError where the program has no such op.
    """
    (function,) = program.functions.values()
    ops = {op.name: op for op in function.operations}
    outputs, made = {var.name: var for var in function.outputs}, {}

    def scaled(var, exponent, before):  # type: ignore[no-untyped-def]
        if (var, exponent) not in made:
            sign = "minus_" if exponent < 0 else ""
            name = f"{var.name}_times_2_to_{sign}{abs(exponent)}"
            factor = types.nptype_from_builtin(var.dtype)(2.0**exponent)
            scopes = (var.op if before is None else before).scopes
            if var.val is not None:
                new = mb.const(val=var.val * factor, name=name, before_op=before)
            else:
                by = mb.const(val=factor, name=f"{name}_by", before_op=before)
                by.op.scopes = dict(scopes)
                new = mb.mul(x=var, y=by, name=name, before_op=before)
            new.op.scopes = dict(scopes)
            made[var, exponent] = new
        return made[var, exponent]

    def check(entry, kind, var):  # type: ignore[no-untyped-def]
        shape = [int(n) if isinstance(n, (int, np.integer)) else -1 for n in var.shape]
        if (kind, shape) != (entry["type"], list(entry["shape"])):
            raise ValueError(
                f"{entry['op']!r} is a {kind} of shape {shape}, expected a {entry['type']} of "
                f"shape {entry['shape']}"
            )

    def taken(op, port):  # type: ignore[no-untyped-def]
        name, _, place = port.partition(".")
        given = getattr(op, name) if name in op.input_spec.input_types else None
        found = dict(enumerate(given or ())).get(int(place)) if place else given
        if found is None or not types.is_float(found.dtype):
            raise ValueError(f"{op.name!r} takes no floats as {port!r}")
        return found

    order = {op.name: place for place, op in enumerate(function.operations)}
    with function:
        # Outputs last: what is made for them stands at the end.
        for entry in sorted(scales, key=lambda e: (e["type"] == "output", order.get(e["op"], 0))):
            name = entry["op"]
            if entry["type"] == "output" and name in outputs:
                var = outputs[name]
                check(entry, "output", var)
                new = scaled(var, entry["inputs"]["x"], None)
                new.name, var.name = name, f"{name}_unscaled"
                function.set_outputs([new if v is var else v for v in function.outputs])
            elif name in ops:
                op, changed = ops[name], {}  # type: ignore[var-annotated]
                check(entry, op.op_type, op.outputs[0])
                for port, exponent in entry["inputs"].items():
                    name, _, place = port.partition(".")
                    new = scaled(taken(op, port), exponent, op)
                    if place:
                        changed.setdefault(name, list(op.inputs[name]))[int(place)] = new
                    else:
                        changed[name] = new
                op.set_inputs(**changed)
            else:
                raise ValueError(f"there is no {entry['type']} {name!r}")
