"""Channels chosen by importance, cut out of the user's own class, step by step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pair import in_two_processes
from seams.pruning import random_channels as random
from seams.search import name_of
from snello import Record, load, plan_of, save
from snello.errors import ConfigError, DataError, ModelError
from snello.graph.coupled import coupling
from snello.pruning import LayerLimits, OneShot, Pruner, Ratio, taylor
from snello.pruning.channels import (
    Keep,
    activation,
    group_fisher,
    group_taylor,
    magnitude,
    measured_size,
    neuron_scores,
    norm_scale,
    plan_channels,
)
from snello.pruning.recovery import recalibrate
from snello.search.prune import prune
from snello.sensitivity import lobster_scores, serene_scores
from snello.store import ModelSpec, read, summary
from zoo import CifarResNet

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _resnet() -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(8, 10).eval()


class Tokens(nn.Module):
    """A block of a transformer with heads of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = 4
        self.inputs, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(b, n, -1))
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(x.mean(1))


@pytest.mark.parametrize(
    ("build", "example"), [(_resnet, X), (Tokens, torch.randn(2, 7, 6))], ids=["resnet", "tokens"]
)
@pytest.mark.parametrize(
    "keep", [Keep(macs=0.5), Keep(parameters=0.3), Keep(channels=0.6)], ids=str
)
def test_what_is_left_keeps_the_bound_and_its_class(
    build: Any, example: Tensor, keep: Keep
) -> None:
    model = build()
    plan = plan_channels(model, example, keep)
    lean = plan.cut(model, example)
    before, after = measured_size(model, example), measured_size(lean, example)
    assert type(lean) is type(model)
    assert after.parameters == plan.after.parameters
    assert after.macs == pytest.approx(plan.after.macs, rel=1e-9), "products in attention too"
    assert before.macs == pytest.approx(plan.before.macs, rel=1e-9)
    if keep.macs:
        assert 0.8 * keep.macs < plan.after.macs / plan.before.macs <= keep.macs
    if keep.parameters:
        assert plan.after.parameters <= keep.parameters * before.parameters
    assert not torch.equal(lean(example), model(example))
    assert all(after >= 1 for _, after in plan.widths.values())
    assert "of the MACs" in str(plan)


