"""Images and networks of ``time_to_accuracy.py``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import VisionTransformer

from snello.lab.datasets import load_dataset
from snello.lab.datasets._batches import crop_flip
from snello.lab.models import CifarResNet
from snello.store import load_weights
from snello.timing import work_seconds


@dataclass
class Images:
    """Training and test images, normalised; view v of training image i is at i + v × images.

    An object of this class is a dataset for a dynamic subset: its samples are their indices.
    """

    train: Tensor
    labels: Tensor
    test: Tensor
    truth: Tensor
    views: int = 1

    def to(self, device: torch.device) -> Images:
        """The same images on a device."""
        found = (t.to(device) for t in (self.train, self.labels, self.test, self.truth))
        return Images(*found, self.views)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> int:
        return index


@dataclass(frozen=True)
class Task:
    """A network, the images that it learns, and how it is optimised.

    Attributes:
        images: the images.
        network: builds the network with the weights that the training starts from.
        parts: beginnings of the names in each part of the network, from the input on; the last part
            has all others.
        optimizer: from parameter groups and a learning rate.
        device: that trains; the images lie there.
        bf16: whether autocast is on.
        from_scratch: whether the weights are random.
        shared: whether other work on the device makes its times worthless.
    """

    images: Images
    network: Callable[[], Any]
    parts: tuple[tuple[str, ...], ...]
    optimizer: Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]
    device: torch.device
    bf16: bool
    from_scratch: bool
    shared: bool

    def part(self, name: str) -> int:
        """Number of the part in which a layer or parameter is."""
        found = (n for n, names in enumerate(self.parts) if f"{name}.".startswith(names))
        return next(found, len(self.parts) - 1)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def seconds(self) -> float:
        """CPU seconds of this process; on a GPU those of the wall clock, once it has finished."""
        return work_seconds(self.device)


def cifar10(options: argparse.Namespace) -> Task:
    """A CIFAR ResNet on JPEG CIFAR-10 from SNELLO_DATA."""

    device = torch.device(options.device)

    def network() -> CifarResNet:
        model = CifarResNet(options.depth)
        if options.weights is not None:
            load_weights(model, options.weights)
        return model.to(device, memory_format=torch.channels_last)

    return Task(
        _cifar10(options.images, options.views).to(device),
        network,
        (("conv1.", "bn1.", "layer1."), ("layer2.",), ()),
        lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=1e-4),
        device,
        options.precision == "bf16",
        options.weights is None,
        options.shared,
    )


def _cifar10(images: int, views: int) -> Images:
    splits = load_dataset("cifar10", validation=0.1, seed=0)
    # The normalisation with which the public weights were trained.
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def ready(pixels: Tensor) -> Tensor:
        return ((pixels.float() / 255 - mean) / std).to(memory_format=torch.channels_last)

    pixels = splits.train.pixels[:images]
    shown = [pixels]
    for view in range(1, views):
        draw = torch.Generator().manual_seed(view)
        corners = torch.randint(0, 9, (len(pixels), 2), generator=draw)
        shown.append(crop_flip(pixels, corners, torch.full((len(pixels),), view % 2 == 1)))
    return Images(
        ready(torch.cat(shown)), splits.train.labels[:images],
        ready(splits.test.pixels), splits.test.labels, views,
    )  # fmt: skip


BLOCK = "encoder.layers.encoder_layer_"


def vit(options: argparse.Namespace) -> Task:
    """torchvision's VisionTransformer with four blocks, from MNIST's digits 0 to 4 to 5 to 9."""
    if options.views != 1 or options.weights is not None:
        raise SystemExit(
            "--task=vit has one view of each image, and trains its first weights itself"
        )
    device = torch.device(options.device)
    before, after = _mnist(range(5), 15_000), _mnist(range(5, 10), options.images)
    kept = options.out / "source.pth"
    if not kept.exists():
        torch.save(_source(before).state_dict(), kept)

    def network() -> VisionTransformer:
        model = _vit()
        model.load_state_dict(torch.load(kept, weights_only=True))
        torch.nn.init.normal_(model.heads[0].weight, std=0.02)  # other classes
        return model.to(device)

    return Task(
        after.to(device),
        network,
        (("conv_proj.", "class_token.", "encoder.pos_embedding.", f"{BLOCK}0.", f"{BLOCK}1."),
         (f"{BLOCK}2.",), ()),
        lambda groups, lr: torch.optim.AdamW(groups, lr=lr, weight_decay=0.05),
        device,
        options.precision == "bf16",
        from_scratch=False,
        shared=options.shared,
    )  # fmt: skip


def _vit() -> VisionTransformer:
    return VisionTransformer(
        image_size=28, patch_size=4, num_layers=4, num_heads=4, hidden_dim=96, mlp_dim=384, num_classes=5
    )  # fmt: skip


def _mnist(digits: range, images: int) -> Images:
    """Images of some digits, in three equal channels; the labels count from zero."""
    splits = load_dataset("mnist", validation=0.1, seed=0)
    found = []
    for part in (splits.train, splits.test):
        wanted = (part.labels >= digits[0]) & (part.labels <= digits[-1])
        x = ((part.pixels[wanted].float() / 255 - 0.1307) / 0.3081).reshape(-1, 1, 28, 28)
        found.append((x.expand(-1, 3, -1, -1), part.labels[wanted] - digits[0]))
    (train, labels), (test, truth) = found
    return Images(train[:images], labels[:images], test, truth)


def _source(images: Images, epochs: int = 8) -> VisionTransformer:
    """The ViT trained on the first digits."""
    torch.manual_seed(0)
    model = _vit().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    steps = epochs * (len(images) // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images))[: len(images) // 100 * 100].split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(images.train[chosen]), images.labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {"cifar10": cifar10, "vit": vit}
