"""Damaged folders of a search, and predicted bytes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.seams.search import Networks, Point
from torch import Tensor, nn

from pair import in_two_processes
from snello.deploy.operations import DeviceProfile, Operation, ProfiledModel
from snello.errors import ConfigError, DataError, DivergenceError, ModelError
from snello.graph import coupling
from snello.pruning.recovery import recalibrate
from snello.search import shrink
from snello.search.shrink import Shrunk

INPUTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    return nn.Sequential(*layers).eval()


LABELS = network()(INPUTS).argmax(1)


def right(model: nn.Module) -> Tensor:
    dtype = next(model.parameters()).dtype if list(model.parameters()) else torch.float32
    return (model(INPUTS.to(dtype)).argmax(1) == LABELS).double()


def shrunk(model: nn.Module | None = None, **options: Any) -> Shrunk:
    given: dict[str, Any] = {
        "minimise": "macs", "max_drop": 0.5, "allow": ("channels",), "trials": 3, **options
    }  # fmt: skip
    return shrink(model or network(), INPUTS[:1], right, **given)


@pytest.mark.parametrize("kind", ["orders", "front-", "sensitivity-", "float32-"])
def test_lines_without_their_fields_are_computed_again(kind: str, tmp_path: Path) -> None:
    first = shrunk(folder=tmp_path)
    log = tmp_path / "candidates.jsonl"
    lines = log.read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    assert any(key.startswith(kind) for key in keys)
    log.write_text(
        "".join(
            json.dumps({"key": key}) + "\n" if key.startswith(kind) else line + "\n"
            for key, line in zip(keys, lines, strict=True)
        )
    )
    again = shrunk(folder=tmp_path)
    assert [c.key for c in again.candidates] == [c.key for c in first.candidates]
    assert again.chosen.cost == first.chosen.cost


def test_settings_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    def fit(network: nn.Module) -> None:
        raise AssertionError

    fit.settings = {"data": INPUTS}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no plain values"):
        shrunk(fit=fit, folder=tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_results_without_their_settings_are_refused(tmp_path: Path) -> None:
    """Another network had taken them over as its own."""
    shrunk(folder=tmp_path)
    log = tmp_path / "candidates.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ConfigError, match="not the settings"):
        shrunk(folder=tmp_path)


def test_a_damaged_line_is_computed_again(tmp_path: Path) -> None:
    first = shrunk(folder=tmp_path)
    with (tmp_path / "candidates.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n[]\n1\n")
    assert shrunk(folder=tmp_path).chosen == first.chosen


def test_damaged_settings_of_a_bitstream_are_named(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "minimise": "bytes", "calibration": [INPUTS], "folder": tmp_path, "allow": ("channels", "nnc")
    }  # fmt: skip
    shrunk(**options)
    settings = next(tmp_path.glob("coded-*.json"))
    log = tmp_path / "candidates.jsonl"  # settings are read again where no front is known
    lines = [line for line in log.read_text().splitlines(True) if '"key": "front-' not in line]
    log.write_text("".join(lines))
    for damaged in ("[]", "{", '{"qp": []}', "[" * 100_000):
        settings.write_text(damaged)
        with pytest.raises(ConfigError, match=rf"{settings.name} is .*remove the folder"):
            shrunk(**options)


def test_a_damaged_network_says_what_to_do(tmp_path: Path) -> None:
    shrunk(folder=tmp_path)
    for path in tmp_path.glob("network-*.pt"):
        path.write_bytes(b"xx")
    with pytest.raises(ModelError, match="remove the folder"):
        shrunk(folder=tmp_path)


def test_latencies_of_two_machines_are_not_mixed(tmp_path: Path) -> None:
    """A folder that was copied, or that two machines share: the page had named the last of them."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    shrunk(minimise="latency", folder=tmp_path, trials=1)
    log = tmp_path / "candidates.jsonl"
    key, lines = '"latency-dense"', log.read_text().splitlines(keepends=True)
    noted = json.loads(next(line for line in lines if key in line))
    for device, refused in (("another CPU", True), (None, False)):
        other = {**noted, "device": device} if device else {"key": noted["key"], "ms": noted["ms"]}
        log.write_text("".join(json.dumps(other) + "\n" if key in line else line for line in lines))
        if refused:
            with pytest.raises(ConfigError, match="measured on another CPU, and this is "):
                shrunk(minimise="latency", folder=tmp_path, trials=1)
        else:  # as earlier versions wrote it
            shrunk(minimise="latency", folder=tmp_path, trials=1)