class Odd(nn.Module):
    """Products that no layer counts: of raw parameters, tied, grouped, of activations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 16)
        self.q, self.k, self.v = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16)
        self.out = nn.Linear(32, 16)
        self.up = nn.Parameter(torch.randn(48, 16) / 4)
        self.down = nn.Parameter(torch.randn(16, 48) / 4)
        self.grow = nn.ConvTranspose1d(16, 12, 2, stride=2, groups=2)
        self.shrink = nn.Conv1d(12, 16, 3, groups=4)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        b, n, _ = x.shape
        q, k, v = (
            layer(input=x).view(b, n, -1, 8).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + torch.relu(x @ self.up.T) @ self.down.T
        return self.head(self.shrink(torch.relu(self.grow(x.mT))).mT).mean(1)


def _encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


@pytest.mark.parametrize(
    ("build", "example"),
    [(Odd, torch.arange(120).reshape(2, 60) % 20), (_encoder, torch.randn(2, 50, 16))],
    ids=["odd", "encoder"],
)
def test_planned_sizes_are_those_of_the_network_that_is_left(build: Any, example: Tensor) -> None:
    model = build()
    groups = coupling(model, example)
    for seed in range(4):
        plan = plan_channels(
            model, example, Keep(channels=0.7), importance=random(seed), groups=groups
        )
        before, after = measured_size(model, example), measured_size(plan.cut(model), example)
        assert (plan.before.parameters, plan.after.parameters) == (
            before.parameters,
            after.parameters,
        )
        assert plan.before.macs == pytest.approx(before.macs, rel=1e-9)
        assert plan.after.macs == pytest.approx(after.macs, rel=1e-9)
    found = prune(model, example, Keep(macs=0.8), steps=2)
    assert found.steps[-1].macs <= 0.8


def test_wrapped_models_are_planned_and_networks_of_buffers_refused() -> None:
    model = _resnet()
    wrapped = torch.compile(model, backend="eager")
    plans = [plan_channels(m, X, Keep(macs=0.5)) for m in (model, nn.DataParallel(model), wrapped)]
    assert plans[0].removed == plans[1].removed == plans[2].removed
    assert plans[0].after == plans[1].after == plans[2].after

    class Buffers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(8, 6))
            self.register_buffer("head", torch.randn(3, 8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.weight.T) @ self.head.T

    for call in (plan_channels, prune):
        with pytest.raises(ModelError, match="no parameters to remove, only buffers"):
            call(Buffers(), torch.randn(2, 6), Keep(macs=0.5))


def test_a_bound_out_of_reach_is_refused_before_anything_is_measured_or_trained() -> None:
    def never(*_: Any) -> float:
        raise AssertionError

    with pytest.raises(ConfigError, match=r"Keep\(macs=0.001.*cannot be reached"):
        prune(_resnet(), X, Keep(macs=0.001), steps=4, fit=never, evaluate=never)


def test_the_channels_that_are_worth_least_go_first() -> None:
    model = _resnet()
    inner = model.layer1[0].conv1  # written and read inside one block
    with torch.no_grad():
        inner.weight[[2, 5]] *= 1e-3
        model.layer1[0].conv2.weight[:, [2, 5]] *= 1e-3
    plan = plan_channels(model, X, Keep(channels=0.98))
    assert plan.removed["layer1.0.conv1"] == (2, 5)


@pytest.mark.parametrize("bound", ["macs", "parameters"])
def test_of_channels_of_one_worth_those_that_save_most_go_first(bound: str) -> None:
    """Two convolutions of a chain: one reads large images, the other has many weights."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 200),
    )  # fmt: skip

    def equal(_model: nn.Module, found: Any) -> dict[str, Tensor]:
        return {d.name: torch.ones(d.width) for d in found.free}

    equal.normalise = None  # type: ignore[attr-defined]  # in one unit
    plan = plan_channels(model, X, Keep(**{bound: 0.8}), importance=equal)
    assert set(plan.removed) == {"0" if bound == "macs" else "2"}
    by_turns = plan_channels(model, X, Keep(**{bound: 0.8}), importance=equal, normalise=None)
    lost = [sum(map(len, p.removed.values())) for p in (plan, by_turns)]
    assert lost[0] <= lost[1], "fewer channels of one worth for the same saving"


def test_widths_are_rounded_before_the_bound_is_met() -> None:
    model = _resnet()
    plan = plan_channels(model, X, Keep(macs=0.6), round_to=4)
    assert all(after % 4 == 0 for name, (before, after) in plan.widths.items() if before > 10)
    assert plan.after.macs <= 0.6 * plan.before.macs
    assert len({after for _, after in plan.widths.values()}) > 2


