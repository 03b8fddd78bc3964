"""Shrinking: the answer holds its bound by measurement, and a search that was interrupted goes on
to the same answer.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.seams.search import (
    Bounds,
    FrontPoint,
    Group,
    Judge,
    Log,
    OperationCost,
    OutputDistance,
    Point,
    ShapeModel,
    front,
    lane,
)
from torch import Tensor, nn

from pair import in_two_processes
from snello.deploy.operations import DeviceProfile, Operation, ProfiledModel
from snello.errors import ConfigError, ModelError
from snello.graph import coupling
from snello.graph.coupled import cut
from snello.pruning.channels import Keep, measured_size, plan_channels
from snello.search import shrink
from snello.search.prune import as_plan
from snello.search.shrink import Candidate, Shrunk
from snello.simplification import apply, fold_batchnorm

INPUTS = torch.randn(256, 16, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)
    )
    for parameter in model.parameters():  # biases would decide most of the answers
        nn.init.normal_(parameter) if parameter.dim() > 1 else nn.init.zeros_(parameter)
    return model.eval()


LABELS = network()(INPUTS).argmax(1)


def right(model: nn.Module) -> Tensor:
    return (model(INPUTS).argmax(1) == LABELS).double()


def shrunk(**options: Any) -> Shrunk:
    given: dict[str, Any] = {"minimise": "macs", "max_drop": 0.2, "calibration": [INPUTS]}
    return shrink(network(), INPUTS[:1], right, **{**given, **options})


def test_the_answer_holds_the_bound() -> None:
    found = shrunk(max_drop=0.05)
    size = measured_size(found.model, INPUTS[:1])
    differences = 1 - right(found.model)
    limit = float(differences.mean()) + 1.6449 * float(differences.std()) / math.sqrt(256)
    assert found.chosen.limit == pytest.approx(limit, abs=1e-12)
    assert limit <= 0.05
    assert found.chosen.cost == size.macs == found.chosen.predicted < found.dense.macs
    rejected = [c for c in found.candidates if not c.passed]
    assert rejected, "the bound was not tight"
    assert all(c.cost is not None and c.cost < size.macs for c in rejected)
    assert "chosen" in str(found)


def test_a_scalar_is_compared_plainly() -> None:
    found = shrink(
        network(), INPUTS[:1], lambda m: float(right(m).mean()), minimise="macs", max_drop=0.2,
        calibration=[INPUTS],
    )  # fmt: skip
    assert found.samples == 1
    assert found.chosen.limit == found.chosen.drop == pytest.approx(1 - right(found.model).mean())


def test_paired_differences_leave_agreement_out() -> None:
    """The limit depends on the samples that change, not on the accuracy."""
    answers = iter([torch.tensor([1.0, 0.0] * 50), torch.tensor([1.0, 0.0] * 49 + [0.0, 0.0])])
    verdict = Judge(lambda _: next(answers), nn.Identity())(nn.Identity())
    assert verdict.drop == pytest.approx(0.01)
    assert verdict.limit == pytest.approx(0.01 + 1.6449 * 0.1 / 10)


@pytest.mark.parametrize("minimise", ["macs", "bytes"])
def test_an_interrupted_search_gives_the_same_answer(tmp_path: Path, minimise: str) -> None:
    allow = (
        ("channels", "weights", "int8") if minimise == "macs" else ("channels", "weights", "nnc")
    )
    if minimise == "bytes":
        pytest.importorskip("nncodec")
    whole = shrunk(folder=tmp_path / "whole", minimise=minimise, allow=allow, trials=4)
    lines = (tmp_path / "whole" / "candidates.jsonl").read_text().splitlines(keepends=True)
    # Half of its results, and half a line.
    (tmp_path / "half").mkdir()
    log = tmp_path / "half" / "candidates.jsonl"
    log.write_text("".join(lines[: len(lines) // 2]) + lines[-1][:20])
    resumed = shrunk(folder=tmp_path / "half", minimise=minimise, allow=allow, trials=4)
    memory = shrunk(minimise=minimise, allow=allow, trials=4)
    for other in (resumed, memory):
        assert other.chosen.widths == whole.chosen.widths
        assert other.chosen.cost == whole.chosen.cost
        assert other.settings == whole.settings
        for a, b in zip(other.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(a, b)
    again = shrunk(folder=tmp_path / "whole", minimise=minimise, allow=allow, trials=4)
    assert str(again) == str(whole)
    assert (tmp_path / "whole" / "candidates.jsonl").read_text() == "".join(lines)
    same: dict[str, Any] = {"folder": tmp_path / "whole", "minimise": minimise, "allow": allow}
    for name, value in (
        ("max_drop", 0.1), ("exclude", ("0",)), ("importance", "l1"), ("calibration", [INPUTS[:9]])
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=name):
            shrunk(**same, **{name: value})


def test_a_network_with_norms_is_read_back_from_the_folder(tmp_path: Path) -> None:
    """The rate search folds the norms, which changes the keys of the network that is kept."""
    pytest.importorskip("nncodec")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 24), nn.BatchNorm1d(24), nn.ReLU(),
        nn.Linear(24, 4),
    )  # fmt: skip
    with torch.no_grad():
        model(INPUTS)  # statistics
    labels = model.eval()(INPUTS).argmax(1)

    def found(folder: Path | None) -> Shrunk:
        return shrink(
            model, INPUTS[:1], lambda m: (m(INPUTS).argmax(1) == labels).double(), minimise="bytes",
            max_drop=0.2, calibration=[INPUTS], allow=("channels", "nnc"), trials=3, folder=folder,
        )  # fmt: skip

    whole, again, memory = found(tmp_path), found(tmp_path), found(None)
    assert whole.chosen.precision == "nnc"
    assert whole.chosen.cost < whole.dense.bytes
    for other in (again, memory):
        assert other.chosen.cost == whole.chosen.cost
        assert other.settings == whole.settings
        assert torch.equal(other.model(INPUTS), whole.model(INPUTS))


@pytest.mark.parametrize("minimise", ["macs", "bytes"])
def test_a_network_without_free_channels_is_left_as_it_is(minimise: str) -> None:
    if minimise == "bytes":
        pytest.importorskip("nncodec")
    model = nn.Linear(16, 4).eval()  # the whole model is one layer
    labels = model(INPUTS).argmax(1)
    found = shrink(
        model, INPUTS[:1], lambda m: (m(INPUTS).argmax(1) == labels).double(), minimise=minimise,  # type: ignore[arg-type]
        max_drop=0.2, calibration=[INPUTS], allow=("channels", "nnc"), trials=3,
    )  # fmt: skip
    assert found.chosen.widths == {}
    assert found.chosen.limit <= 0.2
    assert found.chosen.cost < found.dense.bytes if minimise == "bytes" else 65


def test_a_network_that_cannot_be_exported_is_refused() -> None:
    pytest.importorskip("onnxruntime")

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    model = Odd().eval()
    with pytest.raises(ModelError, match="exported"):
        shrink(model, INPUTS[:1], lambda m: 1.0, minimise="memory", calibration=[INPUTS])


@pytest.mark.parametrize(
    ("form", "minimise", "allow"),
    [
        ("lean", "bytes", ("nnc",)),
        ("folded", "macs", ("channels",)),
        ("lean and folded", "macs", ("channels",)),
    ],
)
def test_a_network_that_was_made_lean_before_is_read_back(
    form: str, minimise: Any, allow: Any, tmp_path: Path
) -> None:
    """Its own plan and folds are part of what it starts from; they are not applied twice."""
    pytest.importorskip("nncodec")
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(
        nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)
    )  # fmt: skip
    with torch.no_grad():
        model(INPUTS)  # statistics
        model[0].weight[20:] = 0
    model.eval()
    if "lean" in form:
        plan = plan_channels(model, INPUTS[:1], Keep(parameters=0.6))
        model = apply(as_plan(model, plan, INPUTS[:1]), model)
    if "folded" in form:
        model = fold_batchnorm(model, INPUTS[:2])
    labels = model(INPUTS).argmax(1)

    def found(folder: Path | None) -> Shrunk:
        return shrink(
            model, INPUTS[:1], lambda m: m(INPUTS).argmax(1) == labels, minimise=minimise,
            allow=allow, max_drop=0.2, calibration=[INPUTS], trials=3, folder=folder,
        )  # fmt: skip

    whole, again, memory = found(tmp_path), found(tmp_path), found(None)
    for other in (again, memory):
        assert other.chosen.cost == whole.chosen.cost
        assert torch.equal(other.model(INPUTS), whole.model(INPUTS))
    assert (
        float((whole.deployed()(INPUTS).argmax(1) == labels).double().mean()) == whole.chosen.value
    )


class TwoInputs(nn.Module):
    """Two inputs of different widths, and an output in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, scale: float = 1.0, z: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.head(torch.relu(self.a(x) + scale * self.b(z)))}


