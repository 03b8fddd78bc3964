"""Candidates as bitstreams, with a quantisation parameter per tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from snello.codec import CodecSettings, encode, quantised
from snello.neurons import is_batchnorm
from snello.search.rate import RateSearch, coded_tensors, search_rate, with_tensors

from ._groups import SPARSITIES, magnitude_masks
from ._judge import Judge


def coded(
    model: nn.Module, judge: Judge, bound: float, used: float, calibration: Sequence[Any],
    *, sparse: bool,
) -> RateSearch:  # fmt: skip
    """Find the smallest bitstream of a network within what it leaves of the bound.

    Args:
        model: the network.
        judge: quality of networks.
        bound: upper limit of the drop.
        used: upper limit of the drop before quantisation, at most `bound`.
        calibration: inputs.
        sparse: true if many weights are zero, which uniform quantisation keeps.
    """
    normed = any(is_batchnorm(module) for module in model.modules())
    return search_rate(
        model,
        lambda network: judge(network).limit,
        max_drop=bound - used,
        calibration=calibration,
        # Folding saves the bytes of the norms and costs nothing: the other form is not tried.
        fold=True if normed else None,
        dependent_quantisation=None if sparse else True,
    )


def decoded(model: nn.Module, settings: CodecSettings) -> nn.Module:
    """A copy of a network with the weights that its bitstream decodes to."""
    return with_tensors(model, quantised(coded_tensors(model), settings))


def settings_to_json(settings: CodecSettings) -> dict[str, Any]:
    """Codec settings as data for `json`."""
    found = {f.name: getattr(settings, f.name) for f in fields(settings)}
    return {**found, "qp_of": dict(settings.qp_of)}


def settings_from_json(data: Mapping[str, Any]) -> CodecSettings:
    """The settings of `settings_to_json`."""
    return CodecSettings(**data)


def rates(model: nn.Module, settings: CodecSettings) -> dict[str, float]:
    """Coded bytes per entry of every tensor: what a removed channel saves."""
    return {
        name: _bytes(name, tensor, settings) / tensor.numel()
        for name, tensor in coded_tensors(model).items()
    }


def sparse_factors(model: nn.Module, settings: CodecSettings) -> dict[float, float]:
    """Bytes of the weights at each share of zeros, relative to those of the dense network."""
    sizes = {}
    for share in SPARSITIES:
        masks = magnitude_masks(model, share)
        tensors = {name: coded_tensors(model)[name].clone() for name in masks}
        sizes[share] = sum(
            _bytes(name, torch.where(masks[name], tensor, 0), settings)
            for name, tensor in tensors.items()
        )
    return {share: size / max(sizes[0.0], 1) for share, size in sizes.items()}


def _bytes(name: str, tensor: Tensor, settings: CodecSettings) -> int:
    own = {name: settings.qp_of[name]} if name in settings.qp_of else {}
    return len(encode({name: tensor}, replace(settings, qp_of=own)))