def test_importances_are_their_equations() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    ).double().eval()  # fmt: skip
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    found = coupling(model, x)
    name = found.free[0].name
    write, read, scale = model[0].weight, model[3].weight, model[1].weight
    torch.testing.assert_close(
        magnitude(2)(model, found)[name],
        (write.square().sum(1) + read.square().sum(0)).detach() / 2,
    )
    torch.testing.assert_close(
        magnitude(1, "first")(model, found)[name], write.abs().sum(1).detach()
    )
    torch.testing.assert_close(norm_scale(model, found)[name], scale.abs().detach())
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), [write, read])
    products = [(write * gradients[0]).sum(1), (read * gradients[1]).sum(0)]
    torch.testing.assert_close(
        group_taylor([(x, y)])(model, found)[name], sum(p.abs() for p in products).detach()
    )
    torch.testing.assert_close(
        group_fisher([(x, y)])(model, found)[name], sum(products).square().detach()
    )
    means = model[0](x).abs().mean(0).detach()
    torch.testing.assert_close(activation([x])(model, found)[name], means / means.mean())
    given = torch.rand(6, dtype=torch.float64)
    torch.testing.assert_close(
        neuron_scores({"0": given})(model, found)[name], given / given.mean()
    )


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "first"])
def test_taylor_scores_of_outputs_and_of_their_weights_agree_for_one_sample(reduce: Any) -> None:
    """Of a layer without bias, a dL/da = sum of w dL/dw over its row; for batches of one sample."""
    torch.manual_seed(0)
    first, second = nn.Linear(4, 6, bias=False), nn.Linear(6, 6, bias=False)

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = first, second, nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(torch.relu_(x + self.second(x).relu_()))

    model, x, y = Stream().double(), torch.randn(2, 4).double(), torch.tensor([0, 2])
    found = coupling(model, x)
    batches = [(x[i : i + 1], y[i : i + 1]) for i in range(2)]
    expected = []
    for weight in (first.weight, second.weight):
        products = [
            (weight * torch.autograd.grad(nn.functional.cross_entropy(model(a), b), weight)[0])
            for a, b in batches
        ]
        expected.append(torch.stack([p.sum(1).abs() for p in products]).mean(0).detach())
    each = torch.stack(expected)
    wanted = {"sum": each.sum(0), "mean": each.mean(0), "max": each.amax(0), "first": each[0]}
    scores = group_taylor(batches, of="outputs", reduce=reduce)(model, found)
    (name,) = [d.name for d in found.free]
    torch.testing.assert_close(scores[name], wanted[reduce])
    assert all(p.grad is None for p in model.parameters())
    whole = group_taylor([(x, y)], of="outputs", reduce=reduce)(model, found)
    if reduce != "max":
        torch.testing.assert_close(whole[name], scores[name])  # a mean over samples in either case


def test_reductions_and_kinds_of_taylor_are_checked() -> None:
    with pytest.raises(ConfigError, match="reduce is one of"):
        group_taylor([], reduce="min")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'weights' or 'outputs'"):
        group_taylor([], of="inputs")  # type: ignore[arg-type]


def _in_turn(rank: int, folder: Path) -> dict[str, Tensor]:
    """Prune in a group of processes that have other batches and measure other qualities."""
    images, labels = (
        torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(9)),
        torch.arange(4),
    )
    own = images[rank::2]
    qualities = iter([0.9, 0.8, 0.8 + 0.1 * rank, 0.7, 0.5 + 0.2 * rank])

    def fit(network: nn.Module) -> None:
        network.train()(own).square().mean().backward()
        torch.optim.SGD(network.parameters(), lr=0.1).step()

    found = prune(
        _resnet(), images[:1], Keep(macs=0.4), steps=3, max_drop=0.2, calibration=[own],
        importance=group_taylor([(own, labels[rank::2])]), fit=fit, folder=folder,
        evaluate=lambda _: next(qualities),
    )  # fmt: skip
    assert found.stopped is not None, found
    assert [s.quality for s in found.steps] == [0.9, pytest.approx(0.85)]
    return found.model.state_dict()


def test_processes_take_the_same_steps_and_end_with_the_same_weights(tmp_path: Path) -> None:
    first, second = in_two_processes(_in_turn, tmp_path)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1.pt", "steps.json"]


def test_a_pruned_network_is_saved_loaded_and_pruned_again(tmp_path: Path) -> None:
    model = _resnet()
    found = prune(model, X, Keep(macs=0.4), steps=2, calibration=[X])
    assert [s.step for s in found.steps] == [0, 1, 2]
    assert found.steps[2].macs <= 0.4 < found.steps[1].macs <= 0.4**0.5
    record = Record(ModelSpec("zoo:CifarResNet", {"depth": 8, "classes": 10}), (3, 32, 32))
    save(tmp_path / "lean.pt", found.model, record, trust="zoo:CifarResNet")
    again, _ = load(tmp_path / "lean.pt", trust="zoo:CifarResNet")
    assert torch.equal(again(X), found.model(X))
    assert plan_of(again) == (plan := plan_of(found.model))
    assert plan is not None
    text = f"narrowed: conv1.weight: axis 0 to {found.model.conv1.out_channels}"
    assert text in str(plan)
    assert summary(read(tmp_path / "lean.pt")[0])["plan"]["parameters"] == len(plan.parameters) > 0
    third = prune(again, X, Keep(macs=0.8)).model
    assert measured_size(third, X).macs <= 0.8 * measured_size(again, X).macs


