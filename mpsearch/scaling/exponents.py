"""Chooses exponents for the tensors of a program, so that all of them fit FP16.

An integer linear program over the graph: every float tensor t has an integer k, what is computed
is t * 2**-k, and :mod:`mpsearch.scaling.laws` says how the exponents around an op belong together.
Constants take any exponent at no cost; where what is computed has another exponent than an op
needs, a multiplication by a power of two stands between them, which counts. Solved with HiGHS
(``scipy.optimize.milp``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from scipy import optimize, sparse

from ..numerics.formats import FP16
from ..program.graph import Constant, Function, Node, Ref, slots_read
from ..stdout import STDOUT, nothing_printed
from .laws import MOVES, NORMS, divides, equations, ports, scales_products

#: The largest exponent, in magnitude.
_MOST = 40
#: By how much an exponent may be larger than any that a tensor needs.
_SPARE = 4
#: What it costs to leave a tensor beyond FP16's range, where a multiplication costs 1: an op in
#: FP32 has casts around it, and leaves the Neural Engine.
BEYOND = 16.0
#: What each bit costs by which a tensor is lower than it should be: where something is divided by
#: it, where it was not so before, and elsewhere.
_VANISHES, _FADES, _FAINT = 2.0, 0.5, 0.05
#: What it costs a tensor to have an exponent of 1: of equals, the one that changes least is taken.
_CHANGED = 1e-3
#: By how many bits typical values are to stay above the smallest normal number.
_MARGIN_BITS = 2
#: Constants of more elements that several ops use are scaled alike: two copies take memory.
_LARGE = 1 << 14


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one op takes in a scaled program.

    Attributes
    ----------
    op, type, shape
        The op by name, its type, and the shape of its first output (-1: any size). The type
        ``output`` stands for an output of the program.
    inputs
        By which power of two each input is multiplied, items of lists as ``values.0``.
    folded
        Which of them are constants, so that this costs nothing.
    layer
        The PyTorch module that the op is of.
    """

    op: str
    type: str
    shape: tuple[int, ...]
    inputs: dict[str, Annotated[int, msgspec.Meta(ge=-80, le=80)]]
    folded: tuple[str, ...] = ()
    layer: str = ""


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """How large and how small a tensor is.

    Attributes
    ----------
    most
        What the next input's largest magnitude is expected to stay below.
    limit
        The magnitude from which on it is infinite in FP16; infinite where that does no harm.
    typical
        The root of the mean square, of the sample where that is least.
    least
        The smallest magnitude above 0.
    """

    most: float
    limit: float
    typical: float
    least: float


def fitting(size: Magnitudes, divides: bool, most: int = _MOST) -> tuple[int, int]:
    """The least and the largest exponent with which a tensor fits; where none does, the least.

    Where something is divided by it, its smallest values matter too. None is beyond ``most``.
    """
    low, high = -most, most
    if size.most > 0 and math.isfinite(size.limit):
        low = math.floor(math.log2(size.most / size.limit)) + 1
    if size.typical > 0:
        high = math.floor(math.log2(size.typical / FP16.smallest_normal)) - _MARGIN_BITS
    if divides and size.least < math.inf:
        high = min(high, math.floor(math.log2(size.least / FP16.step)) - _MARGIN_BITS)
    low = min(max(low, -most), most)
    return low, min(max(high, low), most)


class ScaledTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor that is computed as itself times ``2**-exponent``.

    ``op`` computes it. ``largest`` is what the next input's magnitude is expected to stay below,
    ``typical`` the least root mean square of a sample, both before scaling.
    """

    op: str
    layer: str
    exponent: int
    largest: float
    typical: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Exponents for a program.

    Attributes
    ----------
    scales
        What ops take, in execution order; empty where nothing is to be done.
    tensors
        What is computed otherwise, in execution order.
    inserted
        How many multiplications are inserted.
    left
        How many results stay beyond FP16's range, of multiplications too.
    """

    scales: tuple[Scale, ...] = ()
    tensors: tuple[ScaledTensor, ...] = ()
    inserted: int = 0
    left: int = 0

    @property
    def folded(self) -> int:
        """How many constants are scaled."""
        return sum(len(scale.folded) for scale in self.scales)

    @property
    def changes(self) -> int:
        """How many constants are scaled, and multiplications inserted."""
        return self.folded + self.inserted

    @property
    def words(self) -> str:
        """What is done, in words."""
        parts = [
            f"{count} {noun}{'' if count == 1 else 's'} {end}"
            for count, noun, end in (
                (self.folded, "constant", "scaled by powers of two"),
                (self.inserted, "multiplication", "by a power of two inserted"),
            )
            if count
        ]
        return " and ".join(parts)


#: Nothing is scaled.
UNSCALED = Plan()


def plan(
    function: Function,
    magnitudes: Mapping[int, Magnitudes],
    inner: Mapping[str, float],
    shapes: Mapping[str, tuple[int, ...]],
    constants: Collection[str],
    insert: bool,
    seconds: float,
) -> Plan:
    """The exponents that keep most tensors in range with the fewest multiplications.

    Parameters
    ----------
    magnitudes
        Of the float tensors, by slot; others are not scaled.
    inner
        Ops by name whose inner steps leave the range: the largest, as a share of what FP16 holds.
    shapes
        Of the first outputs of ops, and of the program's outputs, by name.
    constants
        Names of the constants that can be scaled.
    insert
        Whether multiplications may be inserted.
    seconds
        How long to look at most; the best found until then is taken.
    """
    model = _Model(function, magnitudes, inner, frozenset(constants), insert)
    if not model.needed:
        return UNSCALED
    found = model.solved(seconds)
    return UNSCALED if found is None else model.read(found, shapes)


class _Program:
    """An integer linear program, built row by row."""

    def __init__(self, most: int) -> None:
        self.far = 2.0 * most  # how far apart two exponents can be
        self.columns: list[tuple[float, float, float, bool]] = []  # lower, upper, cost, whole
        self.rows: list[tuple[dict[int, float], float, float]] = []

    def variable(self, lower: float, upper: float, cost: float = 0.0, whole: bool = True) -> int:
        self.columns.append((lower, upper, cost, whole))
        return len(self.columns) - 1

    def fix(self, variable: int) -> None:
        """Set a variable to 0."""
        self.columns[variable] = (0, 0, *self.columns[variable][2:])

    def row(
        self, terms: Mapping[int, float], lower: float = -math.inf, upper: float = math.inf
    ) -> None:
        self.rows.append((dict(terms), lower, upper))

    def equal_where(self, one: int, other: int, switch: int, at: int) -> None:
        """Two exponents are the same where a binary variable is ``at``."""
        far = self.far
        sign, most = (far, far) if at else (-far, 0.0)
        self.row({one: 1, other: -1, switch: sign}, upper=most)
        self.row({other: 1, one: -1, switch: sign}, upper=most)

    def solve(self, seconds: float) -> np.ndarray | None:
        lower, upper, cost, whole = zip(*self.columns, strict=True)
        entries = [
            (i, column, value)
            for i, (terms, _, _) in enumerate(self.rows)
            for column, value in terms.items()
        ]
        rows, columns, values = zip(*entries, strict=True)
        shape = (len(self.rows), len(self.columns))
        matrix = sparse.csr_array((values, (rows, columns)), shape=shape)
        _, least, most = zip(*self.rows, strict=True)
        with nothing_printed(STDOUT):  # HiGHS has lines left in its release
            found = optimize.milp(
                np.asarray(cost),
                integrality=np.asarray(whole, dtype=int),
                bounds=optimize.Bounds(np.asarray(lower), np.asarray(upper)),
                constraints=optimize.LinearConstraint(matrix, least, most),
                options={"time_limit": seconds},
            )
        return None if found.x is None else np.rint(found.x).astype(int)