@pytest.mark.parametrize("allow", [("nnc",), ("int8",)])
def test_keywords_may_come_in_any_order(allow: Any) -> None:
    """Neither the order of the forward's parameters nor of the example decides."""
    pytest.importorskip("nncodec" if allow == ("nnc",) else "onnxruntime")
    torch.manual_seed(0)
    model = TwoInputs().eval()
    x, z = INPUTS[:, :6], INPUTS[:, 6:10]
    labels = model(x, z=z)["logits"].argmax(1)

    def agree(network: nn.Module) -> Tensor:
        one = network(x, z=z)["logits"]
        assert torch.equal(one, network(z=z, x=x)["logits"])
        return one.argmax(1) == labels

    found = shrink(
        model, {"z": z[:1], "x": x[:1]}, agree, minimise="bytes", max_drop=0.2, allow=allow,
        calibration=[{"z": z[:64], "x": x[:64]}, {"x": x[64:128], "z": z[64:128]}],
    )  # fmt: skip
    assert not any(candidate.why for candidate in found.candidates)
    assert [c.precision for c in found.candidates if c.passed][-1] == allow[0]


def _worker(rank: int, folder: Path) -> dict[str, Any]:
    return shrunk(folder=folder).chosen.to_json()


def test_two_processes_share_a_search(tmp_path: Path) -> None:
    """Each result is computed once, and both give the answer of one process."""
    answers = in_two_processes(_worker, tmp_path)
    keys = [json.loads(x)["key"] for x in (tmp_path / "candidates.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys))
    assert answers[0] == answers[1]
    assert answers[0]["widths"] == shrunk().chosen.widths


def test_a_line_that_another_process_is_writing_is_read_later(tmp_path: Path) -> None:
    log = Log(tmp_path, {"a": 1})
    with (tmp_path / "candidates.jsonl").open("a") as file:
        file.write('{"key": "x", ')
        file.flush()
        assert log.find("x") is None
        file.write('"value": 2}\n')
    assert log.find("x") == {"value": 2}


def test_latency_on_another_device_follows_its_staircase() -> None:
    """A device that computes in blocks of 16 gains nothing by widths in between."""
    grid = [(a, b) for a in range(1, 33) for b in range(1, 33)]
    times = {
        Operation("linear", (1, a, b)).key: math.ceil(a / 16) * math.ceil(b / 16) * 1e-3
        for a, b in grid
    }
    dense = [Operation("linear", (1, *shape)).key for shape in ((16, 32), (32, 24), (24, 4))]
    whole = ProfiledModel("dense", "float32", 1e-3 * sum((2, 4, 2)) * 3, tuple(dense))
    profile = DeviceProfile({"cpu": "blocks"}, 1, times, (whole,))
    found = shrunk(minimise="latency", device=profile, allow=("channels",), max_drop=1.0)
    assert found.chosen.widths == {"0": 16, "2": 16}
    assert found.chosen.cost == found.chosen.predicted == pytest.approx(3 * 3e-3)
    assert found.dense.cost == found.dense.predicted == pytest.approx(3 * 8e-3)
    assert found.chosen.latency_ms is None
    assert "blocks" in found.device


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5),
    ).eval()  # fmt: skip