def profiled(factor: float, *runs: tuple[float, int]) -> DeviceProfile:
    """A profile with whole networks of so many milliseconds and of so many operations."""
    widths = [(6, 16), (16, 16), (16, 4), (6, 8), (8, 8), (8, 16), (16, 8), (8, 4)]
    operations = [Operation("linear", (1, a, b)) for a, b in widths]
    times = {o.key: factor * o.macs for o in operations}
    models = (ProfiledModel("net", "float32", ms, tuple(times)[:count]) for ms, count in runs)
    return DeviceProfile({"cpu": "x"}, 2, times, tuple(models))


def test_a_profile_that_was_measured_again_is_another_search(tmp_path: Path) -> None:
    shrunk(minimise="latency", device=profiled(1.0, (5.0, 3)), folder=tmp_path)
    with pytest.raises(ConfigError, match="device"):
        shrunk(minimise="latency", device=profiled(2.0, (5.0, 3)), folder=tmp_path)


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        ((), {}, "no latency in float32, since its whole networks in float32 are missing"),
        (((5.0, 3),), {"allow": ("channels", "int8")}, "int8 are missing.*leave int8 out"),
        (((5.0, 3), (9.0, 1)), {}, "do not get slower with their operations"),
        (((5.0, 3),), {"threads": 4}, "threads=4, and the profile was measured with 2"),
    ],
)
def test_profiles_that_predict_no_latency_are_refused_before_the_folder_is_written(
    runs: Any, options: Any, message: str, tmp_path: Path
) -> None:
    """Without whole networks of int8, its latency had lacked the offset that float32 had."""
    folder = tmp_path / "search"
    with pytest.raises(ConfigError, match=message):
        shrunk(minimise="latency", device=profiled(1.0, *runs), folder=folder, **options)
    assert not folder.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predicted_bytes_are_those_of_the_network(dtype: torch.dtype) -> None:
    """In float32, with the integers of BatchNorm."""
    model = network()
    model = nn.Sequential(*model[:1], nn.BatchNorm1d(16), *model[1:]).to(dtype).eval()
    found = shrink(
        model, INPUTS[:1].to(dtype), right, minimise="bytes", max_drop=1.0,
        allow=("channels",), trials=3, calibration=[INPUTS.to(dtype)],
    )  # fmt: skip
    predicted = [c for c in found.candidates if c.predicted is not None]
    assert len(predicted) == 3
    for candidate in predicted:
        assert candidate.predicted == candidate.bytes


def test_bytes_of_an_int8_file_include_its_graph() -> None:
    pytest.importorskip("onnxruntime")
    found = shrunk(minimise="bytes", allow=("channels", "int8"), max_drop=1.0)
    dense = next(c for c in found.candidates if c.precision == "int8" and not c.widths)
    assert dense.predicted == dense.bytes
    for candidate in found.candidates:
        if candidate.precision == "int8":
            assert candidate.predicted == pytest.approx(candidate.bytes, rel=0.2)


def test_a_layer_may_be_called_weights(tmp_path: Path) -> None:
    """Its sensitivities had shared a line of the log with those of zero weights."""
    pytest.importorskip("nncodec")
    model = nn.Sequential()
    for name, module in zip(["weights", "r", "b", "s", "c"], network(), strict=True):
        model.add_module(name, module)
    found = shrunk(model, minimise="bytes", allow=("channels", "weights", "nnc"), trials=1)
    assert found.chosen.bytes