def test_least_widths_are_shares_of_the_dense_network_in_every_step() -> None:
    """Half of what each of four steps finds would be a sixteenth."""
    limits = LayerLimits(keep_at_least=0.5)
    found = prune(_resnet(), X, Keep(macs=0.35), importance="random", steps=4, limits=limits)
    dense = {d.name: d.width for d in coupling(_resnet(), X).free}
    assert {d.name: d.width for d in coupling(found.model, X).free} == {
        name: pytest.approx(0.75 * width, rel=1 / 3) for name, width in dense.items()
    }
    with pytest.raises(ConfigError, match="cannot be reached"):
        prune(_resnet(), X, Keep(macs=0.2), importance="random", steps=4, limits=limits)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    def fit(network: nn.Module) -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        network.train()(X).square().mean().backward()
        optimizer.step()

    def run(folder: Path | None, fail_at: int = 9) -> nn.Module:
        seen = []

        def interrupted(network: nn.Module) -> None:
            seen.append(0)
            if len(seen) == fail_at:
                raise KeyboardInterrupt
            fit(network)

        return prune(
            _resnet(), X, Keep(macs=0.5), steps=3, fit=interrupted, folder=folder,
            importance=group_taylor([(X, torch.arange(3))]),
        ).model  # fmt: skip

    straight = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, fail_at=3)
    resumed = run(tmp_path)
    assert straight.state_dict().keys() == resumed.state_dict().keys()
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(ConfigError, match="holds a pruning with other settings"):
        prune(_resnet(), X, Keep(macs=0.3), steps=3, folder=tmp_path)


def test_a_fall_beyond_the_bound_is_undone() -> None:
    qualities = iter([0.9, 0.8, 0.89, 0.5, 0.6])
    found = prune(
        _resnet(), X, Keep(macs=0.3), steps=4, fit=lambda _: None, max_drop=0.1,
        evaluate=lambda _: next(qualities),
    )  # fmt: skip
    assert [s.quality for s in found.steps] == [0.9, 0.89]
    assert "step 2 was undone" in (found.stopped or "")
    assert measured_size(found.model, X).macs > 0.3 * measured_size(_resnet(), X).macs


def test_reconstruction_repairs_what_a_cut_has_changed() -> None:
    model = _resnet()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    recalibrate(model, [images])  # as if it had been trained on them

    def error(**options: Any) -> float:
        lean = prune(model, X, Keep(macs=0.7), **options).model
        return float((lean(images) - model(images)).square().mean().detach())

    plain = error()
    whole = error(calibration=[images], reconstruction=True)
    assert whole < 0.5 * plain
    assert whole < error(calibration=[images], reconstruction="biases") < plain


@pytest.mark.parametrize("measured", [False, True])
def test_a_share_of_channels_in_steps_is_that_of_the_dense_network(measured: bool) -> None:
    found = prune(
        _resnet(), X, Keep(channels=0.6), importance="random", steps=3, measured=measured,
        calibration=[X],
    )  # fmt: skip
    before = {d.name: d.width for d in coupling(_resnet(), X).free}
    after = {d.name: d.width for d in coupling(found.model, X).free}
    assert sum(after.values()) / sum(before.values()) == pytest.approx(0.6, abs=0.04)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"round_to": 4}, "round_to 1 there, 4 here"),
        ({"importance": "random"}, 'importance "l2" there, "random" here'),
        ({"exclude": ["layer1"]}, "exclude"),
        ({"limits": LayerLimits(0.4)}, "limits null there"),
        ({"normalise": "max"}, "normalise"),
        ({"evaluate": lambda model: 1.0}, "evaluate false there, true here"),
        ({"example_inputs": X[:1]}, "inputs"),
        ({"calibration": [X]}, "batches 0 there, 1 here; samples 0 there, 3 here"),
        ({"model": CifarResNet(8, 10)}, "made from another model, or other weights"),
    ],
)
def test_a_folder_of_other_settings_or_weights_is_refused(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    prune(_resnet(), X, Keep(macs=0.8), folder=tmp_path)
    model, x = options.pop("model", None) or _resnet(), options.pop("example_inputs", X)
    with pytest.raises(ConfigError, match=named):
        prune(model, x, Keep(macs=0.8), folder=tmp_path, **options)


def test_settings_that_cannot_be_written_are_refused_before_training(tmp_path: Path) -> None:
    def fit(network: nn.Module) -> None:
        raise AssertionError

    fit.settings = {"data": X}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no plain values"):
        prune(_resnet(), X, Keep(macs=0.8), folder=tmp_path, fit=fit)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (random(0), random(1)),
        (magnitude(1), magnitude(2)),
        (magnitude(2), magnitude(2, "max")),
        (group_taylor([]), group_taylor([], lambda outputs, targets: outputs.sum())),
        (neuron_scores(serene_scores([])), neuron_scores(lobster_scores([]))),
    ],
)
def test_options_of_importances_tell_folders_apart(first: Any, second: Any) -> None:
    assert name_of(first) != name_of(second)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that is read-only")
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step() -> None:
    def fit(_: nn.Module) -> None:
        raise AssertionError("fine-tuned all the same")

    with pytest.raises(
        ConfigError, match="prune: cannot make the folder /proc/self, or write to it"
    ):
        prune(_resnet(), X, Keep(macs=0.8), folder="/proc/self", fit=fit)


