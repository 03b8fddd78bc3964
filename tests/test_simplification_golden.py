"""Plans and model files written before are read, applied and run as they were when they were
written.

``golden/simplification/`` holds, for each network below, a plan (``NAME.json``, version 4; two of
them also in versions 2 and 3), the structure of the lean network and its output for weights that
are a fixed function of their names (``structures.json``); and model files with their outputs
(``models.json``). The code that wrote them may be gone, so there is no switch to overwrite them: a
difference means that files in use no longer load. The networks are built here, so that they never
change.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import snello
from old_plans import as_version
from snello.simplification import SimplificationPlan, apply, plan_of

GOLDEN = Path(__file__).parent / "golden" / "simplification"
Shape = tuple[int, ...]


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the resolution, with zero padding."""
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **options})


class Residual(nn.Module):
    """A residual stream with norms, read by branches and sums; constants meet zero padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = conv(3, 6, bias=False), nn.BatchNorm2d(6)
        self.a = nn.Sequential(conv(6, 8), nn.BatchNorm2d(8), nn.Sigmoid(), conv(8, 6))
        self.b, self.gate = conv(6, 6, 1), nn.Parameter(torch.ones(6, 1, 1))
        self.c = conv(6, 6, 1)
        self.head, self.slope = nn.Linear(6, 4), nn.PReLU(6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.bn(self.stem(x)))
        x = x + self.a(x)
        x = self.slope(x + self.b(F.relu(x)) * self.gate)
        x = F.elu(x) + self.c(x)
        return self.head(x.mean((2, 3)))


def grouped() -> nn.Module:
    """Grouped and depthwise convolutions, whose groups lose different numbers of channels."""
    return nn.Sequential(
        conv(3, 12, 1), nn.BatchNorm2d(12), nn.Sigmoid(), conv(12, 12, groups=3, bias=False), nn.BatchNorm2d(12),
        nn.Hardswish(), conv(12, 12, groups=12), nn.ReLU6(), conv(12, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 3),
    )  # fmt: skip


def mobile() -> nn.Module:
    """Pointwise, depthwise, pointwise: dead inputs of the depthwise convolution end in a table."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
        nn.Conv2d(24, 24, 3, 2, 1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6(),
        nn.Conv2d(24, 3, 1, bias=False), nn.BatchNorm2d(3),
    )  # fmt: skip


class Excited(nn.Module):
    """An inverted residual's branch with squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.SiLU())
        self.depthwise = nn.Sequential(
            conv(12, 12, groups=12, bias=False), nn.BatchNorm2d(12), nn.SiLU()
        )
        self.average = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Sequential(nn.Conv2d(12, 4, 1), nn.ReLU())
        self.excite = nn.Sequential(nn.Conv2d(4, 12, 1), nn.Sigmoid())
        self.narrow = nn.Sequential(nn.Conv2d(12, 5, 1, bias=False), nn.BatchNorm2d(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.wide(x))
        return self.narrow(self.excite(self.squeeze(self.average(x))) * x)


class Views(nn.Module):
    """Concatenation, chunks, a channel shuffle, views that count the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.middle, self.right = conv(3, 4), conv(3, 2, 1), conv(3, 6, 1)
        self.one, self.two = conv(6, 6), conv(6, 6, 1)
        self.fc1, self.fc2, self.out = nn.Linear(12, 4), nn.Linear(4, 12), nn.Linear(12 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat(
            [F.relu(self.left(x)), F.relu(self.middle(x)), torch.sigmoid(self.right(x))], 1
        )
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        one, two = x.view(batch, -1, height, width).chunk(2, dim=1)
        x = F.relu(torch.cat([self.one(one), self.two(two)], 1))
        scale = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1).view(batch, channels))))
        x = x * torch.sigmoid(scale).view(batch, channels, 1, 1).expand_as(x)
        return self.out(F.adaptive_avg_pool2d(x, 4).reshape(-1, 12 * 16))


