"""Hard cases: tokens and attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ANY, CASES, EVEN, FIXED, TOKENS, Case, Net, conv

# Tokens and attention


class Mlp(nn.Module):
    """The feed-forward half of a transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Mixer(nn.Module):
    """MLP-Mixer: a layer over channels, a layer over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.t1, self.t2, self.head = (
            Mlp(),
            nn.Linear(5, 7),
            nn.Linear(7, 5),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        x = x + self.t2(F.relu(self.t1(x.transpose(1, 2)))).transpose(1, 2)
        return self.head(x.mean(1))


class SelfAttention(nn.Module):
    """torch's own module, as in torchvision's ViT."""

    def __init__(self, need_weights: bool = True) -> None:
        super().__init__()
        self.norm, self.mlp, self.need_weights = nn.LayerNorm(6), Mlp(), need_weights
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> object:
        y = self.norm(x)
        y, weights = self.attention(y, y, y, need_weights=self.need_weights)
        x = self.mlp(x + y)
        return (x, weights) if self.need_weights else x


class PackedAttention(nn.Module):
    """Written by hand, with one layer for q, k and v, as in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj, self.mlp = (
            nn.LayerNorm(6),
            nn.Linear(6, 18),
            nn.Linear(6, 6),
            Mlp(),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = ((q * 3**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        y = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        return self.mlp(x + self.proj(y))


class SeparateAttention(nn.Module):
    """Written by hand, three layers and torch's scaled dot product."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 6),
        )
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.size()
        q, k, v = (f(x).view(batch, length, 2, 3).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.mlp(x + self.proj(y.transpose(1, 2).contiguous().view(batch, length, 6)))


class SmallVit(nn.Module):
    """Patches, a class token, positions, one block, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 6, 4, 4), SelfAttention(need_weights=False)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)
        self.token, self.positions = (
            nn.Parameter(torch.zeros(1, 1, 6)),
            nn.Parameter(torch.zeros(1, 5, 6)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.block(x))[:, 0])


class ConvNextBlock(nn.Module):
    """LayerNorm and Linear layers on channels-last tensors, layer scale, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise, self.norm = conv(3, 6), conv(6, 6, 5, groups=6), nn.LayerNorm(6)
        self.fc1, self.fc2, self.out = nn.Linear(6, 8), nn.Linear(8, 6), conv(6, 4)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.fc2(F.gelu(self.fc1(y))).permute(0, 3, 1, 2)
        return self.out(x + self.scale * y)


class Windows(nn.Module):
    """Swin: windows of 2x2 rolled, an MLP inside each, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mlp, self.out = conv(3, 6), Mlp(), conv(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.stem(x).permute(0, 2, 3, 1), (-1, -1), (1, 2))
        batch, height, width, channels = x.shape
        x = (
            x.view(batch, height // 2, 2, width // 2, 2, channels)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(-1, 4, channels)
        )
        x = (
            self.mlp(x)
            .view(batch, height // 2, width // 2, 2, 2, channels)
            .permute(0, 1, 3, 2, 4, 5)
        )
        return self.out(x.reshape(batch, height, width, channels).permute(0, 3, 1, 2))


class Recurrent(nn.Module):
    """An LSTM: there is no rule for it, so everything reaches it at full width."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lstm, self.fc2 = (
            nn.Linear(6, 5),
            nn.LSTM(5, 4, batch_first=True),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x, (hidden, _) = self.lstm(F.relu(self.fc1(x)))
        return self.fc2(x) + self.fc2(hidden[0]).unsqueeze(1)


_HIDDEN = {"mlp.fc1": (0, 2, 7)}
_LEAN_HIDDEN = {"mlp.fc1": (5, 6), "mlp.fc2": (6, 5)}
CASES["tokens: MLP"] = Case(
    lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4), nn.Sigmoid(), nn.Linear(4, 3)), TOKENS,
    {"0": (0, 2, 7), "2": (1,)}, {"0": (5, 6), "2": (3, 5), "4": (3, 3)},
)  # fmt: skip
CASES["tokens: mixer"] = Case(
    Mixer,
    ((2, 5, 6), (3, 5, 6)),
    {**_HIDDEN, "t1": (0, 5)},
    {**_LEAN_HIDDEN, "t1": (5, 5), "t2": (5, 5)},
)
CASES["tokens: a norm in the middle"] = Case(
    lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)), TOKENS,
    {"0": (0, 2, 7)}, {"0": (5, 6)},
)  # fmt: skip
CASES["tokens: RMSNorm in the middle"] = Case(
    lambda: nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8), nn.GELU(), nn.Linear(8, 3)), TOKENS,
    {"0": (0, 2, 7)}, {"0": (5, 6)},
)  # fmt: skip
CASES["tokens: F.layer_norm"] = Case(
    lambda: Net(lambda m, x: m.fc2(F.layer_norm(m.fc1(x), (8,))), fc1=nn.Linear(6, 8), fc2=nn.Linear(8, 3)), TOKENS,
    {"fc1": (0, 2, 7)}, {"fc1": (5, 6)},
)  # fmt: skip
CASES["tokens: gated"] = Case(
    lambda: Net(
        lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)), gate=nn.Linear(6, 8), up=nn.Linear(6, 8), down=nn.Linear(8, 6)
    ),
    TOKENS, {"gate": (0, 1), "up": (1, 2)},
    {"gate": (5, 6), "up": (5, 6), "down": (6, 5)}, {"gate": (6, 6), "up": (6, 6)},
)  # fmt: skip
CASES["tokens: 1-d BatchNorm"] = Case(
    lambda: Net(
        lambda m, x: m.fc2(F.relu(m.bn(m.fc1(x).transpose(1, 2)).transpose(1, 2))),
        fc1=nn.Linear(6, 8), bn=nn.BatchNorm1d(8), fc2=nn.Linear(8, 3),
    ),
    TOKENS, {"fc1": (0, 2, 7)}, {"fc1": (5, 6), "bn": (5,), "fc2": (3, 5)},
)  # fmt: skip
CASES["attention: module"] = Case(
    lambda: SelfAttention(need_weights=False), TOKENS, _HIDDEN, _LEAN_HIDDEN
)
CASES["attention: module, weights returned"] = Case(SelfAttention, TOKENS, _HIDDEN, _LEAN_HIDDEN)
CASES["attention: packed q, k, v"] = Case(PackedAttention, TOKENS, _HIDDEN, _LEAN_HIDDEN)
CASES["attention: separate q, k, v"] = Case(SeparateAttention, TOKENS, _HIDDEN, _LEAN_HIDDEN)
CASES["attention: encoder layer"] = Case(
    lambda: nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Linear(6, 3)),
    TOKENS,
)
CASES["attention: small ViT"] = Case(
    SmallVit, FIXED, {"block.mlp.fc1": (0, 2, 7), "patches": (1,)},
    {"block.mlp.fc1": (5, 6), "block.mlp.fc2": (6, 5), "patches": (5, 3)},
)  # fmt: skip
CASES["attention: windows"] = Case(
    Windows, EVEN, {**_HIDDEN, "stem": (0,)}, {**_LEAN_HIDDEN, "stem": (5, 3)}
)
CASES["tokens: ConvNeXt block"] = Case(
    ConvNextBlock, ANY, {"stem": (0,), "depthwise": (1,), "fc1": (0, 2, 7), "fc2": (0, 3)},
    {"stem": (5, 3), "fc1": (5, 6), "fc2": (4, 5), "out": (4, 5)},
)  # fmt: skip
CASES["tokens: LSTM"] = Case(Recurrent, TOKENS, {"fc1": (0, 2)}, {"fc1": (3, 6)})
CASES["embedding: dead dimensions"] = Case(
    lambda: nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    ((2, 5), (3, 7)), {"0": (1, 4), "1": (0,)}, {"0": (10, 4), "1": (7, 4), "3": (3, 7)}, vocabulary=10,
)  # fmt: skip
CASES["embedding: padding index"] = Case(
    lambda: nn.Sequential(nn.Embedding(10, 6, padding_idx=3), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    ((2, 5), (3, 7)), {"1": (0, 5)}, {"1": (6, 6), "3": (3, 6)}, vocabulary=10,
)  # fmt: skip
CASES["embedding: with positions"] = Case(
    lambda: Net(
        lambda m, ids: m.fc2(F.relu(m.fc1(m.embed(ids) + m.positions[: ids.size(1)]))),
        embed=nn.Embedding(10, 6), positions=nn.Parameter(torch.zeros(9, 6)), fc1=nn.Linear(6, 8), fc2=nn.Linear(8, 3),
    ),
    ((2, 5), (3, 7)), {"fc1": (0, 1)}, {"fc1": (6, 6), "fc2": (3, 6)}, vocabulary=10,
)  # fmt: skip
CASES["embedding: averaged"] = Case(
    lambda: nn.Sequential(nn.EmbeddingBag(10, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    ((2, 5), (3, 7)), {"1": (0, 5)}, {"1": (6, 6), "3": (3, 6)}, vocabulary=10,
)  # fmt: skip