class Attention(nn.Module):
    """A tiny vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("build", [conv_net, Attention])
def test_shapes_at_any_widths_are_those_of_the_cut_network(build: Any) -> None:
    model, x = build().eval(), torch.randn(2, 3, 8, 8)
    groups = coupling(model, x)
    shapes = ShapeModel(model, groups, x)
    macs = OperationCost(shapes, lambda o: o.macs / 2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        widths = {
            n: int(torch.randint(1, w + 1, (), generator=generator))
            for n, w in shapes.dense.items()
        }
        gone = {n: range(shapes.dense[n] - kept) for n, kept in widths.items()}
        lean = cut(model, groups, gone, x)
        assert sum(shapes.elements(widths).values()) == sum(
            t.numel() for t in (*lean.parameters(), *lean.buffers())
        )
        point = type("P", (), {"widths": widths})()
        assert macs.total(point) == measured_size(lean, x).macs


class _Separable:
    """A cost that is a sum over the groups."""

    def __init__(self, groups: Sequence[Group], weights: dict[str, float]) -> None:
        self._whole = {g.name: g.levels[0] for g in groups}
        self._weights = weights

    def near(self, group: str, point: Any) -> float:
        return self._weights[group] * point.widths.get(group, self._whole[group])

    def total(self, point: Any) -> float:
        return sum(self.near(name, point) for name in self._whole)


def test_the_distance_of_a_small_step_is_small() -> None:
    """Statistics of a few inputs differ from those of the training: that is no distance."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    model(100 * INPUTS)  # statistics of other inputs
    model.eval()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    distance = OutputDistance(model, [INPUTS[:32]])
    assert distance(copy.deepcopy(model)) == 0
    smaller, larger = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        smaller[0].weight[0] = 0
        larger[0].weight[:32] = 0
    assert 0 < distance(smaller) < 0.1 * distance(larger)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_new_statistics_are_kept_where_they_bring_the_outputs_nearer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4)
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(50):
            model(INPUTS)
    distance = OutputDistance(model.eval(), [INPUTS[:32]])
    smaller, larger = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        smaller[0].weight[0] *= 0.9
        for parameter in larger[0].parameters():
            parameter *= 0.2  # statistics repair all of it
    assert distance.recovered(smaller) is smaller
    found = distance.recovered(larger)
    assert not torch.equal(found[3].running_mean, larger[3].running_mean)
    assert torch.equal(larger[3].running_mean, model[3].running_mean)