def test_a_single_sample_has_no_statistics() -> None:
    """It had ended in an error of PyTorch, with the running statistics reset."""
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).eval()
    nn.init.constant_(model[1].running_mean, 0.5)
    with pytest.raises(DataError, match="batches of two samples"):
        recalibrate(model, [INPUTS, INPUTS[:1]])
    assert model[1].running_mean.tolist() == [0.5] * 4


@pytest.mark.parametrize(
    "batches",
    [(), [INPUTS, (INPUTS, torch.zeros(len(INPUTS), dtype=torch.long))]],
    ids=["none", "labels"],
)
def test_statistics_stay_after_any_error(batches: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).eval()
    nn.init.constant_(model[1].running_mean, 0.5)
    with pytest.raises((DataError, ConfigError)):
        recalibrate(model, batches)
    assert model[1].running_mean.tolist() == [0.5] * 4
    assert model[1].momentum == 0.1


def diverged(model: nn.Module) -> None:
    """A fine-tuning that fails for all but the widest networks."""
    if sum(p.numel() for p in model.parameters()) < 130:
        raise DivergenceError("the loss is nan")


def filled_with_nan(model: nn.Module) -> None:
    if sum(p.numel() for p in model.parameters()) < 130:
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)


@pytest.mark.parametrize("fit", [diverged, filled_with_nan])
def test_a_fine_tuning_that_diverges_costs_its_candidate_alone(fit: Any, tmp_path: Path) -> None:
    def loss(model: nn.Module) -> Tensor:
        return -nn.functional.cross_entropy(model(INPUTS), LABELS, reduction="none")

    options: dict[str, Any] = {
        "minimise": "macs", "max_drop": 50.0, "allow": ("channels",), "trials": 5, "folder": tmp_path
    }  # fmt: skip
    found = shrink(network(), INPUTS[:1], loss, fit=fit, **options)
    failed = [c for c in found.candidates if "nan" in c.why.lower()]
    assert failed
    assert not any(c.passed for c in failed)
    assert 130 <= found.chosen.parameters < found.dense.parameters
    again = shrink(network(), INPUTS[:1], loss, fit=fit, **options)
    assert again.candidates == found.candidates


def test_another_fine_tuning_or_evaluation_is_another_search(tmp_path: Path) -> None:
    def described(**settings: Any) -> Any:
        def function(model: nn.Module) -> Any:
            return right(model)

        function.settings = settings  # type: ignore[attr-defined]
        return function

    def search(epochs: int, data: str) -> Shrunk:
        return shrink(
            network(), INPUTS[:1], described(data=data), fit=described(epochs=epochs), minimise="macs",
            max_drop=0.5, trials=2, folder=tmp_path,
        )  # fmt: skip

    first = search(1, "a")
    assert search(1, "a").candidates == first.candidates
    with pytest.raises(ConfigError, match=r"\(fit\)"):
        search(2, "a")
    with pytest.raises(ConfigError, match=r"\(evaluate\)"):
        search(1, "b")


def _built(rank: int, folder: Path) -> list[Tensor]:
    """A network whose fine-tuning is random and takes a while, in each of two processes."""

    def fit(model: nn.Module) -> None:
        torch.manual_seed(rank)
        time.sleep(0.5)
        for parameter in model.parameters():
            nn.init.normal_(parameter)

    (folder / "locks").mkdir(exist_ok=True)
    model, example = network(), INPUTS[:1]
    groups = coupling(model, example)
    order = {d.name: list(range(d.width)) for d in groups.free}
    networks = Networks(model, groups, order, example, None, fit, (), folder)
    name = groups.free[0].name
    return [p.detach() for p in networks(Point({name: 8})).parameters()]


def test_two_processes_build_one_network(tmp_path: Path) -> None:
    """Candidates of two precisions may have the same widths: each had fine-tuned its own, and the
    one that was written last belonged to the measurements of the other.
    """
    ours, theirs = in_two_processes(_built, tmp_path)
    assert all(map(torch.equal, ours, theirs))
