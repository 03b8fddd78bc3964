"""Masked networks for measuring simplification: random dead neurons, outputs that depend on the
input.

A network is made in four steps. :func:`randomise` takes away everything that is trivially zero or
one (fresh BatchNorm statistics, affines, layer scales, heads initialised to zero). :func:`kill`
zeroes a share of the neurons of every layer but the output layers, independently per layer. At high
shares nothing may be left of the signal: :func:`rescue` gives single neurons back until every
output depends on the input. :func:`calibrate` keeps the signal in range, so that a comparison of
outputs can fail in float32 as well.

Variants: in A, the BatchNorm that reads a dead neuron alone is zeroed as well, and so is its bias,
so the neuron is 0; in B they stay, so the neuron is a constant that is not zero.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from removable import removable
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from snello.graph import capture
from snello.lab.models import model_names
from snello.neurons import is_batchnorm, is_weighted, neuron_count, spread, weighted_layers
from snello.store import build

Variant = Literal["A", "B"]


@dataclass(frozen=True)
class Member:
    """A network of the zoo.

    Attributes:
        name: for :func:`snello.store.build`.
        family: what the acceptance criteria call it.
        side: of its square input.
        arguments: of its factory.
    """

    name: str
    family: str
    side: int
    arguments: tuple[tuple[str, Any], ...] = ()

    def build(self) -> nn.Module:
        """The network as its factory initialises it, in evaluation mode."""
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # torchvision's, about slow initialisation
            return build(self.name, **dict(self.arguments)).eval()


_FAMILIES = (
    "wide_resnet", "resnext", "resnet", "vgg", "alexnet", "densenet", "googlenet", "inception", "squeezenet",
    "mobilenet", "mnasnet", "efficientnet", "regnet", "shufflenet", "convnext", "swin", "vit", "maxvit",
)  # fmt: skip


def zoo() -> dict[str, Member]:
    """All torchvision classification and segmentation networks, and the CIFAR ResNets, by name."""
    from torchvision import models

    members = [
        Member(name, "cifar_resnet", 32) for name in model_names() if name.startswith("resnet-")
    ]
    for name in models.list_models(module=models):
        arguments = (("init_weights", False),) if name in ("googlenet", "inception_v3") else ()
        family = next(family for family in _FAMILIES if name.startswith(family))
        members.append(Member(name, family, 299 if family == "inception" else 224, arguments))
    for name in models.list_models(module=models.segmentation):
        family = name.partition("_")[0]
        auxiliary = () if family == "lraspp" else (("aux_loss", True),)
        members.append(Member(name, family, 224, auxiliary))
    return {member.name: member for member in members}


def masked(
    member: Member, share: float, variant: Variant, seed: int = 0, side: int | None = None
) -> tuple[nn.Module, int]:
    """A network with dead neurons, float32, in evaluation mode, and how many of them were rescued.

    Args:
        member: of the zoo.
        share: of each layer's neurons that are killed.
        variant: see the module's docstring.
        seed: of the initialisation, the mask and everything else.
        side: of the square input on which it is calibrated; the member's own if None.
    """
    side = side or member.side
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = member.build()
    randomise(model, generator)
    kill(model, share, variant, generator)
    rescued = rescue(model, torch.empty(1, 3, side, side), generator)
    _settle(model, side, generator)
    return model, rescued


def _settle(model: nn.Module, side: int, generator: torch.Generator) -> None:
    """Calibrate until a comparison means something: the best of a few draws, mostly the first.

    Where one channel carries all of the signal, an activation may cut it off, or float32 may drown
    it.
    """
    best, kept = float("inf"), None
    for _ in range(4):
        calibrate(model, images((16 if side <= 128 else 8, 3, side, side), generator), generator)
        x = images((3, 3, side, side), generator)
        expected = outputs(copy.deepcopy(model).double(), x.double())
        rounding = (
            error(expected, outputs(model, x)) if dependence(expected) > 0.01 else float("inf")
        )
        if rounding <= 2e-5:
            return
        if kept is None or rounding < best:
            best, kept = rounding, copy.deepcopy(model.state_dict())
    if kept is not None:
        model.load_state_dict(kept)


def images(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random images ``(N, C, H, W)`` that differ in colour and coarse structure: pooling leaves a
    difference.
    """
    coarse = torch.randn(*shape[:2], 5, 5, generator=generator)
    smooth = F.interpolate(coarse, size=shape[2:], mode="bilinear", align_corners=False)
    colour = torch.randn(*shape[:2], 1, 1, generator=generator)
    return smooth + colour + 0.5 * torch.randn(shape, generator=generator)


