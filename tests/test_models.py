"""The reference networks: counts, names, shapes, traceability, and the errors of build()."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import snello.models
from snello.errors import ModelError
from snello.graph import shape_of, trace
from snello.models import CifarResNet, ModelSpec, available, build

INPUTS = {name: (1, 28, 28) if name.startswith("lenet") else (3, 32, 32) for name in available()}
PARAMETERS = {
    "lenet-300-100": 266_610,
    "lenet-5": 431_080,
    "resnet-20": 269_722,
    "resnet-32": 464_154,
    "resnet-56": 853_018,
}


def test_exported_names() -> None:
    assert set(snello.models.__all__) == {
        "CifarResNet", "LeNet5", "LeNet300", "ModelSpec", "available", "build", "load_weights",
    }  # fmt: skip


@pytest.mark.parametrize("name", available())
def test_parameter_counts_of_the_papers(name: str) -> None:
    assert sum(p.numel() for p in build(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", available())
def test_traces_to_the_same_function(name: str) -> None:
    model = build(name).double().eval()
    x = torch.randn(2, *INPUTS[name], dtype=torch.float64)
    graph = trace(model, x)
    assert shape_of(graph.nodes[-1]) == (2, 10)
    assert torch.equal(graph.module(x), model(x))


@pytest.mark.parametrize("name", available())
def test_forward_leaves_its_input_alone_and_every_parameter_learns(name: str) -> None:
    model = build(name)
    x = torch.rand(4, *INPUTS[name])
    before = x.clone()
    model(x).pow(2).sum().backward()
    assert torch.equal(x, before)
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_lenet5_has_one_relu_between_the_linear_layers() -> None:
    order = [str(n.target) for n in trace(build("lenet-5")).nodes if n.op == "call_module"]
    assert order == ["conv1", "pool1", "conv2", "pool2", "flatten", "fc1", "relu", "fc2"]


@settings(deadline=None, max_examples=30)
@given(st.integers(16, 40), st.integers(1, 3), st.integers(2, 5))
def test_lenet5_fits_every_image_it_accepts(size: int, channels: int, classes: int) -> None:
    with torch.device("meta"):
        model = build("lenet-5", classes=classes, in_channels=channels, image_size=size)
        assert model(torch.empty(2, channels, size, size)).shape == (2, classes)


def test_lenet5_refuses_images_that_do_not_survive_its_pooling() -> None:
    with pytest.raises(ModelError, match="at least 16×16 pixels, got image_size=15"):
        build("lenet-5", image_size=15)


def test_lenet300_takes_features_or_an_image() -> None:
    x = torch.rand(2, 1, 8, 8)
    assert build("lenet-300-100", in_features=64)(x).shape == (2, 10)
    assert build("lenet-300-100", in_channels=1, image_size=8)(x).shape == (2, 10)


def test_resnet_option_a_shortcut_is_a_strided_and_padded_identity() -> None:
    block = build("resnet-20").layer2[0].double().eval()  # type: ignore[union-attr, index, operator]
    for norm in (block.bn1, block.bn2):
        nn.init.zeros_(norm.weight)
    x = torch.rand(2, 16, 6, 6, dtype=torch.float64)
    expected = torch.zeros(2, 32, 3, 3, dtype=torch.float64)
    expected[:, 8:24] = x[:, :, 0:6:2, 0:6:2]
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("depth", [2, 7, 31])
def test_resnet_depth_is_6n_plus_2(depth: int) -> None:
    with pytest.raises(ModelError, match=f"depth=.*{depth}"):
        CifarResNet(depth)


def test_same_seed_same_network() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build("resnet-20").state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


NAMES = st.sampled_from([*available(), "resnet18", "pkg.module:make"])
VALUES = st.one_of(st.integers(), st.booleans(), st.text(), st.none(), st.lists(st.integers()))


@given(NAMES, st.dictionaries(st.text(), VALUES))
def test_spec_survives_json(name: str, arguments: dict[str, object]) -> None:
    spec = ModelSpec(name, arguments)
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_spec_record_is_a_copy() -> None:
    spec = ModelSpec("lenet-5", {"classes": 3})
    spec.to_dict()["arguments"]["classes"] = 4
    assert spec.arguments == {"classes": 3}


@pytest.mark.parametrize(
    "record", [{"arguments": {}}, {"name": 3}, {"name": "a", "arguments": [1]}, {"name": "a", "extra": 1}]
)
def test_spec_refuses_other_records(record: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="model record"):
        ModelSpec.from_dict(record)


def test_build_from_spec_with_overrides() -> None:
    spec = ModelSpec("lenet-5", {"classes": 3, "image_size": 20})
    assert build(spec, classes=4)(torch.rand(1, 1, 20, 20)).shape == (1, 4)


def test_build_torchvision_without_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("downloads")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with torch.device("meta"):
        assert build("resnet18", num_classes=7).fc.out_features == 7  # type: ignore[union-attr]
        assert build("deeplabv3_resnet50", num_classes=5).classifier[-1].out_channels == 5  # type: ignore[union-attr, index]


def test_build_own_factory(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "my_snello_nets.py").write_text(
        "from torch import nn\nclass Zoo:\n    tiny = staticmethod(lambda width=2: nn.Linear(3, width))\n"
        "def broken():\n    raise KeyError('inside')\ndef nothing():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build("my_snello_nets:Zoo.tiny", width=5).out_features == 5
    with pytest.raises(ModelError, match=r"broken.*inside"):
        build("my_snello_nets:broken")
    with pytest.raises(ModelError, match="returned a int, not an"):
        build("my_snello_nets:nothing")
    with pytest.raises(ModelError, match=r"no attribute 'absent'.*package.module:factory"):
        build("my_snello_nets:absent")
    with pytest.raises(ModelError, match=r"importing 'no_such_package_here' failed.*PYTHONPATH"):
        build("no_such_package_here:make")


@pytest.mark.parametrize(
    ("wrong", "meant"), [("resnet32", "resnet-32"), ("lenet5", "lenet-5"), ("ResNet-18", "resnet18")]
)
def test_wrong_name_lists_close_matches(wrong: str, meant: str) -> None:
    with pytest.raises(ModelError, match=rf"no model '{wrong}'; did you mean .*'{meant}'.*available\(\)"):
        build(wrong)


def test_wrong_arguments_show_the_signature() -> None:
    with pytest.raises(ModelError, match=r"width=3.*takes \(classes: int = 10, \*, in_channels: int = 3\)$"):
        build("resnet-32", width=3)
    with pytest.raises(ModelError, match=r"classes=3.*'num_classes'"):
        build("resnet18", classes=3)
