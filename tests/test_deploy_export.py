"""Export: the file computes what the model computes, at any batch size, or it does not appear."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laws import kill
from seams.deploy import verify
from snello import plan_of, simplify
from snello.deploy import export, export_int8, file_runner, footprint
from snello.errors import ConfigError, ModelError, OutputError
from snello.neurons import neuron_count
from snello.store import build

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime")
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(144, 5),
    )


class TwoInTwoOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        return {"sum": self.layer(first) + second, "twice": 2 * first}


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, 3) + 1


class DropsSample(nn.Module):
    """Runs in PyTorch at any batch size; its branch on the batch size cannot be exported."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (1 if x.shape[0] == 4 else 2)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_agree_at_every_batch_size(tmp_path: Path, batch: int) -> None:
    model = small()
    model[1].running_mean.normal_()
    path = export(model, torch.randn(batch, 3, 8, 8), tmp_path / "net.onnx")
    assert path == tmp_path / "net.onnx"
    model.eval()
    for size in (1, 2, 7):
        x = torch.randn(size, 3, 8, 8)
        found = torch.from_numpy(file_runner(path, x)()[0])  # type: ignore[index]
        assert torch.allclose(found, model(x), atol=1e-5)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    model = TwoInTwoOut()
    path = export(model, (torch.randn(2, 3), torch.randn(2, 4)), tmp_path / "two.onnx")
    x, y = torch.randn(5, 3), torch.randn(5, 4)
    found = file_runner(path, (x, y))()
    for a, b in zip(found, model(x, y).values(), strict=True):  # type: ignore[call-overload]
        assert torch.allclose(torch.from_numpy(a), b, atol=1e-6)