def test_a_narrower_bound_ends_a_folder_where_it_is_broken(tmp_path: Path) -> None:
    qualities = iter([0.9, 0.8, 0.8, 0.5, 0.6])
    options: dict[str, Any] = {"steps": 2, "folder": tmp_path, "fit": lambda _: None}
    first = prune(_resnet(), X, Keep(macs=0.6), evaluate=lambda _: next(qualities), **options)
    assert len(first.steps) == 3
    again = prune(_resnet(), X, Keep(macs=0.6), evaluate=lambda _: 0.0, max_drop=0.2, **options)
    assert again.steps == first.steps[:2]
    assert "step 2 was undone" in str(again.stopped)
    assert measured_size(again.model, X).macs / measured_size(_resnet(), X).macs == pytest.approx(
        again.steps[-1].macs
    )


def test_damaged_folders_and_files_in_place_of_them_are_refused(tmp_path: Path) -> None:
    prune(_resnet(), X, Keep(macs=0.8), folder=tmp_path / "run")
    for damaged in ("[]", "{", "[" * 100_000, '{"settings": {}, "steps": [1]}', '{"settings": []}'):
        (tmp_path / "run/steps.json").write_text(damaged)
        with pytest.raises(
            ConfigError, match=r"steps\.json is .* remove the folder to start again"
        ):
            prune(_resnet(), X, Keep(macs=0.8), folder=tmp_path / "run")
    (tmp_path / "file").write_text("")
    calls: list[nn.Module] = []
    with pytest.raises(ConfigError, match="cannot make the folder"):
        prune(_resnet(), X, Keep(macs=0.8), folder=tmp_path / "file", fit=calls.append)
    assert not calls


def test_a_network_that_diverges_is_undone_and_one_that_is_broken_refused() -> None:
    qualities = iter([0.9, 0.89, float("nan")])  # without fit, each step is evaluated once
    found = prune(_resnet(), X, Keep(macs=0.3), steps=4, evaluate=lambda _: next(qualities))
    assert [s.quality for s in found.steps] == [0.9, 0.89]
    assert "the quality is NaN" in (found.stopped or "")
    for value in (float("nan"), None, "high", torch.ones(2)):
        with pytest.raises(ConfigError, match="evaluate"):
            prune(_resnet(), X, Keep(macs=0.5), evaluate=lambda _, v=value: v)  # type: ignore[misc, arg-type]
    one = prune(_resnet(), X, Keep(macs=0.5), evaluate=lambda _: torch.tensor([0.5]))  # type: ignore[arg-type, return-value]
    assert one.steps[-1].quality == 0.5


def test_a_drop_of_exactly_the_bound_stays() -> None:
    qualities = iter([0.9, 0.88])  # 0.9 - 0.88 is slightly more than 0.02
    found = prune(_resnet(), X, Keep(macs=0.5), evaluate=lambda _: next(qualities), max_drop=0.02)
    assert found.stopped is None


