"""The reference networks: counts, names, shapes, traceability, and the errors of build()."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snello.errors import ModelError
from snello.graph import capture, shape_of
from snello.lab.models import CifarResNet, model_names
from snello.neurons import weighted_layers
from snello.store import ModelSpec, build, load_weights

INPUTS = {name: (1, 28, 28) if name.startswith("lenet") else (3, 32, 32) for name in model_names()}
PARAMETERS = {
    "lenet-300-100": 266_610,
    "lenet-5": 431_080,
    "resnet-20": 269_722,
    "resnet-32": 464_154,
    "resnet-44": 658_586,
    "resnet-56": 853_018,
    "resnet-110": 1_727_962,
    "vgg-16-cifar": 14_991_946,
    "alexnet-cifar": 23_631_552,
}
CLASSES = {name: 100 if name == "alexnet-cifar" else 10 for name in model_names()}


@pytest.mark.parametrize("name", model_names())
def test_parameter_counts_of_the_papers(name: str) -> None:
    assert sum(p.numel() for p in build(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "megabytes"), [("vgg-16-cifar", 59.97), ("alexnet-cifar", 94.53), ("resnet-32", 1.86)]
)
def test_sizes_of_the_pruning_papers(name: str, megabytes: float) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build(name).parameters())
    assert round(parameters * 4 / 1e6, 2) == megabytes


def test_only_this_vgg_has_the_published_size() -> None:
    """Without the normalised hidden layer it is 59.96, without any BatchNorm 59.93, with one layer
    less 58.91.
    """
    with torch.device("meta"):
        model = build("vgg-16-cifar")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    linear = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert (len(norms), linear) == (14, [(512, 512), (512, 10)])
    whole = sum(p.numel() for p in model.parameters())
    without_last = whole - sum(p.numel() for p in norms[-1].parameters())
    without_any = whole - sum(p.numel() for norm in norms for p in norm.parameters())
    assert [round(n * 4 / 1e6, 2) for n in (without_last, without_any)] == [59.96, 59.93]


def test_alexnet_as_it_is_usually_written_has_biases() -> None:
    with torch.device("meta"):
        model = build("alexnet-cifar", bias=True)
    assert sum(p.numel() for p in model.parameters()) == 23_640_996
    assert not [n for n, _ in build("alexnet-cifar").named_parameters() if n.endswith("bias")]


def test_alexnet_starts_where_it_can_learn() -> None:
    """Without normalisation everything hangs on the start: classes as good as equal, no layer
    silent or loud.
    """
    torch.manual_seed(0)
    model = build("alexnet-cifar").eval()
    x = torch.randn(16, 3, 32, 32)
    assert 0.05 < float(model(x).std().detach()) < 0.5
    stds = [
        float(m.weight.detach().std()) * m.weight[0].numel() ** 0.5
        for m in weighted_layers(model).values()
    ]
    assert stds == pytest.approx([1.0] * len(stds), rel=0.1)


@pytest.mark.parametrize("name", ["vgg-16-cifar", "alexnet-cifar"])
def test_pooling_before_the_head_changes_nothing_at_the_published_size(name: str) -> None:
    model = build(name).eval()
    sizes = []
    model.pool.register_forward_hook(lambda _, x, y: sizes.append((x[0], y)))  # type: ignore[union-attr]
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, CLASSES[name])
    assert torch.equal(*sizes[0])
    assert model(torch.rand(1, 3, 48, 40)).shape == (1, CLASSES[name])


@pytest.mark.parametrize("name", model_names())
def test_traces_to_the_same_function(name: str) -> None:
    model = build(name).double().eval()
    x = torch.randn(2, *INPUTS[name], dtype=torch.float64)
    graph = capture(model, x)
    assert shape_of(graph.nodes[-1]) == (2, CLASSES[name])
    assert torch.equal(graph.module(x), model(x))


@pytest.mark.parametrize("name", model_names())
def test_forward_leaves_its_input_alone_and_every_parameter_learns(name: str) -> None:
    model = build(name)
    x = torch.rand(4, *INPUTS[name])
    before = x.clone()
    model(x).pow(2).sum().backward()
    assert torch.equal(x, before)
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_lenet5_has_one_relu_between_the_linear_layers() -> None:
    order = [str(n.target) for n in capture(build("lenet-5")).nodes if n.op == "call_module"]
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


NAMES = st.sampled_from([*model_names(), "resnet18", "pkg.module:make"])
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
    "record",
    [{"arguments": {}}, {"name": 3}, {"name": "a", "arguments": [1]}, {"name": "a", "extra": 1}],
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

    # Imported while torch.hub is patched, torchvision would keep the patch for good.
    pytest.importorskip("torchvision.models")
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with torch.device("meta"):
        assert build("resnet18", num_classes=7).fc.out_features == 7  # type: ignore[union-attr]
        assert build("deeplabv3_resnet50", num_classes=5).classifier[-1].out_channels == 5  # type: ignore[union-attr, index]


@pytest.mark.exhaustive
def test_every_torchvision_name_builds() -> None:
    models = pytest.importorskip("torchvision.models")
    names = [n for m in (models, models.segmentation) for n in models.list_models(module=m)]
    assert len(names) > 80
    # RegNet computes its widths with tensors and reads them, so that it needs a device with memory.
    regnets = {name for name in names if name.startswith("regnet")}
    assert {"regnet_x_400mf", "regnet_y_400mf"} < regnets
    with torch.device("meta"):
        assert all(isinstance(build(name), nn.Module) for name in names if name not in regnets)
    for name in ("regnet_x_400mf", "regnet_y_400mf"):
        assert isinstance(build(name), nn.Module)


def test_pretrained_weights_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As torchvision downloads them: a file of that name in torch's folder of checkpoints."""
    models = pytest.importorskip("torchvision.models")
    weights = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(5)
    original = build("shufflenet_v2_x0_5")
    torch.save(original.state_dict(), folder / weights.url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    loaded = [
        build("shufflenet_v2_x0_5", weights="IMAGENET1K_V1"),
        load_weights(build("shufflenet_v2_x0_5"), "ShuffleNet_V2_X0_5_Weights.DEFAULT"),
    ]
    for model in loaded:
        state = model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in original.state_dict().items())
    with pytest.raises(ModelError, match=r"ResNet: \d+ missing"):
        load_weights(build("resnet-20"), "ShuffleNet_V2_X0_5_Weights.DEFAULT")
    with pytest.raises(ModelError, match=r"weights='NOPE'"):
        build("shufflenet_v2_x0_5", weights="NOPE")


