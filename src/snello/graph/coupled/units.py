"""From the labels of a run to dimensions: the smallest sets of labels that can be removed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from .classes import Classes
from .dimensions import Coupling, Dimension, Member
from .labels import HEAD_DIM, HEADS, Axis, Grid, Vector
from .run import LAYER_SIZES, READ, SCALE, SIZE, WRITE, Mirror, Run, is_count


@dataclass(frozen=True)
class Unit:
    """Classes of labels that can only be removed together.

    Attributes:
        seeds: the classes that are not cells of a grid; they identify the unit.
        classes: all classes.
        pinned: why they must stay; None if they can be removed.
    """

    seeds: frozenset[int]
    classes: frozenset[int]
    pinned: str | None


@dataclass
class Units:
    """The units of a run.

    A label that is a cell of a grid (a channel of an axis that is split into heads) cannot be
    removed by itself, because the axis could no longer be viewed as rows and columns. A whole row
    or column can, with its cells.
    """

    run: Run
    pins: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        # One entry more, so that index -1 is label -1.
        self._roots = [*self.run.labels.roots(), -1]
        self._axes: dict[tuple[str, int], Vector] = {}
        self.pins = {}
        for label, why in self.run.labels.pins.items():
            self.pins.setdefault(self._roots[label], why)

    @property
    def classes(self) -> list[int]:
        """The class of each label; the list is indexed by label."""
        return self._roots[:-1]

    def root(self, label: int) -> int:
        """The class of a label."""
        return self._roots[label]

    def roots(self, axis: Axis) -> Vector:
        """The classes of the labels of an axis."""
        return tuple(map(self._roots.__getitem__, axis or ()))

    @cached_property
    def grids(self) -> list[Grid]:
        """The grids of the run without duplicates, with classes in place of labels."""
        found = {
            Grid(self.roots(g.cells), self.roots(g.rows), self.roots(g.columns)): None
            for g in self.run.labels.grids
        }
        return list(found)

    @cached_property
    def _factors(self) -> dict[int, list[tuple[Grid, bool, int]]]:
        """Class -> (grid, whether it is a row, number) wherever it is a row or column."""
        found: dict[int, list[tuple[Grid, bool, int]]] = defaultdict(list)
        for grid in self.grids:
            for is_row, axis in ((True, grid.rows), (False, grid.columns)):
                for i, label in enumerate(axis):
                    if label > 0:
                        found[label].append((grid, is_row, i))
        return found

    @cached_property
    def _cells(self) -> dict[int, list[int]]:
        """Class -> numbers of the grids of which it is a cell."""
        found: dict[int, list[int]] = defaultdict(list)
        for number, grid in enumerate(self.grids):
            for label in dict.fromkeys(grid.cells):
                if label > 0:
                    found[label].append(number)
        return found

    def closure(self, seed: int) -> frozenset[int]:
        """The classes that have to be removed if one is.

        1. With a row or column of a grid, its cells are removed.
        2. A row or column is removed if all its cells are.
        3. With a cell, its whole row or its whole column is removed, whichever takes fewer cells.
        """
        if seed not in self._factors:
            return frozenset((seed,))
        gone, waiting, touched = {seed}, [seed], set[int]()
        while waiting:
            label = waiting.pop()
            fresh = [x for x in self._cells_with(label) if x > 0 and x not in gone]
            gone.update(fresh)
            waiting.extend(dict.fromkeys(fresh))
            touched.update(self._cells.get(label, ()))
            if not waiting:
                completed = {
                    x for n in touched for x in _completed(self.grids[n], gone) if x not in gone
                }
                gone |= completed
                waiting.extend(sorted(completed))
        return frozenset(gone)

    def removed(self, slices: Mapping[tuple[str, int], Iterable[int]]) -> set[int]:
        """The classes that are removed with slices of parameters, with the rows and columns of
        grids that rules 2 and 3 add.

        Args:
            slices: (parameter or buffer, axis) -> indices.
        """
        gone: set[int] = set()
        for (name, axis), indices in slices.items():
            if (name, axis) not in self._axes:
                self._axes[name, axis] = self.roots(self.run.parameters[name].axes[axis])
            gone.update(map(self._axes[name, axis].__getitem__, indices))
        for grid in self.grids:
            if not gone.isdisjoint(grid.cells):
                gone |= _completed(grid, gone)
        return gone

    def _cells_with(self, label: int) -> Iterator[int]:
        for grid, is_row, i in self._factors.get(label, ()):
            yield from grid.row(i) if is_row else grid.column(i)

    def all(self) -> dict[frozenset[int], Unit]:
        """Every unit, by its seeds."""
        shadows = self.run.parameters.values()
        labels = {x for shadow in shadows for axis in shadow.axes for x in self.roots(axis)}
        labels.update(self._factors)
        units: dict[frozenset[int], Unit] = {}
        for seed in sorted(label for label in labels if label > 0 and label not in self._cells):
            classes = self.closure(seed)
            seeds = frozenset(x for x in classes if x not in self._cells)
            held = classes & self.pins.keys()
            pinned = self.pins[min(held)] if held else None
            units.setdefault(seeds, Unit(seeds, classes, pinned))
        single = {x for seeds in units if len(seeds) == 1 for x in seeds}
        return {
            seeds: unit
            for seeds, unit in units.items()
            # A pinned unit that also contains other units repeats their reasons: leave it out.
            if unit.pinned is None or len(seeds) == 1 or single.isdisjoint(seeds)
        }


def _completed(grid: Grid, gone: set[int]) -> set[int]:
    """Rows and columns of a grid that have to be removed with its removed cells."""
    rows, columns = range(len(grid.rows)), range(len(grid.columns))
    whole = [all(x in gone or x < 0 for x in grid.row(r)) for r in rows]
    full = [all(x in gone or x < 0 for x in grid.column(c)) for c in columns]
    open_ = [
        (r, c)
        for r in rows
        if not whole[r]
        for c, x in enumerate(grid.row(r))
        if x in gone and not full[c]
    ]
    more_rows, more_columns = {r for r, _ in open_}, {c for _, c in open_}
    if open_ and len(more_rows) * len(grid.columns) <= len(more_columns) * len(grid.rows):
        more_columns = set()
    else:
        more_rows = set()
    found = {grid.rows[r] for r in rows if whole[r] or r in more_rows}
    found |= {grid.columns[c] for c in columns if full[c] or c in more_columns}
    return {x for x in found if x > 0}


def dimensions(run: Run) -> Coupling:
    """Group the units of a run into dimensions."""
    return Coupling(tuple(dimension for dimension, _ in families(Units(run))))


def families(units: Units) -> list[tuple[Dimension, list[Unit]]]:
    """The dimensions with their units, in order of execution."""
    builder, built = _Builder(units), []
    for family in _families(units, list(units.all().values())):
        family = _disjoint(family)
        free = [unit for unit in family if unit.pinned is None]
        held = [unit for unit in family if unit.pinned is not None]
        for members in filter(None, (free, held)):
            why = members[0].pinned or ("a single channel" if len(members) == 1 else None)
            dimension = builder.dimension(members, why)
            if dimension.writers or (why is None and dimension.parameters):
                built.append((dimension, members))
    names = _unique([dimension.name for dimension, _ in built])
    return [
        (replace(d, name=name), members) for name, (d, members) in zip(names, built, strict=True)
    ]


def _disjoint(family: list[Unit]) -> list[Unit]:
    """Merge the units of one dimension that share classes: the result is disjoint."""
    found: list[Unit] = []
    at: dict[int, int] = {}
    for unit in family:
        met = sorted({at[x] for x in unit.classes if x in at})
        merged = unit
        for number in met:
            merged = _union(found[number], merged)
        number = met[0] if met else len(found)
        found[number : number + 1] = [merged]
        for x in merged.classes:
            at[x] = number
    return [found[n] for n in sorted(set(at.values()))]


def _union(a: Unit, b: Unit) -> Unit:
    return Unit(a.seeds | b.seeds, a.classes | b.classes, a.pinned or b.pinned)


def _families(units: Units, found: list[Unit]) -> list[list[Unit]]:
    """Units whose labels were made for the same axis, or for axes that share a unit."""
    of = {seed: n for n, unit in enumerate(found) for seed in unit.seeds}
    joined = Classes(len(found))

    def chain(axis: Vector) -> None:
        for a, b in pairwise([of[x] for x in units.roots(axis) if x in of]):
            joined.join(a, b)

    # Only axes that write channels and axes of grids define dimensions. A layer that reads a
    # concatenation has one axis for several dimensions, which must stay separate.
    made = [axis for axis in units.run.labels.allocated if units.run.roles.get(axis[0]) == WRITE]
    made += [axis for grid in units.run.labels.grids for axis in (grid.rows, grid.columns)]
    known = {axis[0] for axis in made}
    lonely = [axis for axis in units.run.labels.allocated if axis[0] not in known]
    for axis in made:
        chain(axis)
    covered = {joined.find(of[x]) for axis in made for x in units.roots(axis) if x in of}
    for axis in lonely:
        rest = tuple(x for x in axis if of.get(units.root(x)) is not None)
        if not any(joined.find(of[units.root(x)]) in covered for x in rest):
            chain(rest)
    groups: dict[int, list[Unit]] = defaultdict(list)
    for n, unit in enumerate(found):
        groups[joined.find(n)].append(unit)
    return [groups[key] for key in sorted(groups, key=lambda n: min(found[n].seeds))]


@dataclass(frozen=True)
class _Place:
    """An axis of a parameter, or an attribute, or a reduction, whose labels a dimension may hold."""

    name: str
    axis: int
    role: str


@dataclass
class _Builder:
    """Makes dimensions of units."""

    units: Units

    def __post_init__(self) -> None:
        run = self.units.run
        self._places: list[_Place] = []
        self._at: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for name, shadow in run.parameters.items():
            for i, axis in enumerate(shadow.axes):
                if axis is not None:
                    self._add(_Place(name, i, run.roles.get(axis[0], SCALE)), axis)
        for mirror in filter(self._plausible, dict.fromkeys(run.mirrors)):
            name = f"{mirror.module}.{mirror.attribute}".lstrip(".")
            self._add(_Place(name, mirror.position, SIZE), mirror.axis)
        for module, operation, axis in dict.fromkeys(run.statistics):
            self._add(_Place(module, 0, operation), axis)

    def _plausible(self, mirror: Mirror) -> bool:
        """True if an attribute's name fits the axis: a count for heads, a width for the others."""
        first = next(label for label in mirror.axis if label > 0)
        is_heads = self._flags.get(self.units.root(first)) == HEADS
        return mirror.attribute in LAYER_SIZES or is_heads == is_count(mirror.attribute)

    def _add(self, place: _Place, axis: Vector) -> None:
        """Note the index that each class has at a place."""
        number = len(self._places)
        self._places.append(place)
        for position, label in enumerate(self.units.roots(axis)):
            if label > 0:
                self._at[label].append((number, position))

    @cached_property
    def _flags(self) -> dict[int, str]:
        return {self.units.root(x): flag for x, flag in self.units.run.labels.flags.items()}

    def dimension(self, units: list[Unit], pinned: str | None) -> Dimension:
        """Make a dimension whose index i is unit i."""
        positions: dict[int, list[set[int]]] = {}
        for number, unit in enumerate(units):
            for label in unit.classes:
                for place, position in self._at.get(label, ()):
                    if place not in positions:
                        positions[place] = [set() for _ in units]
                    positions[place][number].add(position)
        found = [(self._places[n], positions[n]) for n in sorted(positions)]
        members = [
            Member(place.name, place.axis, place.role, tuple(tuple(sorted(i)) for i in indices))
            for place, indices in found
            if place.role in (READ, WRITE, SCALE, SIZE)
        ]
        places = [place for place, _ in found]
        norms = [(p.name, p.role) for p in places if p.role not in (READ, WRITE, SCALE, SIZE)]
        seeds = {x for unit in units for x in unit.seeds}
        kind = _kind({self._flags[x] for x in seeds if x in self._flags}, members)
        return Dimension(
            _name(members, kind), kind, len(units), tuple(members), tuple(norms), pinned
        )


def _kind(flags: Iterable[str], slices: list[Member]) -> str:
    flags = set(flags)
    for flag in (HEADS, HEAD_DIM):
        if flag in flags:
            return flag
    if flags:
        return "groups"
    writers = {m.name.rpartition(".")[0] for m in slices if m.role == WRITE}
    readers = [m for m in slices if m.role == READ]
    return "hidden" if len(writers) == 1 and readers else "channels"


def _name(slices: list[Member], kind: str) -> str:
    writing = [m for m in slices if m.role == WRITE] or slices
    module = writing[0].name.rpartition(".")[0] if writing else ""
    return f"{module}:{kind}" if kind in (HEADS, HEAD_DIM, "groups") else module


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = defaultdict(int)
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found