def test_scores_of_neurons_are_measured_again_in_every_step() -> None:
    batches = [(X, torch.arange(3))]
    found = prune(
        _resnet(), X, Keep(macs=0.5), steps=2, importance=neuron_scores(lobster_scores(batches))
    )
    assert found.steps[-1].macs <= 0.5
    fixed = lobster_scores(batches)(_resnet(), "neuron")
    with pytest.raises(ConfigError, match="give a function of the model"):
        prune(_resnet(), X, Keep(macs=0.5), steps=2, importance=neuron_scores(fixed))


def test_a_dimension_that_loses_nearly_all_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="prune: step 1: .* loses"):
        prune(_resnet(), X, Keep(channels=0.06), limits=LayerLimits(1))


def test_wrong_arguments_are_refused_before_anything_is_cut() -> None:
    model = _resnet()
    for options, text in (
        ({"steps": 0}, "steps is a number"),
        ({"max_drop": 0.1}, "max_drop needs evaluate"),
        ({"reconstruction": True}, "needs calibration"),
        ({"reconstruction": "weights"}, "True, False or 'biases'"),
        ({"round_to": 0}, "round_to"),
        ({"importance": "l3"}, "not 'l3'"),
        ({"round_to": 2.5}, "round_to"),
        ({"importance": None}, "not None"),
        ({"importance": lambda m, c: {"conv1": torch.ones(3)}}, "it has 16 channels"),
        ({"importance": lambda m, c: None}, "returns a dict"),
        ({"exclude": ["layer9"]}, "no dimension or module"),
        ({"exclude": [nn.Conv2d]}, "list of names"),
        ({"amount": 0.5}, r"such as Keep\(macs=0.5\), not 0.5"),
        ({"limits": 0.2}, "limits is a LayerLimits"),
        ({"fit": 3}, "fit is a function"),
        ({"evaluate": 0.9}, "evaluate is a function"),
        ({"evaluate": lambda m: 0.9, "max_drop": "x"}, "max_drop is a drop"),
        ({"calibration": X}, "put it into a list"),
        ({"calibration": None}, "list of batches"),
    ):
        with pytest.raises(ConfigError, match=text):
            prune(model, X, **{"amount": Keep(macs=0.5), **options})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be reached"):
        plan_channels(model, X, Keep(macs=0.001))
    with pytest.raises(ConfigError, match="a share to keep"):
        Keep(macs=1.5)
    with pytest.raises(ConfigError, match="give macs="):
        Keep()
    limits = LayerLimits(keep_at_least=0.9)
    with pytest.raises(ConfigError, match="cannot be reached"):
        plan_channels(model, X, Keep(macs=0.5), limits=limits)
    with pytest.raises(ConfigError, match="not 0"):
        plan_channels(model, X, Keep(macs=0.5), limits=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"such as Keep\(macs=0.5\), not 0.5"):
        plan_channels(model, X, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="scores of weights or neurons"):
        plan_channels(model, X, Keep(macs=0.5), importance=lobster_scores([]))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="on the meta device"):
        plan_channels(copy.deepcopy(model).to("meta"), X.to("meta"), Keep(macs=0.5))


@pytest.mark.parametrize(
    "scores",
    [
        group_taylor,
        lambda batches: group_taylor(batches, of="outputs"),
        group_fisher,
        lambda batches: neuron_scores(lobster_scores(batches)),
        lambda batches: neuron_scores(serene_scores(batches)),
    ],
    ids=["taylor", "outputs", "fisher", "lobster", "serene"],
)
def test_labelled_batches_are_checked_and_iterated_in_every_step(scores: Any) -> None:
    y = torch.arange(3)
    wrong: list[tuple[Any, Any, str]] = [
        ([X], ConfigError, "pairs of inputs and targets"),
        ([(X[:0], y[:0])], DataError, "has no samples"),
        ([], DataError, "there is no batch"),
    ]
    for batches, error, message in wrong:
        with pytest.raises(error, match=message):
            plan_channels(_resnet(), X, Keep(macs=0.5), importance=scores(batches))
    found = prune(_resnet(), X, Keep(macs=0.5), importance=scores(iter([(X, y)])), steps=2)
    assert len(found.steps) == 3