@dataclass(slots=True, eq=False)
class _Use:
    """Where a tensor or a constant goes in: an input of an op, or an output of the program.

    ``variable`` is the exponent that it has there.
    """

    node: Node | None
    port: str
    slot: int | None
    variable: int = -1


class _Model:
    """The program of :func:`plan` for one graph."""

    def __init__(
        self,
        function: Function,
        magnitudes: Mapping[int, Magnitudes],
        inner: Mapping[str, float],
        constants: frozenset[str],
        insert: bool,
    ) -> None:
        self._function, self._sizes, self._inner = function, magnitudes, inner
        self._constants, self._insert = constants, insert
        self._divisors = _divisors(function)
        self._most = self._range()
        self._milp = _Program(self._most)
        self._tensors: dict[int, int] = {}  # slot -> variable of its exponent
        self._beyond: dict[int, int] = {}  # slot -> whether it is left beyond the range
        self._uses: list[_Use] = []
        self._large: dict[str, int] = {}

    @property
    def needed(self) -> bool:
        """Whether a tensor leaves FP16's range, or vanishes where something is divided by it."""
        norms = any(
            node.op_type in NORMS and node.name in self._inner for node in self._function.nodes
        )
        return norms or any(
            low > 0 or (high < 0 and slot in self._divisors)
            for slot, (low, high) in ((slot, self._bounds(slot)) for slot in self._sizes)
        )

    def solved(self, seconds: float) -> np.ndarray | None:
        """The values of all variables; None where none were found in time."""
        fixed = [*self._function.inputs.values(), *self._function.states.values()]
        for slot in fixed:
            if slot in self._sizes:
                self._tensors[slot] = self._milp.variable(0, 0)
        for node in self._function.nodes:
            laws = equations(node)
            named = {port for law in laws for port in law}
            self._uses += self._taken(node)
            for place, slot in enumerate(node.outputs):
                if slot in self._sizes:
                    self._tensors[slot] = self._tensor(slot, f"-> {place}" in named)
        outputs = {**self._function.outputs, **self._function.state_outputs}
        for name, source in outputs.items():
            if isinstance(source, Ref) and source.slot in self._sizes:
                self._uses.append(_Use(None, name, source.slot))
        self._join()
        self._obey()
        return self._milp.solve(seconds)

    def read(self, found: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
        """The plan that a solution stands for."""
        exponents = {slot: int(found[v]) for slot, v in self._tensors.items()}
        # An op may have the name of the output that it computes.
        given: dict[tuple[bool, str], tuple[_Use, dict[str, int], list[str]]] = {}
        inserted = set()
        for use in self._uses:
            made = 0 if use.slot is None else exponents[use.slot]
            factor = made - int(found[use.variable])
            if not factor:
                continue
            name = use.port if use.node is None else use.node.name
            _, inputs, folded = given.setdefault((use.node is None, name), (use, {}, []))
            inputs["x" if use.node is None else use.port] = factor
            if use.slot is None:
                folded.append(use.port)
            else:
                inserted.add((use.slot, factor))
        scales = tuple(
            Scale(
                name,
                "output" if use.node is None else use.node.op_type,
                shapes.get(name, ()),
                inputs,
                tuple(folded),
                "" if use.node is None else use.node.layer,
            )
            for (_, name), (use, inputs, folded) in given.items()
        )
        left = sum(int(found[v]) for v in self._beyond.values()) + sum(
            exponents[slot] - factor < self._bounds(slot)[0]
            for slot, factor in inserted
            if self._bounds(slot)[0] > 0
        )
        tensors = tuple(
            ScaledTensor(
                node.name,
                node.layer,
                exponents[slot],
                self._sizes[slot].most,
                self._sizes[slot].typical,
            )
            for node in self._function.nodes
            for slot in node.outputs
            if exponents.get(slot)
        )
        return Plan(scales, tensors, len(inserted), left)

    # -- building ------------------------------------------------------------------------------

    def _range(self) -> int:
        """The largest exponent, in magnitude: what some tensor needs, and a little more.

        The smaller it is, the tighter is what the solver relaxes.
        """
        self._most = _MOST
        needed = [
            max(low, -high if slot in self._divisors else 0)
            for slot in self._sizes
            for low, high in [self._bounds(slot)]
        ]
        shares = [math.log2(min(share, 4.0**_MOST)) / 2 for share in self._inner.values()]
        return min(math.ceil(max([0, *needed, *shares])) + _SPARE, _MOST)

    def _bounds(self, slot: int) -> tuple[int, int]:
        """The least and the largest exponent with which a tensor fits; where none does, the least.

        Where something is divided by it, its smallest values matter too.
        """
        return fitting(self._sizes[slot], slot in self._divisors, self._most)

    def _tensor(self, slot: int, free: bool) -> int:
        """The exponent of what an op computes."""
        milp = self._milp
        low, high = self._bounds(slot)
        if not free:
            return milp.variable(0, 0)
        least = low if low <= 0 else -self._most
        found = milp.variable(least, self._most)
        if low > 0:
            beyond = self._beyond[slot] = milp.variable(0, 1, BEYOND)
            milp.row({found: 1, beyond: low + self._most}, lower=low)
        if high < self._most:
            dividing = slot in self._divisors
            cost = _VANISHES if dividing else _FADES if high >= 0 else _FAINT
            bits = milp.variable(0, 2 * self._most, cost, whole=False)
            milp.row({found: 1, bits: -1}, upper=high)
        size = milp.variable(0, self._most, _CHANGED, whole=False)
        milp.row({size: 1, found: -1}, lower=0)
        milp.row({size: 1, found: 1}, lower=0)
        return found

    def _taken(self, node: Node) -> list[_Use]:
        """What an op takes, constants included, those with their exponent."""
        found = []
        if node.blocks:
            return [_Use(node, "", slot) for slot in slots_read(node) if slot in self._sizes]
        for port, source in ports(node):
            if isinstance(source, Ref) and source.slot in self._sizes:
                found.append(_Use(node, port, source.slot))
            elif isinstance(source, Constant):
                variable = self._constant(source, scales_products(node.op_type, port))
                if variable is not None:
                    found.append(_Use(node, port, None, variable))
        return found

    def _constant(self, source: Constant, multiplies: bool) -> int | None:
        """The exponent of a constant; None where it is no float."""
        if source.name in self._large:
            return self._large[source.name]
        value = np.asarray(source.load())
        if value.dtype.kind != "f" or not value.size:
            return None
        sizes = np.abs(value[np.isfinite(value) & (value != 0)]).astype(np.float64)
        if source.name not in self._constants or not sizes.size:
            return self._milp.variable(0, 0 if sizes.size else self._most)
        low = math.floor(math.log2(sizes.max() / FP16.overflows)) + 1
        high = self._most
        if multiplies:
            typical = math.sqrt(float(np.square(sizes).sum()) / value.size)
            margin = _MARGIN_BITS if value.size > 1 else 0
            high = math.floor(math.log2(typical / FP16.smallest_normal)) - margin
        low, high = max(min(low, 0), -self._most), min(max(high, 0), self._most)
        variable = self._milp.variable(low, high)
        if value.size > _LARGE:
            self._large[source.name] = variable
        return variable

    def _join(self) -> None:
        """Say which exponents a tensor can have where it is used."""
        by_slot: dict[int, list[_Use]] = {}
        for use in self._uses:
            if use.slot is not None:
                by_slot.setdefault(use.slot, []).append(use)
        written = self._function.state_outputs.values()
        states = {ref.slot for ref in written if isinstance(ref, Ref)}
        for slot, uses in by_slot.items():
            tensor = self._tensors[slot]
            one = uses[0].node if len(uses) == 1 else None
            whole = any(use.node is not None and use.node.blocks for use in uses)
            moved = one is not None and one.op_type in MOVES
            if not self._insert or moved or whole or slot in states:
                for use in uses:
                    use.variable = tensor
                continue
            for use in uses:
                use.variable = self._milp.variable(-self._most, self._most)
            self._versions(slot, tensor, uses)

    def _versions(self, slot: int, tensor: int, uses: list[_Use]) -> None:
        """Each use takes the tensor as it is computed, or one of a few multiples of it."""
        milp, far = self._milp, self._milp.far
        low, high = self._bounds(slot)
        taken: list[tuple[int, int]] = []  # exponent of a multiple, and whether it is there
        for place in range(min(len(uses), 3)):
            there = milp.variable(0, 1, 1.0)
            exponent = milp.variable(-self._most, self._most)
            fits = {exponent: 1.0, there: -far}
            if low > 0:  # a multiplication may leave the range too, and is then what stays FP32
                fits[milp.variable(0, 1, BEYOND)] = far
            milp.row(fits, lower=low - far)
            milp.row({exponent: 1, there: far}, upper=high + far)
            if place:
                milp.row({taken[-1][1]: 1, there: -1}, lower=0)
            taken.append((exponent, there))
        for use in uses:
            if len(uses) == 1:  # then the multiple is what goes in
                ((exponent, there),) = taken
                milp.equal_where(use.variable, tensor, there, 0)
                milp.equal_where(use.variable, exponent, there, 1)
                continue
            choices = [milp.variable(0, 1) for _ in range(len(taken) + 1)]
            milp.row(dict.fromkeys(choices, 1.0), 1, 1)
            milp.equal_where(use.variable, tensor, choices[0], 1)
            for choice, (exponent, there) in zip(choices[1:], taken, strict=True):
                milp.equal_where(use.variable, exponent, choice, 1)
                milp.row({there: 1, choice: -1}, lower=0)

    def _obey(self) -> None:
        """Every op's law; what is in none of its equations has no exponent."""
        by_node: dict[str, dict[str, _Use]] = {}
        for use in self._uses:
            if use.node is None or use.node.blocks:
                self._milp.fix(use.variable)
            else:
                by_node.setdefault(use.node.name, {})[use.port] = use
        for node in self._function.nodes:
            taken = by_node.get(node.name, {})
            laws = equations(node)
            variables = {port: use.variable for port, use in taken.items()}
            for place, slot in enumerate(node.outputs):
                if slot in self._tensors:
                    variables[f"-> {place}"] = self._tensors[slot]
            named = {port for law in laws for port in law}
            for port, variable in variables.items():
                if port not in named:
                    self._milp.fix(variable)
            if node.op_type in NORMS and node.name in self._inner and "x" in variables:
                share = min(self._inner[node.name], 4.0**_MOST)
                low = math.floor(math.log2(share) / 2) + 1  # x is squared
                beyond = self._milp.variable(0, 1, BEYOND)
                self._milp.row({variables["x"]: 1, beyond: low + self._most}, lower=low)
            for law in laws:
                terms: dict[int, float] = {}
                for port, factor in law.items():
                    if factor and port in variables:
                        variable = variables[port]
                        terms[variable] = terms.get(variable, 0.0) + factor
                if terms:
                    self._milp.row(terms, 0, 0)


def _divisors(function: Function) -> frozenset[int]:
    """Slots by whose values something is divided, what they are moved from included."""
    found: set[int] = set()
    for node in reversed(function.nodes):
        passes = node.op_type in MOVES or node.op_type in ("add", "maximum", "clip")
        behind = passes and not found.isdisjoint(node.outputs)
        for port, source in ports(node):
            if isinstance(source, Ref) and (behind or divides(node.op_type, port)):
                found.add(source.slot)
    return frozenset(found)