def test_inputs_by_name_and_decorated_forwards(tmp_path: Path) -> None:
    """As transformers decorates them: the code of the wrapper takes (*args, **kwargs)."""

    def decorated(forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return forward(self, *args, **kwargs)

        return wrapper

    class Decorated(TwoInTwoOut):
        forward = decorated(TwoInTwoOut.forward)  # type: ignore[assignment]

    model, x, y = Decorated().eval(), torch.randn(2, 3), torch.randn(2, 4)
    wanted = model(x, y)
    for name, example, order in (
        ("args", (x, y), (x, y)),
        ("kwargs", {"second": y, "first": x}, (y, x)),
        ("other", {"first": x, "second": y}, (x, y)),
    ):
        path = export(model, example, tmp_path / f"{name}.onnx")
        if name != "args":
            session = onnxruntime.InferenceSession(path)
            assert [given.name for given in session.get_inputs()] == list(example)
        found = file_runner(path, order)()
        for a, b in zip(found, wanted.values(), strict=True):
            assert torch.allclose(torch.as_tensor(a), b, atol=1e-6)
    with pytest.raises(ConfigError, match="not a dictionary"):
        file_runner(path, {"first": x})  # type: ignore[arg-type]


def test_int8_with_inputs_by_name(tmp_path: Path) -> None:
    model, x, y = TwoInTwoOut().eval(), torch.randn(20, 3), torch.randn(20, 4)
    example = {"second": y[:1], "first": x[:1]}
    found = export_int8(model, example, tmp_path / "int8.onnx", [{"first": x, "second": y}, (y, x)])
    assert found.samples == 40
    assert found.difference < 0.05
    with pytest.raises(ConfigError, match="the file takes second, first"):
        export_int8(model, example, tmp_path / "int8.onnx", [{"first": x}])


@pytest.mark.skipif(
    TORCH < (2, 15), reason="the exporter of older torch fixes the batch size; the file is refused"
)
def test_a_model_of_transformers_is_exported(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(0, 50, (1, 8))
    for i, example in enumerate(
        ((ids,), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    ):
        path = export(model, example, tmp_path / f"{i}.onnx")
        inputs = (ids,) if i == 0 else tuple(example.values())
        found = torch.as_tensor(file_runner(path, inputs)()[0])
        assert torch.allclose(found, model(ids).logits, atol=1e-5)


def test_model_is_untouched_and_nothing_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = small().train()
    model[1].eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(model, torch.randn(2, 3, 8, 8), tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True, True]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]  # one file, nothing beside it


def test_a_differing_file_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    target = tmp_path / "net.onnx"
    target.write_bytes(b"the old one")
    with pytest.raises(ModelError, match="differs from PyTorch by"):
        export(nn.Linear(3, 2), torch.randn(2, 3), target)
    assert target.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [target]
    export(nn.Linear(3, 2), torch.randn(2, 3), target, verify=False)
    assert target.read_bytes() != b"the old one"


@pytest.mark.parametrize("model", [FixedBatch(), DropsSample()])
def test_a_fixed_batch_size_is_refused(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(ModelError, match=type(model).__name__):
        export(model, torch.randn(4, 3), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_models_of_torchscript_are_refused_whole_or_as_a_part(tmp_path: Path, suffix: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        scripted = torch.jit.script(nn.Linear(3, 2))
    for model in (scripted, nn.Sequential(scripted)):
        with pytest.raises(ConfigError, match="compiled by TorchScript"):
            export(model, torch.randn(2, 3), tmp_path / f"m{suffix}")
    assert not list(tmp_path.iterdir())


def test_unwritable_places_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for target in ("file/net.onnx", "folder"):
        with pytest.raises(OutputError) as caught:
            export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / target)
        assert str(tmp_path / target) in str(caught.value)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", no_space)
    with pytest.raises(OutputError, match=r"net\.onnx: No space left"):
        export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inputs", [(), torch.tensor(1.0), torch.empty(0, 3)])
def test_inputs_without_a_batch_are_refused(tmp_path: Path, inputs: Tensor) -> None:
    with pytest.raises(ConfigError, match="batch"):
        export(nn.Linear(3, 2), inputs, tmp_path / "net.onnx")


def chain() -> nn.Sequential:
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


@pytest.mark.parametrize(
    ("model", "shape", "dead"),
    [
        (chain(), (3, 12, 12), ("0", "3")),
        (build("lenet-5"), (1, 28, 28), ("conv1", "conv2", "fc1")),
    ],
    ids=["chain", "lenet-5"],
)
def test_simplified_models_hold_no_gather_and_no_scatter(
    tmp_path: Path, model: nn.Module, shape: tuple[int, ...], dead: tuple[str, ...]
) -> None:
    """Where the plan needs no index operation, the file has none, and fewer weights."""
    import onnx

    x = torch.randn(2, *shape)
    for name in dead:
        kill(
            model,
            name,
            torch.arange(neuron_count(model.get_submodule(name))) % 2 == 0,
            with_norms=True,
        )
    lean = simplify(model.eval(), x)
    plan = plan_of(lean)
    assert plan is not None
    assert plan.index_operations == 0
    operators = {}
    for key, net in {"dense": model, "lean": lean}.items():
        graph = onnx.load(str(export(net, x, tmp_path / f"{key}.onnx"))).graph
        operators[key] = [node.op_type for node in graph.node]
    assert not [name for name in operators["lean"] if name.startswith(("Gather", "Scatter"))]
    assert sorted(operators["lean"]) == sorted(operators["dense"])
    assert footprint(tmp_path / "lean.onnx").dead_neurons == 0
    assert footprint(tmp_path / "dense.onnx").dead_neurons >= len(dead)


def test_a_detector_that_takes_a_list_of_images_is_told_what_to_export(tmp_path):
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = small()

        def forward(self, images: list[Tensor]) -> Tensor:
            return self.backbone(torch.stack([image * torch.ones(3, 1, 1) for image in images]))

    with pytest.raises(ModelError, match=r"Detector itself does not run.* backbone and head"):
        export(Detector(), ([torch.rand(3, 8, 8)],), tmp_path / "detector.onnx")
    assert export(Detector().backbone, torch.rand(1, 3, 8, 8), tmp_path / "backbone.onnx").is_file()