@pytest.mark.parametrize("scores", [group_taylor, group_fisher, lobster_scores, taylor])
def test_a_loss_that_is_no_scalar_is_refused(scores: Any) -> None:
    model = _resnet()
    units = "neuron" if scores in (lobster_scores, taylor) else coupling(model, X)
    importance = scores([(X, torch.arange(3))], lambda outputs, _: outputs)
    with pytest.raises(ConfigError, match=r"loss gives a scalar tensor.*not shape \(3, 10\)"):
        importance(model, units)


def test_scores_of_networks_without_layers_to_measure() -> None:
    """Attention pins every dimension: no layer has an output that could be scored."""
    model = nn.TransformerEncoderLayer(16, 4, 16, batch_first=True)
    x, targets = torch.randn(2, 3, 16), torch.zeros(2, 3, 16)
    groups = coupling(model, x)
    found = group_taylor([(x, targets)], nn.functional.mse_loss, of="outputs")(model, groups)
    assert set(found) == {d.name for d in groups.free}
    single = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 1, 3))
    with pytest.raises(ConfigError, match="no dimension to prune"):
        plan_channels(
            single, torch.randn(2, 1, 9, 9), Keep(macs=0.5),
            importance=group_taylor([(torch.randn(2, 1, 9, 9), targets)], of="outputs"),
        )  # fmt: skip


def test_excluded_modules_keep_their_widths() -> None:
    model = _resnet()
    plan = plan_channels(model, X, Keep(macs=0.8), exclude=["layer1"])
    lean = plan.cut(model, X)
    for name, module in model.layer1.named_modules():
        if isinstance(module, nn.Conv2d):
            assert lean.layer1.get_submodule(name).weight.shape == module.weight.shape
    assert copy.deepcopy(plan.widths) == plan.widths


class Packed(nn.Module):
    """Attention whose keys and values, of other widths, lie beside one another in each head."""

    def __init__(self, keys: int = 4, values: int = 12) -> None:
        super().__init__()
        self.key_dim, self.value_dim = keys, values
        self.queries, self.packed = nn.Linear(8, 2 * keys), nn.Linear(8, 2 * (keys + values))
        self.out = nn.Linear(2 * values, 3)

    def forward(self, x: Tensor) -> Tensor:
        q = self.queries(x).unflatten(-1, (2, -1)).transpose(1, 2)
        packed = self.packed(x).unflatten(-1, (2, -1)).transpose(1, 2)
        k, v = packed.split([self.key_dim, self.value_dim], -1)
        y = (q @ k.mT).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2)).mean(1)


@pytest.mark.parametrize("chosen_by", ["scores", "measured", "masks"])
def test_no_parameter_loses_all_its_slices(chosen_by: str) -> None:
    model, x = Packed().eval(), torch.randn(4, 6, 8)
    with torch.no_grad():
        model.queries.weight.mul_(1e-3)  # keys are worth least
        model.packed.weight.unflatten(0, (2, -1))[:, :4] *= 1e-3
    if chosen_by == "masks":
        how = {"granularity": "channel", "amount": Ratio(0.5), "schedule": OneShot()}
        Pruner(model, None, example_inputs=x, **how).prune()
        assert model.queries.weight.any()
    else:
        measured = chosen_by == "measured"
        lean = prune(model, x, Keep(macs=0.6), calibration=[x], measured=measured).model
        assert 0 < lean.key_dim == lean.queries.out_features // 2


class PackedInProportion(Packed):
    """The width of the values is computed from that of the keys."""

    @property
    def value_dim(self) -> int:
        return 3 * self.key_dim

    @value_dim.setter
    def value_dim(self, width: int) -> None:
        assert width == 12


def test_a_width_that_is_computed_from_another_pins_both() -> None:
    groups = coupling(PackedInProportion(), torch.randn(4, 6, 8))
    (pinned,) = (d.pinned for d in groups.dimensions if d.kind == "head_dim")
    assert "A size there does not follow the widths" in pinned