def heads(model: nn.Module) -> set[str]:
    """Names of the output layers: the last with weights, of each classifier in a segmentation
    network.
    """
    parts = [
        part for part in ("classifier", "aux_classifier") if getattr(model, part, None) is not None
    ]
    if len(parts) == 1 and not hasattr(model, "backbone"):
        parts = []  # a classification network whose last block is called "classifier"
    layers = weighted_layers(model)
    return {[name for name in layers if name.startswith(part)][-1] for part in parts or [""]}


@torch.no_grad()
def randomise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Random BatchNorm statistics, affines, biases, layer scales, and weights that are all one
    number; in place.
    """
    for module in model.modules():
        if is_batchnorm(module):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        if isinstance(module, nn.MultiheadAttention):
            module.in_proj_bias.uniform_(-0.5, 0.5, generator=generator)
        if (
            getattr(module, "qkv", None) is not None
        ):  # else attention hardly contributes to the output
            module.qkv.weight.mul_(4)
            module.proj.weight.mul_(4)
    for name, parameter in model.named_parameters():
        flat = parameter.numel() > 1 and parameter.min() == parameter.max()
        if name.endswith("bias"):
            parameter.uniform_(-0.5, 0.5, generator=generator)
        elif parameter.dim() == 1 or "layer_scale" in name:
            parameter.uniform_(0.5, 1.5, generator=generator)
        elif flat:  # ViT's head and class token
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return model


@torch.no_grad()
def kill(model: nn.Module, share: float, variant: Variant, generator: torch.Generator) -> nn.Module:
    """Zero all weights of a random share of the neurons of every layer but the output layers, in
    place.
    """
    outputs = heads(model)
    dead = {}
    for name, layer in weighted_layers(model).items():
        if name not in outputs:
            count = neuron_count(layer)
            drawn = torch.randperm(count, generator=generator)[: round(share * count)]
            dead[name] = torch.zeros(count, dtype=torch.bool).index_fill_(0, drawn, True)
    return zero(model, dead, with_norms=variant == "A")


@torch.no_grad()
def zero(model: nn.Module, dead: Mapping[str, Tensor], *, with_norms: bool) -> nn.Module:
    """Zero all weights of some neurons, in place.

    Args:
        model: changed in place.
        dead: layer -> boolean, shape ``(neurons,)``.
        with_norms: also zero their biases, and the affine of the BatchNorm that alone reads them.
    """
    graph = capture(model)
    for name, neurons in dead.items():
        layer, norm = model.get_submodule(name), graph.norm_after(name)
        layer.weight.masked_fill_(spread(layer, neurons), 0)
        affine = [] if norm is None else model.get_submodule(norm).parameters()
        for parameter in [layer.bias, *affine] if with_norms else []:
            if parameter is not None:
                parameter.masked_fill_(neurons, 0)
    return model


@torch.no_grad()
def rescue(model: nn.Module, x: Tensor, generator: torch.Generator) -> int:
    """Give neurons back, in place, until every output depends on the input; how many were needed.

    Independent masks of depthwise layers leave nothing of a signal without a residual path: 10 % of
        10 %.
    """
    graph = capture(model)
    for revived in itertools.count():
        found = removable(model, x, borders=False)
        blocked = [
            layer for layer in found.layers if layer.constant.all() and layer.live_inputs.any()
            and is_weighted(model.get_submodule(layer.name))
        ]  # fmt: skip
        if not found.constant_outputs or not blocked:
            return revived
        layer = model.get_submodule(blocked[-1].name)
        column = int(blocked[-1].live_inputs.nonzero()[0])
        rows, groups = _rows(layer), getattr(layer, "groups", 1)
        row = column // (len(blocked[-1].live_inputs) // groups) * (len(rows) // groups)
        rows[row] = torch.randn(rows[row].shape, generator=generator)
        if (name := graph.norm_after(blocked[-1].name)) is not None:
            norm = model.get_submodule(name)
            norm.weight[row], norm.bias[row] = 1, 0.1
    raise AssertionError("unreachable")


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor, generator: torch.Generator) -> nn.Module:
    """Scale every layer to unit variance on ``x``, in order of execution, in place; zeros stay
    zeros.
    """

    def live(y: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        values = y.double().movedim(axis, 0)
        mean, square = values.flatten(1).mean(1), values.square().flatten(1).mean(1)
        # The variance over the batch: what differs between positions alone (a border) is no signal.
        variance = (values - values.mean(1, keepdim=True)).square().flatten(1).mean(1)
        # Where the rest outweighs it, full scaling would blow up float32's rounding with it.
        scale = variance + 0.1 * (square - variance)
        return mean.to(y.dtype), scale.to(y.dtype), variance > 1e-8 * (1e-4 + square)

    def layer(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        mean, variance, alive = live(y, y.dim() - 1 if isinstance(module, nn.Linear) else 1)
        if not alive.any():
            return None
        factor = variance[alive].mean().rsqrt()
        if module.bias is not None:
            wanted = torch.empty_like(mean).uniform_(-0.5, 0.5, generator=generator)
            module.bias.copy_(
                torch.where(alive, (module.bias - mean) * factor + wanted, module.bias)
            )
        module.weight.mul_(factor)
        return module.forward(*inputs)

    def norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, variance, alive = live(inputs[0], 1)
        shifted = mean + 0.3 * variance.sqrt() * torch.randn(mean.shape, generator=generator)
        spread = variance * torch.empty_like(variance).uniform_(0.5, 2, generator=generator)
        module.running_mean.copy_(torch.where(alive, shifted, module.running_mean))
        module.running_var.copy_(torch.where(alive, spread, module.running_var))

    handles = [m.register_forward_hook(layer) for m in weighted_layers(model).values()]
    handles += [m.register_forward_pre_hook(norm) for m in model.modules() if is_batchnorm(m)]
    model(x)
    for handle in handles:
        handle.remove()
    return model


def _rows(layer: nn.Module) -> Tensor:
    """A view of the weight whose first dimension counts the neurons."""
    weight = layer.weight
    if not isinstance(layer, _ConvTransposeNd):
        return weight
    if layer.groups != 1:
        raise NotImplementedError("masks of grouped transposed convolutions")
    return weight.transpose(0, 1)


# --- comparing
# ----------------------------------------------------------------------------------------------


@torch.no_grad()
def outputs(model: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    """All output tensors, in float64; those of a dictionary in its order."""
    y = model(x)
    values = (
        list(y.values()) if isinstance(y, Mapping) else y if isinstance(y, (list, tuple)) else [y]
    )
    return [value.double() for value in values]


def error(expected: list[Tensor], found: list[Tensor]) -> float:
    """Largest difference over the largest deviation from the batch mean, the worst of the outputs.

    What an output has in common over the batch says nothing about the input; it shall not hide a
    difference.
    """
    if [y.shape for y in expected] != [y.shape for y in found]:
        return float("inf")
    pairs = zip(expected, found, strict=True)
    return max(float((y - z).abs().max() / _deviation(y).abs().max()) for y, z in pairs)


def dependence(expected: list[Tensor]) -> float:
    """Dependence of outputs on the input: deviation from the batch mean over the largest value,
    the least.
    """
    return min(float(_deviation(y).abs().max() / y.abs().max()) for y in expected)


def _deviation(y: Tensor) -> Tensor:
    return y - y.mean(0, keepdim=True)