def test_the_front_of_a_separable_cost_is_optimal() -> None:
    """No combination is cheaper at the same distance: the property of a Lagrangian's minimisers."""
    groups = [
        Group("a", (4, 3, 2, 1), (0.0, 0.1, 0.3, 1.0)),
        Group("b", (8, 4, 2), (0.0, 0.05, 0.6)),
        Group("c", (5, 1), (0.0, 0.4)),
    ]
    cost = _Separable(groups, {"a": 3.0, "b": 1.0, "c": 0.5})
    found = front(groups, cost)  # type: ignore[arg-type]
    assert found[0].point.dense
    assert dict(found[-1].point.widths) == {"a": 1, "b": 2, "c": 1}
    every = [
        (da + db + dc, 3.0 * a + 1.0 * b + 0.5 * c)
        for a, da in zip(groups[0].levels, groups[0].drops, strict=True)
        for b, db in zip(groups[1].levels, groups[1].drops, strict=True)
        for c, dc in zip(groups[2].levels, groups[2].drops, strict=True)
    ]
    for point in found:
        assert not [d for d, c in every if d < point.distance - 1e-12 and c <= point.cost]
    assert [p.cost for p in found] == sorted((p.cost for p in found), reverse=True)


def test_the_dense_network_is_on_the_front_where_a_narrower_one_is_as_near() -> None:
    """It tells if a precision alone keeps the bound, and may be the answer."""
    groups = [Group("a", (4, 3, 2), (0.0, 0.0, 1.0))]
    found = front(groups, _Separable(groups, {"a": 3.0}))  # type: ignore[arg-type]
    assert [dict(p.point.widths) for p in found] == [{}, {"a": 3}, {"a": 2}]


def _candidate(cost: float, passed: bool) -> Candidate:
    limit = 0.0 if passed else 1.0
    return Candidate(
        "", "float32", {}, 0.0, 0.0, None, None, None, limit, 0, 0, None, None, None, cost, passed
    )


def _tried(lane_: Any, judge: Any) -> list[int]:
    """The indices that a lane tries."""
    tried = [next(lane_)]
    for _ in range(100):
        try:
            tried.append(lane_.send(judge(tried[-1])))
        except StopIteration:
            break
    return tried


