"""Model files that do not fit: other versions, dtypes and records, wrapped models, unreadable files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError
from snello.store import (
    InputSpec,
    ModelSpec,
    Record,
    archives,
    build,
    images_of,
    inspect,
    load,
    load_weights,
    read,
    save,
)

LENET = {"model": {"name": "lenet-300-100"}, "input_shape": [1, 28, 28], "plan": None}


class Mixed(nn.Module):
    """A parameter and buffers of several kinds, a scalar and an empty one among them."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.none = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("table", torch.zeros(2))
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))


def made() -> nn.Module:
    return Mixed()


NAME = f"{__name__}:Mixed"
MIXED = Record(ModelSpec(NAME), (3,))
VALUES: dict[str, tuple[str, Tensor]] = {
    "complex, single": ("w", torch.full((3,), 1 / 3 + 1j, dtype=torch.complex64)),
    "complex, double": ("w", torch.full((3,), 1 / 3 + 1j, dtype=torch.complex128)),
    "complex buffer": ("table", torch.tensor([1 + 2j, 3])),
    "large integers": ("table", torch.tensor([2**40 + 1, 2])),
    "fractions": ("count", torch.tensor([0.5, 2.0])),
    "narrow integers": ("count", torch.tensor([5, -2], dtype=torch.int8)),
    "not finite": ("w", torch.tensor([float("nan"), float("inf"), -1e38])),
}


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_values_and_dtypes_that_the_factory_does_not_make_come_back(
    case: str, suffix: str, tmp_path: Path
) -> None:
    name, value = VALUES[case]
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
        if value.dtype is torch.complex128:
            pytest.skip("not in the format")
    model = Mixed()
    if name == "w":
        model.w = nn.Parameter(value)
    else:
        setattr(model, name, value)
    again, _ = load(save(tmp_path / f"m.{suffix}", model, MIXED), trust=NAME)
    for key, expected in model.state_dict().items():
        found = again.state_dict()[key]
        assert found.dtype is expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_integers_are_no_trained_weights(tmp_path: Path) -> None:
    state = {**Mixed().state_dict(), "w": torch.ones(3, dtype=torch.int64)}
    record = json.dumps({"model": {"name": NAME}, "input_shape": [3], "plan": None})
    content = {"format": "snello model 1", "record": record, "state_dict": state}
    path = archives.save(tmp_path / "m.pt", content)
    with pytest.raises(ModelError, match=r"'w' is torch.int64 in the file and torch.float32 in"):
        load(path, trust=NAME)


@pytest.mark.parametrize(
    ("key", "value"), [("w", torch.tensor([1j, 2, 3])), ("count", torch.tensor([0.5, 2]))]
)
def test_weights_are_not_truncated(key: str, value: Tensor, tmp_path: Path) -> None:
    torch.save({**Mixed().state_dict(), key: value}, tmp_path / "w.pt")
    model = Mixed()
    with pytest.raises(ModelError, match=f"1 of a dtype .*truncate, first {key!r}"):
        load_weights(model, tmp_path / "w.pt")
    assert not model.w.any()


def _write(path: Path, **changes: Any) -> Path:
    content = {"format": "snello model 1", "record": json.dumps(LENET), "state_dict": {}}
    return archives.save(path, content | changes)


@pytest.mark.parametrize("record", ["[]", "5", "null", '"text"', "{", None])
def test_a_record_that_is_no_mapping_is_damaged(record: Any, tmp_path: Path) -> None:
    path = _write(tmp_path / "m.pt", record=record)
    for reading in (load, read, inspect):
        with pytest.raises(ModelError, match=r"m\.pt: the record of the model is damaged"):
            reading(path)


@pytest.mark.parametrize(
    "change",
    [
        {"plan": 5}, {"plan": "{}"}, {"folded_batchnorms": {"fc1": {}}}, {"input_shape": [-1]},
        {"input_shape": None}, {"further_inputs": [{"shape": [0]}]}, {"images": 5}, {"input_dtype": []},
    ],
)  # fmt: skip
def test_a_damaged_entry_names_the_file(change: dict[str, Any], tmp_path: Path) -> None:
    path = _write(
        tmp_path / "m.pt",
        record=json.dumps(LENET | change),
        state_dict=build("lenet-300-100").state_dict(),
    )
    with pytest.raises(ModelError, match=r"m\.pt: "):
        load(path)


@pytest.mark.parametrize("state", [None, 5, {"a": 1}, {1: torch.ones(2)}])
def test_weights_without_names_are_refused(state: Any, tmp_path: Path) -> None:
    path = _write(tmp_path / "m.pt", state_dict=state)
    with pytest.raises(ModelError, match="values that are not tensors"):
        inspect(path)


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.pt", format="snello model 2")
    for reading in (load, inspect):
        with pytest.raises(ModelError, match=r"'snello model 2'.*a newer one"):
            reading(path)


def test_a_newer_format_of_safetensors_is_named(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    path = tmp_path / "m.safetensors"
    library.save_file({"w": torch.ones(2)}, path, {"format": "snello safetensors 2"})
    with pytest.raises(ModelError, match=r"'snello safetensors 2'.*a newer one"):
        load(path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
@pytest.mark.parametrize("reading", [load, read, inspect])
def test_an_unreadable_file_is_named(reading: Any) -> None:
    with pytest.raises(ModelError, match="/proc/self/mem cannot be read"):
        reading("/proc/self/mem")


def test_the_model_inside_a_wrapper_is_written(tmp_path: Path) -> None:
    """A factory that must not be called cannot show that the names have a wrapper's prefix."""
    sys.modules["own_factories"] = sys.modules[__name__]
    try:
        name = "own_factories:made"
        model = nn.DataParallel(Mixed())
        path = save(tmp_path / "m.pt", model, Record(ModelSpec(name), (3,)))
        again, _ = load(path, trust=name)
        assert again.state_dict().keys() == Mixed().state_dict().keys()
    finally:
        del sys.modules["own_factories"]


def test_what_is_no_module_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"m\.pt is not written"):
        save(tmp_path / "m.pt", Mixed().state_dict(), MIXED)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("resnet18", (3, 8, 8)), "ModelSpec"),
        ((ModelSpec(None), (3, 8, 8)), "ModelSpec"),  # type: ignore[arg-type]
        ((MIXED.model, 784), "positive integers"),
        ((MIXED.model, (-1, 28)), "positive integers"),
        ((MIXED.model, "333"), "positive integers"),
        ((MIXED.model, (3,), torch.bool), "int64 or int32, not torch.bool"),
        ((MIXED.model, (3,), torch.complex64), "not torch.complex64"),
    ],
)
def test_a_record_checks_its_fields(arguments: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Record(*arguments)
    with pytest.raises(ModelError, match="positive integers"):
        InputSpec((3, -1))


@pytest.mark.parametrize(
    "text", ['{"rescale_factor": 0, "image_mean": [0], "image_std": [1]}', "[" * 10**5]
)
def test_a_processor_that_makes_no_sense_is_unknown(text: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    assert images_of(Mixed(), ModelSpec("transformers:ViTModel"), tmp_path) is None


@pytest.mark.parametrize("names", [None, [], {"a": 1}, 5, "ViTModel", [3]])
def test_a_configuration_that_names_no_class_is_refused(names: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": names}))
    with pytest.raises(ModelError, match="names no class"):
        load(tmp_path)
