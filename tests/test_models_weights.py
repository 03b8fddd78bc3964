"""load_weights: all of a file or nothing of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from snello.errors import ModelError
from snello.store import build, load_weights

State = dict[str, Tensor]


def resnet_state() -> State:
    """A state_dict of resnet-32 as the public checkpoints have it, with random values."""
    torch.manual_seed(1)
    state = build("resnet-32").state_dict()
    return {
        k: torch.rand_like(v) for k, v in state.items() if not k.endswith("num_batches_tracked")
    }


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet-32")


def prefixed(state: State, prefix: str = "module.") -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        prefixed,
        lambda s: {"state_dict": s},
        lambda s: {"best_prec1": 92.6, "state_dict": prefixed(s)},
        lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": {"state": {}}},
        lambda s: {"model": s, "epoch": 3},
        lambda s: prefixed(s, "_orig_mod."),
        lambda s: prefixed(s, "_orig_mod.module."),
        lambda s: prefixed(s, "module._orig_mod."),
    ],
    ids=[
        "plain",
        "prefixed",
        "nested",
        "public checkpoint",
        "tutorial",
        "timm",
        "compiled",
        "compiled DDP",
        "DDP of compiled",
    ],
)
def test_every_wrapping_loads_the_same_values(
    model: nn.Module, tmp_path: Path, wrap: Callable[[State], object]
) -> None:
    state = resnet_state()
    torch.save(wrap(state), tmp_path / "w.th")
    assert load_weights(model, tmp_path / "w.th") is model
    loaded = model.state_dict()
    assert len(state) == 157
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_keys_are_those_of_the_public_checkpoints(model: nn.Module) -> None:
    keys = set(model.state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer3.4.bn2.bias"} <= keys
    assert {"linear.weight", "linear.bias"} <= keys
    assert not [key for key in keys if "shortcut" in key or "downsample" in key]


def test_model_whose_child_is_called_module(tmp_path: Path) -> None:
    outer = nn.ModuleDict({"module": nn.Linear(2, 2)})
    torch.save({"module.weight": torch.ones(2, 2), "module.bias": torch.ones(2)}, tmp_path / "w.pt")
    load_weights(outer, tmp_path / "w.pt")
    assert outer["module"].weight.eq(1).all()  # type: ignore[union-attr, operator]


def _without(state: State, key: str) -> State:
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: _without(s, "conv1.weight"), r"1 missing, first 'conv1.weight'"),
        (lambda s: {**s, "extra": torch.ones(1)}, r"1 unexpected, first 'extra'"),
        (
            lambda s: {**s, "linear.bias": torch.ones(7)},
            r"1 of another shape, first 'linear.bias' \(\(7,\) in the file, \(10,\) in the model\)",
        ),
        (lambda s: {}, "contains a dict without weights"),
        (lambda s: {"epoch": 3}, "its entry 'epoch' is a int"),
        (lambda s: torch.ones(3), "contains a Tensor without weights"),
    ],
    ids=["missing", "unexpected", "shape", "empty", "no tensors", "a tensor"],
)
def test_misfit_is_one_line_and_leaves_the_model_untouched(
    model: nn.Module, tmp_path: Path, change: Callable[[State], object], line: str
) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.save(change(resnet_state()), tmp_path / "w.th")
    with pytest.raises(ModelError, match=line) as caught:
        load_weights(model, tmp_path / "w.th")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "w.th") in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_model_counts_the_keys(model: nn.Module, tmp_path: Path) -> None:
    torch.save(build("resnet-56").state_dict(), tmp_path / "w.th")
    with pytest.raises(
        ModelError, match=r"CifarResNet: 144 unexpected, first 'layer1\.5\.conv1\.weight'"
    ):
        load_weights(model, tmp_path / "w.th")


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('ran code')",))


@pytest.mark.parametrize("kind", ["absent", "folder", "empty", "text", "truncated", "pickled code"])
def test_unreadable_files_are_one_line(model: nn.Module, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w.th"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not weights at all, but a good deal of text")
    elif kind == "truncated":
        torch.save(resnet_state(), path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "pickled code":
        torch.save({"a": _Evil()}, path)
    with pytest.raises(ModelError, match=r"w\.th") as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncation_anywhere_is_reported(model: nn.Module, tmp_path: Path, share: float) -> None:
    torch.save(resnet_state(), tmp_path / "w.th")
    whole = (tmp_path / "w.th").read_bytes()
    (tmp_path / "w.th").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match=r"truncated, damaged|is damaged"):
        load_weights(model, tmp_path / "w.th")


def test_real_checkpoint_loads(model: nn.Module) -> None:
    folders = [Path(part) for part in os.environ.get("SNELLO_DATA", "").split(os.pathsep) if part]
    beside = [folder.parent / "models" / "resnet32-d509ac18.th" for folder in folders]
    path = next((file for file in beside if file.is_file()), None)
    if path is None:
        pytest.skip("needs models/resnet32-d509ac18.th beside a folder that SNELLO_DATA names")
    load_weights(model, path)
    checkpoint = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    assert torch.equal(model.state_dict()["linear.weight"], checkpoint["module.linear.weight"])