def _points(costs: Sequence[float]) -> list[FrontPoint]:
    """Points ever further away, with these costs."""
    return [FrontPoint(Point(), float(i), cost) for i, cost in enumerate(costs)]


@pytest.mark.parametrize("limit", [0, 1, 17, 40, 59])
def test_bisection_finds_the_furthest_point(limit: int) -> None:
    costs = range(60, 0, -1)
    found = lane(_points(costs), 20, Bounds(), falling=True)
    tried = _tried(found, lambda i: _candidate(costs[i], i <= limit))
    assert limit in tried
    assert len(tried) <= 8


def test_bisection_halves_the_cost() -> None:
    """Of a front with most points at a few per cent, a tight bound is not looked for there."""
    costs = [100, 95, 90, 80, 70, 60, 50, 40, *range(20, 0, -1)]
    found = lane(_points(costs), 5, Bounds(), falling=True)
    tried = _tried(found, lambda i: _candidate(costs[i], costs[i] >= 80))
    assert [costs[i] for i in tried] == [100, 50, 80, 70]


def test_a_lane_spares_what_another_one_rules_out() -> None:
    """Neither points that cost more than one within the bound, nor any beyond one that failed."""
    bounds, cheap, dear = Bounds(), range(60, 0, -1), range(200, 80, -1)
    _tried(lane(_points(cheap), 20, bounds, falling=True), lambda i: _candidate(cheap[i], i <= 30))
    assert (bounds.cost, bounds.distance) == (30, 31)
    assert _tried(lane(_points(dear), 20, bounds, falling=True), lambda i: _candidate(1, True)) == [
        0
    ]
    near = [FrontPoint(Point(), i / 10, 100.0 - i) for i in range(100)]
    tried = _tried(lane(near, 20, bounds, falling=True), lambda i: _candidate(100 - i, i <= 80))
    assert min(tried[1:]) > 70
    assert max(i for i in tried if i <= 80) == 80


@pytest.mark.parametrize("seed", range(20))
def test_lanes_together_find_the_cheapest_point_of_all(seed: int) -> None:
    """As if each were bisected alone, where whatever is near enough is within the bound."""
    draw = torch.Generator().manual_seed(seed)
    fronts = [
        [
            FrontPoint(Point(), d, c)
            for d, c in zip(
                (torch.rand(30, generator=draw).cumsum(0) - 1).clamp_min(0).tolist(),
                (100 * torch.rand(30, generator=draw)).sort(descending=True).values.tolist(),
                strict=True,
            )
        ]
        for _ in range(2)
    ]
    limit = 10 * float(torch.rand((), generator=draw))
    bounds, tried = Bounds(), []
    for points in fronts:
        found = lane(points, 30, bounds, falling=True)
        tried += [
            points[i]
            for i in _tried(
                found, lambda i, p=points: _candidate(p[i].cost, p[i].distance <= limit)
            )
        ]
    near = [p.cost for p in (*fronts[0], *fronts[1]) if p.distance <= limit]
    assert min(p.cost for p in tried if p.distance <= limit) == min(near)
    assert len(tried) <= 14


def test_a_precision_that_fails_alone_rules_nothing_out() -> None:
    bounds = Bounds()
    found = lane(_points(range(60, 0, -1)), 20, bounds, falling=True)
    assert _tried(found, lambda i: _candidate(1, False)) == [0]
    assert bounds == Bounds()


def test_what_could_not_be_built_rules_nothing_out() -> None:
    """Its reason is another one than the distance."""
    bounds = Bounds()
    found = lane(_points(range(60, 0, -1)), 20, bounds, falling=True)
    _tried(found, lambda i: replace(_candidate(1, i == 0), limit=0.0 if i == 0 else None))
    assert bounds == Bounds(cost=60)