class UNet(nn.Module):
    """Two levels, skips by concatenation, transposed convolution up."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.bottom = conv(3, 4), conv(4, 6), conv(6, 8)
        self.up2, self.dec2 = nn.ConvTranspose2d(8, 6, 2, 2), conv(12, 6)
        self.up1, self.dec1 = nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), conv(8, 4)
        self.out = conv(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.enc1(x))
        second = torch.sigmoid(self.enc2(F.max_pool2d(first, 2)))
        y = torch.sigmoid(self.bottom(F.max_pool2d(second, 2)))
        y = torch.sigmoid(self.dec2(torch.cat([self.up2(y), second], dim=1)))
        y = F.relu(self.dec1(torch.cat([self.up1(y), first], dim=1)))
        return self.out(y)


class SmallVit(nn.Module):
    """Patches, a class token, positions, one block of attention and an MLP, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm1, self.norm2 = (
            nn.Conv2d(3, 12, 4, 4),
            nn.LayerNorm(12),
            nn.LayerNorm(12),
        )
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.fc1, self.fc2, self.head = nn.Linear(12, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.token, self.positions = (
            nn.Parameter(torch.ones(1, 1, 12)),
            nn.Parameter(torch.ones(1, 5, 12)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x[:, 0])


class Windows(nn.Module):
    """Window attention of Swin V2 between two layers."""

    def __init__(self) -> None:
        super().__init__()
        swin = pytest.importorskip("torchvision.models.swin_transformer")
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 4)
        self.attention = swin.ShiftedWindowAttentionV2(12, [4, 3], [2, 1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(self.first(x)))


class Language(nn.Module):
    """An embedding whose columns go, an MLP, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc1 = nn.Embedding(10, 6), nn.Linear(6, 8)
        self.fc2, self.scale, self.head = (
            nn.Linear(8, 6),
            nn.Parameter(torch.ones(1, 6)),
            nn.Linear(6, 5),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(torch.tanh(x * self.scale + self.fc2(F.gelu(self.fc1(x)))))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "residual": (Residual, (2, 3, 7, 6)),
    "residual-again": (Residual, (2, 3, 7, 6)),
    "grouped": (grouped, (2, 3, 6, 5)),
    "mobile": (mobile, (2, 3, 6, 7)),
    "excited": (Excited, (2, 3, 6, 7)),
    "excited-again": (Excited, (2, 3, 6, 7)),
    "views": (Views, (2, 3, 8, 8)),
    "unet": (UNet, (2, 3, 8, 8)),
    "vit": (SmallVit, (2, 3, 8, 8)),
    "windows": (Windows, (2, 7, 5, 5)),
    "language": (Language, (2, 4)),
}
"""Name -> network and the shape of its input."""

OLDER = {
    "residual-version-2": "residual",
    "mobile-version-3": "mobile",
    "residual-again-version-3": "residual-again",
}
"""File of an older version -> the file of version 4 that says the same."""

NEWER = {"residual-again-version-5": "residual-again", "excited-version-5": "excited"}
"""File of a newer version -> the file of version 4 that says the same."""

KINDS = (
    "attentions", "norms", "parameters", "fills", "sums", "picks", "drops", "numbers", "overhangs", "gates", "statics"
)  # fmt: skip
MODELS = ("lenet-300-100.pt", "lenet-300-100.snello", "resnet-20.pt", "resnet-20-folded.snello")


def wave(shape: Shape, start: float) -> Tensor:
    """Numbers between -1 and 1 without a pattern, the same everywhere: float64."""
    count = torch.Size(shape).numel()
    return torch.sin(start + 1.7 * torch.arange(count, dtype=torch.float64)).reshape(shape)


def inputs(name: str) -> Tensor:
    """The input of a network."""
    shape = NETWORKS[name][1]
    if name == "language":
        return torch.arange(8).reshape(shape) % 10
    return wave(shape, 0.3)


@torch.no_grad()
def filled(model: nn.Module) -> nn.Module:
    """A float64 copy in evaluation mode whose weights are a fixed function of their names and
    shapes.
    """
    model = model.double().eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            numbers = wave(tuple(value.shape), zlib.crc32(name.encode()) % 1000)
            value.copy_(1 + 0.5 * numbers if name.endswith("running_var") else 0.7 * numbers)
    return model


def structure(model: nn.Module) -> dict[str, list[int]]:
    """Shape of each entry of the ``state_dict``."""
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def read(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def plan(name: str) -> SimplificationPlan:
    return SimplificationPlan.from_json((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("name", NETWORKS)
def test_plan_gives_the_recorded_structure_and_output(name: str) -> None:
    lean = apply(plan(name), NETWORKS[name][0]())
    expected = read("structures")[name]
    assert structure(lean) == expected["state_dict"]
    with torch.no_grad():
        found = filled(lean)(inputs(name))
    output = torch.tensor(expected["output"], dtype=torch.float64)
    torch.testing.assert_close(found, output, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", [*NETWORKS, *OLDER])
def test_plan_survives_json(name: str) -> None:
    read_once = plan(name)
    assert SimplificationPlan.from_json(read_once.to_json()) == read_once
    assert (read_once.base is not None) == name.startswith(("residual-again", "excited-again"))


@pytest.mark.parametrize(("older", "name"), OLDER.items())
def test_older_version_says_the_same(older: str, name: str) -> None:
    assert read(older)["version"] < read(name)["version"]
    assert plan(older) == plan(name)


@pytest.mark.parametrize(("newer", "name"), NEWER.items())
def test_newer_version_says_the_same_and_is_what_is_written(newer: str, name: str) -> None:
    assert read(newer)["version"] > read(name)["version"]
    assert plan(newer) == plan(name)
    assert json.loads(plan(newer).to_json()) == read(newer)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("version", [2, 3, 4])
def test_plan_written_by_an_earlier_version_is_read(name: str, version: int) -> None:
    newest = plan(name)
    folds = {fold.tag for layer in newest.layers.values() for fold in layer.folds}
    kinds = {edit.tag for edit in newest.edits} | folds
    if (version < 4 and kinds & {"static", "gate", "gated"}) or (
        version < 3 and kinds & {"overhang", "table"}
    ):
        pytest.skip("has records that this version did not know")
    assert SimplificationPlan.from_json(as_version(newest, version)) == newest


@pytest.mark.parametrize("name", NETWORKS)
def test_plan_of_a_lean_network_is_the_recorded_plan(name: str) -> None:
    assert plan_of(apply(plan(name), NETWORKS[name][0]())) == plan(name)


def test_every_kind_of_record_occurs() -> None:
    plans = [read(name) for name in NETWORKS]
    plans += [data["base"] for data in plans if data["base"] is not None]
    assert {kind for data in plans for kind in KINDS if data[kind]} == set(KINDS)
    layers = [layer for data in plans for layer in data["layers"].values()]
    assert all(any(layer[fold] for layer in layers) for fold in ("border", "table", "gated"))
    fills, sums = ([x for data in plans for x in data[kind]] for kind in ("fills", "sums"))
    assert {fill["zero"] for fill in fills} == {sum_["in_place"] for sum_ in sums} == {True, False}
    assert {sum_["base"] for sum_ in sums} == {0, 1}
    assert any(sum_["index"] is None for sum_ in sums)
    assert {number["position"] < 0 for data in plans for number in data["numbers"]} == {True, False}
    assert {pick["index"] is None for data in plans for pick in data["picks"]} == {True, False}


@pytest.mark.parametrize("name", MODELS)
def test_model_file_gives_the_recorded_output(name: str) -> None:
    if name.endswith(".snello"):
        pytest.importorskip("nncodec")
    expected = read("models")[name]
    model, record = snello.load(GOLDEN / name)
    assert list(record.input_shape) == expected["input_shape"]
    x = wave((3, *record.input_shape), 0.3)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-7)):
        with torch.no_grad():
            found = model.to(dtype)(x.to(dtype))
        output = torch.tensor(expected[str(dtype).removeprefix("torch.")], dtype=dtype)
        torch.testing.assert_close(found, output, rtol=tolerance, atol=tolerance)
