"""The search: groups, costs, fronts, lanes, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from torch import nn

from snello.codec import CodecSettings
from snello.deploy import peak_memory
from snello.deploy.operations import (
    DeviceProfile,
    LatencyFit,
    OperationTable,
    fit_latency,
    this_device,
)
from snello.errors import ConfigError, ModelError
from snello.graph import Example, Inputs
from snello.graph.coupled import coupling
from snello.pruning.channels import ChannelImportance, importance_of
from snello.search.identity import digest_of, name_of
from snello.search.output_distance import OutputDistance
from snello.search.prune import find_branches

from ._candidate import Candidate, Precision
from ._check import check_names
from ._coded import rates, sparse_factors
from ._costs import ByteCost, Cost, OperationCost, SlopeCost, latency_cost
from ._front import FrontPoint, front
from ._groups import (
    Orders,
    branch_groups,
    channel_groups,
    chosen_levels,
    orders,
    steps_of,
    weight_group,
    widths_of,
)
from ._judge import Evaluate, Judge
from ._lanes import Attempt, Bounds, lane, run_lanes
from ._log import Log
from ._measure import Bench
from ._networks import Fit, Networks
from ._point import Group, Point
from ._shapes import ShapeModel, branch_name
from ._verify import Task, Verifier, cost_of

FIT_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)
"""Shares of the widths of the networks that offset and slope of the latency are fitted to."""

Minimise = str | Callable[[nn.Module], float]


class Search:
    """State of one search.

    Args:
        model: the dense network.
        example: example inputs.
        evaluate: quality of a network.
        fit: fine-tuning.
        max_drop: largest drop.
        minimise: the cost.
        device: profile of another device; None for this machine.
        allow: levers.
        calibration: inputs.
        importance: importance of channels.
        round_to: number of which widths are multiples.
        exclude: dimensions that keep their widths.
        trials: candidates per precision.
        threads: threads of ONNX Runtime.
        folder: folder of log and networks.
        on_candidate: called with every candidate.
    """

    def __init__(
        self, model: nn.Module, example: Example, evaluate: Evaluate, fit: Fit | None, max_drop: float,
        minimise: Minimise, device: DeviceProfile | None, allow: Collection[str],
        calibration: Sequence[Example], importance: str | ChannelImportance | None,
        round_to: int | None, exclude: Collection[str], trials: int, threads: int, folder: Path | None,
        on_candidate: Callable[[Candidate], object] | None,
    ) -> None:  # fmt: skip
        self._model, self._example, self._minimise = model, example, minimise
        self._allow, self._round_to, self._trials = allow, round_to, trials
        self._folder, self._show = folder, on_candidate
        self._precisions = precisions_of(minimise, allow)
        self._threads = threads if device is None else device.threads
        # Mistakes are found before the folder belongs to this search.
        self.judge = Judge(evaluate, model)
        self.coupling = coupling(model, example)
        known = find_branches(model, self.coupling, example) if "branches" in allow else ()
        check_names(exclude, self.coupling, [branch_name(branch) for branch in known])
        self._branches = tuple(b for b in known if branch_name(b) not in exclude)
        if importance is not None:
            importance_of(importance)
        facts = {
            "exclude": sorted(exclude),
            "importance": name_of(importance),
            "fit": getattr(fit, "settings", fit is not None),
            "evaluate": getattr(evaluate, "settings", None),
            "inputs": Inputs.of(example).shapes,
            "calibration": [Inputs.of(batch).shapes for batch in calibration],
            "samples": self.judge.samples,
        }
        self._log = Log(folder, {**self._facts(max_drop, device), **facts}, is_whole)
        batches = list(calibration) or [example]
        order: Orders = {}
        if "channels" in allow and self.coupling.free:
            # By every process, since scores are summed over those of a group.
            own = orders(model, self.coupling, importance, batches, exclude)
            # In the log, so that a width means the same channels if batches come in another order.
            order = self._log.result("orders", lambda: {"channels": own})["channels"]
        self._distance = OutputDistance(model, batches)
        first = Inputs.of(example)
        inputs = [Inputs.of(batch).in_order_of(first).tensors() for batch in batches]
        self._networks = Networks(
            model, self.coupling, order, example, self._distance if calibration else None, fit,
            self._branches, folder,
        )  # fmt: skip
        self._bench = Bench(model, example, inputs, self._threads)
        self._task = Task(minimise, max_drop, device is None)
        self._verifier = Verifier(
            self._task, self._networks, self.judge, self._bench, example, batches, folder
        )
        self.shapes = ShapeModel(model, self.coupling, example, self._branches)
        self._order, self._device = order, device
        self.fits: dict[str, LatencyFit] = {}
        self.fit_runs: dict[str, list[dict[str, float]]] = {}
        self.label = "" if device is None else device.label
        self._table: OperationTable | None = None if device is None else device.table()
        self._shown: set[str] = set()
        self._predicted: dict[str, float] = {}

    def run(self) -> list[Candidate]:
        """Try candidates until every lane is done; all of them, the dense network first."""
        try:
            self._prepare()
            # Only after a first attempt at a bitstream is it known what each tensor costs.
            fronts = {precision: self._front(precision) for precision in self._precisions}
            bounds, lanes = Bounds(), []
            for precision in sorted(fronts, key=lambda p: fronts[p][0].cost):
                if self._minimise == "memory":  # there, the estimate is of another kind
                    bounds = Bounds()
                found = fronts[precision]
                tried = lane(found, self._trials, bounds, falling=precision != "nnc")
                lanes.append((tried, self._attempt(precision, found)))
            run_lanes(lanes)
            return self._candidates()
        finally:
            self._bench.close()

    def network(self, candidate: Candidate) -> tuple[nn.Module, CodecSettings | None]:
        """The network of a candidate, and the settings to code it with."""
        point = Point(candidate.widths, candidate.sparsity)
        if candidate.precision != "nnc":
            return self._networks(point), None
        return self._verifier.stream(candidate.key, point)

    @property
    def dense(self) -> FrontPoint:
        """The point at which nothing is removed."""
        elsewhere = self._minimise == "latency" and self._device is not None
        # On another device the prediction is all that is known of a cost.
        cost = self._cost("float32").total(Point()) if elsewhere else 0.0
        return FrontPoint(Point(), 0.0, cost)

    def _facts(self, max_drop: float, device: DeviceProfile | None) -> Mapping[str, Any]:
        """Settings that the results depend on, to be compared when a search goes on.

        The number of trials is none: a search goes on with more of them.
        """
        return {
            "max_drop": max_drop,
            "minimise": self._minimise
            if isinstance(self._minimise, str)
            else f"a function {name_of(self._minimise)}",
            "allow": sorted(self._allow),
            # Its times, too: a device that was measured again has the same label.
            "device": None if device is None else f"{device.label}, {device.digest}",
            "threads": self._threads,
            "round_to": self._round_to,
            "model": digest_of(self._model),
        }

    def _prepare(self) -> None:
        """Measure the dense network: the reference of latencies, and the first candidate."""
        if self._minimise == "latency" and self._device is None:
            profile, self._table = this_device(self._threads)
            self.label = profile.label
            own = {"device": profile.label}
            found = self._log.result(
                "latency-dense", lambda: {"ms": self._bench.times({})[""], **own}
            )
            if found.get("device", self.label) != self.label:  # earlier versions did not note it
                raise ConfigError(
                    f"shrink: the latencies in {self._folder} were measured on {found['device']}, and this is "
                    f"{self.label}: continue there, or choose another folder"
                )
            self._verifier.reference = found["ms"]
        dense = self._log_candidate("float32", self.dense)
        if dense.cost is None:  # every other candidate would fail alike
            raise ModelError(f"shrink: the {self._minimise} of the dense network: {dense.why}")
        self._first = dense.key

    def _front(self, precision: Precision) -> list[FrontPoint]:
        """The front of a precision, as it is in the log."""

        def compute() -> dict[str, Any]:
            cost, groups = self._cost_and_groups(precision)
            points = front(groups, cost)
            return {
                "points": [
                    [dict(p.point.widths), p.point.sparsity, p.distance, p.cost] for p in points
                ]
            }

        found = self._log.result(f"front-{precision}", compute)
        if self._minimise == "latency" and precision not in self.fits:
            self._fitted(precision)
        return [FrontPoint(Point(w, s), d, c) for w, s, d, c in found["points"]]

    def _cost_and_groups(self, precision: Precision) -> tuple[Cost, list[Group]]:
        cost = self._cost(precision)
        levels = {}
        for name in self._order:
            staircase = self._minimise == "latency"
            widths = widths_of(len(self._order[name]), self._round_to, staircase)
            levels[name] = steps_of(name, widths, cost) if staircase else widths
        # Precisions share the sensitivities: their distances are those of the float32 network.
        every = self._all_levels(levels)
        groups = channel_groups(
            self._model, self.coupling, self._order, every, self._distance, self._log
        )
        groups = [chosen_levels(group, levels[group.name]) for group in groups]
        groups += branch_groups(self._model, self._branches, self._distance, self._log)
        if "weights" in self._allow and precision == "nnc":
            groups.append(weight_group(self._model, self._distance, self._log))
        return cost, [group for group in groups if len(group.levels) > 1]

    def _all_levels(self, levels: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        if self._minimise != "latency":
            return dict(levels)
        return {n: widths_of(len(order), self._round_to, True) for n, order in self._order.items()}

    def _cost(self, precision: Precision) -> Cost:
        if self._minimise == "latency":
            assert self._table is not None
            return latency_cost(self.shapes, self._table, precision, self._fitted(precision))
        if self._minimise == "macs":
            samples = Inputs.of(self._example).samples
            return OperationCost(self.shapes, lambda o: o.macs / samples)
        if self._minimise == "bytes":
            return self._byte_cost(precision)
        narrowest = {
            n: widths_of(len(o), self._round_to, False)[-1] for n, o in self._order.items()
        }
        narrowest.update(dict.fromkeys(map(branch_name, self._branches), 0))
        return SlopeCost(
            lambda widths: self._estimate(self._networks.cut(Point(dict(widths)))),
            narrowest, self.shapes.dense,
        )  # fmt: skip

    def _estimate(self, model: nn.Module) -> float:
        if callable(self._minimise):
            return cost_of(self._minimise, model)
        found = peak_memory(model, self._example)
        assert found is not None  # of a module it is always known
        return float(found.bytes)

    def _byte_cost(self, precision: Precision) -> Cost:
        state = self._model.state_dict()
        floating = {n: t for n, t in state.items() if t.is_floating_point()}
        if precision != "nnc":
            small = precision == "int8"
            # As `footprint` counts: in float32, whatever the type of the network is.
            sizes = {n: 1.0 if small and t.dim() > 1 else 4.0 for n, t in floating.items()}
            tensors = ByteCost(self.shapes, sizes, {}).total(Point())
            # Integer buffers, and of an int8 file the graph and the scales, as the dense one shows.
            whole = self._log_candidate(precision, self.dense).bytes
            rest = 0.0 if whole is None else max(0.0, whole - tensors)
            return ByteCost(self.shapes, sizes, {}, overhead=rest)
        first = self._log_candidate("nnc", self.dense)
        if not first.passed:
            return ByteCost(self.shapes, dict.fromkeys(floating, 1.0), {})
        model, settings = self.network(first)
        assert settings is not None
        factors = sparse_factors(model, settings) if "weights" in self._allow else {}
        weights = [n for n, t in floating.items() if t.dim() > 1]
        return ByteCost(self.shapes, rates(model, settings), factors, weights)

    def _fitted(self, precision: Precision) -> LatencyFit:
        """Offset and slope of the latency on the device."""
        kind = "int8" if precision == "int8" else "float32"
        if self._device is not None:
            self.fits[precision] = self._device.fit(cast("Any", kind))
            return self.fits[precision]
        found = self._log.result(f"latency-fit-{kind}", lambda: {"runs": self._runs(kind)})
        self.fit_runs[precision] = found["runs"]
        self.fits[precision] = fit_latency([(r["table"], r["ms"]) for r in found["runs"]])
        return self.fits[precision]

    def _runs(self, kind: str) -> list[dict[str, float]]:
        """Latencies of the dense network and of uniformly narrowed ones."""
        assert self._table is not None
        files, sums = {}, {}
        for share in FIT_SHARES if self._order else (1.0,):
            widths = {n: _near(share, len(o), self._round_to) for n, o in self._order.items()}
            point = Point({n: w for n, w in widths.items() if w < len(self._order[n])})
            files[str(share)] = self._bench.exported(self._networks.cut(point), kind, f"fit{share}")
            operations = [o.at(cast("Any", kind)) for o in self.shapes.operations(point.widths)]
            sums[str(share)] = self._table.measured(operations).sum(operations)
        reference = self._verifier.reference
        assert reference is not None
        runs = []
        for name, path in files.items():
            # In pairs, as candidates are timed: more networks would empty the caches in between.
            times = self._bench.times({name: path})
            ms = times[name] * reference / times[""]
            runs.append({"share": float(name), "table": sums[name], "ms": ms})
        return runs

    def _attempt(self, precision: Precision, points: Sequence[FrontPoint]) -> Attempt:
        def attempt(index: int) -> Candidate | None:
            at = points[index]
            key = f"{precision}-{at.point.key}"
            if self._minimise != "memory":  # there, the estimate is of another kind
                self._predicted[key] = at.cost
            found = self._log.attempt(key, lambda: self._verifier(at, precision).to_json())
            return None if found is None else self._seen(key, found)

        return attempt

    def _log_candidate(self, precision: Precision, at: FrontPoint) -> Candidate:
        key = f"{precision}-{at.point.key}"
        found = self._log.result(key, lambda: self._verifier(at, precision).to_json())
        return self._seen(key, found)

    def _seen(self, key: str, record: Mapping[str, Any]) -> Candidate:
        candidate = self._candidate(key, record)
        if self._show is not None and key not in self._shown:
            self._show(candidate)
        self._shown.add(key)
        return candidate

    def _candidates(self) -> list[Candidate]:
        keys = [self._first, *sorted(self._shown - {self._first})]
        return [self._candidate(key, self._log.find(key) or {}) for key in keys]

    def _candidate(self, key: str, record: Mapping[str, Any]) -> Candidate:
        """The candidate of a record, with its prediction: the first ones were tried without."""
        return Candidate.from_json(key, {**record, "predicted": self._predicted.get(key)})


_FIELDS = {
    "orders": {"channels"}, "front-": {"points"}, "sensitivity-": {"distances"},
    "latency-dense": {"ms"}, "latency-fit-": {"runs"},
}  # fmt: skip
"""Beginning of a key -> fields of its line in the log."""


def is_whole(key: str, entry: Mapping[str, Any]) -> bool:
    """Return True if a line of the log has the fields that its key calls for."""
    if key.startswith(tuple(f"{precision}-" for precision in get_args(Precision))):
        return Candidate.is_record(entry)
    return all(needed <= set(entry) for begin, needed in _FIELDS.items() if key.startswith(begin))


def precisions_of(minimise: Minimise, allow: Collection[str]) -> tuple[Precision, ...]:
    """The precisions that a cost depends on."""
    if minimise == "bytes" and "nnc" in allow:
        return ("nnc",)
    if minimise in ("latency", "bytes", "memory") and "int8" in allow:
        return ("float32", "int8")
    return ("float32",)


def _near(share: float, width: int, round_to: int | None) -> int:
    step = round_to or (8 if width >= 16 else 1)
    return min(width, max(step, round(share * width / step) * step))