@pytest.mark.parametrize("name", ["ResNet18_Weights.NOPE", "Nope_Weights.DEFAULT"])
def test_unknown_weights_name(name: str) -> None:
    with pytest.raises(ModelError, match=f"torchvision has no weights '{name}'"):
        load_weights(build("resnet-20"), name)


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(
        ModelError, match=r"cannot be downloaded from https.*no route to host.*pass its path"
    ):
        load_weights(build("resnet-20"), "ResNet18_Weights.DEFAULT")


def test_build_own_factory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
    ("wrong", "meant"),
    [("resnet32", "resnet-32"), ("lenet5", "lenet-5"), ("ResNet-18", "resnet18")],
)
def test_wrong_name_lists_close_matches(wrong: str, meant: str) -> None:
    with pytest.raises(
        ModelError, match=rf"no model '{wrong}'; did you mean .*'{meant}'.*model_names\(\)"
    ):
        build(wrong)


def test_wrong_arguments_show_the_signature() -> None:
    with pytest.raises(
        ModelError, match=r"width=3.*takes \(classes: int = 10, \*, in_channels: int = 3\)$"
    ):
        build("resnet-32", width=3)
    with pytest.raises(ModelError, match=r"classes=3.*'num_classes'"):
        build("resnet18", classes=3)