@pytest.mark.parametrize("cheapest", [3, 20, 44])
def test_a_cost_with_a_valley_is_searched_on_both_sides(cheapest: int) -> None:
    costs = range(60, 0, -1)
    found = lane(_points(costs), 30, Bounds(), falling=False)
    tried = _tried(found, lambda i: _candidate(abs(i - cheapest), i <= 50))
    assert min(abs(i - cheapest) for i in tried) <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": -1}, "max_drop"),
        ({"max_drop": math.nan}, "max_drop"),
        ({"max_drop": math.inf}, "finite"),
        ({"allow": ("int8", "nnc")}, "lowers no macs: add one of channels, branches"),
        ({"allow": ("weights",), "minimise": "bytes"}, "lowers no bytes: add one of channels"),
        ({"device": DeviceProfile({}, 1, {})}, "profile of latencies"),
        ({"minimise": "latancy"}, "latency"),
        ({"allow": ("chanels",)}, "chanels"),
        ({"allow": "channels"}, "allow"),
        ({"trials": 0}, "trials"),
        ({"trials": "3"}, "trials"),
        ({"round_to": 2.5}, "round_to"),
        ({"threads": 0}, "threads"),
        ({"minimise": ["macs"]}, "macs"),
        ({"minimise": lambda _: None}, "None"),
        ({"minimise": lambda _: math.nan}, "nan"),
        ({"allow": 3}, "allow"),
        ({"allow": iter(("channels",))}, "allow"),
        ({"exclude": ("9",)}, "no dimension '9'"),
        ({"exclude": "0"}, "exclude"),
        ({"fit": 3}, "fit"),
        ({"calibration": INPUTS}, "list of batches"),
        ({"calibration": None}, "list of batches"),
        ({"calibration": [INPUTS[:0]]}, "no samples"),
        ({"calibration": [(INPUTS, LABELS)]}, "without labels"),
        ({"calibration": [INPUTS.double()]}, "first batch of calibration"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shrunk(**options)


def test_a_classifier_without_free_channels_is_only_coded() -> None:
    model = nn.Linear(16, 4)
    for minimise in ("macs", lambda m: sum(p.numel() for p in m.parameters())):
        found = shrink(
            model, INPUTS[:1], lambda m: m(INPUTS).argmax(1) == 0, minimise=minimise, calibration=[INPUTS]
        )  # fmt: skip
        assert found.chosen is found.dense


def test_a_cost_that_cannot_be_measured_is_refused() -> None:
    """No runtime computes convolutions in float64; the dense network would win unmeasured."""
    pytest.importorskip("onnxruntime")
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(56, 4)).double()
    inputs = INPUTS[:, None].double()
    with pytest.raises(ModelError, match="memory of the dense network"):
        shrink(model, inputs[:1], lambda m: m(inputs).argmax(1) == 0, minimise="memory")


def test_an_evaluate_without_numbers_is_refused() -> None:
    with pytest.raises(ConfigError, match="number"):
        shrink(network(), INPUTS[:1], lambda _: None, minimise="macs")
    with pytest.raises(ConfigError, match="NaN"):
        shrink(network(), INPUTS[:1], lambda _: math.nan, minimise="macs")
    # A matrix of outputs, and a pair of loss and accuracy, are no values per sample.
    for odd in (torch.zeros(8, 4), torch.zeros(0), torch.zeros(8) * 1j, (0.5, 0.9)):
        with pytest.raises(ConfigError, match="one number per sample"):
            shrink(network(), INPUTS[:1], lambda _, odd=odd: odd, minimise="macs")


def test_a_network_with_nan_is_refused() -> None:
    model = network()
    model[0].weight.data[0, 0] = math.nan  # type: ignore[index, union-attr, operator]
    with pytest.raises(ModelError, match=r"0\.weight"):
        shrink(model, INPUTS[:1], right, minimise="macs", calibration=[INPUTS])


def test_evaluate_may_change_what_it_is_given() -> None:
    """Such as move it to a GPU, or halve its precision."""

    def changing(model: nn.Module) -> Tensor:
        found = right(model)
        model.double()
        return found

    found = shrink(
        network(), INPUTS[:1], changing, minimise="macs", max_drop=0.2, calibration=[INPUTS]
    )
    assert found.chosen == replace(shrunk().chosen, seconds=found.chosen.seconds)
    assert next(found.model.parameters()).dtype == torch.float32


def test_the_dense_network_has_no_drop() -> None:
    """Even if `evaluate` is random, it is what others are compared with."""
    torch.manual_seed(0)
    found = shrink(
        network(), INPUTS[:1], lambda m: right(m) + torch.rand(256), minimise="macs", max_drop=0
    )
    assert (found.dense.drop, found.dense.limit, found.dense.passed) == (0, 0, True)
