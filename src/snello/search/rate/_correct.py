"""Correction of biases and BatchNorm statistics after quantisation.

Quantisation errors of weights shift the mean of a neuron's output, in particular if its inputs are
not centred, as after a ReLU. The shift relative to the model *before* quantisation is measured on
calibration inputs, layer by layer, after the preceding layers have been corrected. Only this
difference is corrected: without quantisation nothing changes, even if the calibration inputs differ
from the data that the statistics were estimated on.

Source: Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV
2019, https://arxiv.org/abs/1906.04721, section 4.2 (here with measured instead of assumed inputs);
re-estimation of BatchNorm statistics: Sun et al., "Hybrid 8-bit floating point training and
inference for deep neural networks", NeurIPS 2019, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snello.graph import Example, evaluation
from snello.neurons import is_batchnorm, qualified, weighted_layers

from ._probe import first_inputs

Moments = tuple[Tensor, Tensor]
"""Mean and variance per channel, each of shape `(channels,)`, in float64."""


class Correction:
    """Correction of a quantised model towards its reference.

    Layers that are called more than once per forward pass are left alone.

    Args:
        reference: the model before quantisation, in the state in which it will be quantised.
        batches: calibration inputs, of which the first
            `snello.search.rate._probe.MOST_INPUTS` are run.
        bias: correct the bias of every layer with a bias, and the running mean of every BatchNorm.
        batchnorm: correct running mean and running variance of every BatchNorm.
    """

    def __init__(
        self, reference: nn.Module, batches: Sequence[Example], *, bias: bool, batchnorm: bool
    ) -> None:
        # A layer's shift must be known before the next layer runs: all inputs form one batch.
        self._inputs = first_inputs(batches)
        self._biased = [
            n for n, m in weighted_layers(reference).items() if bias and m.bias is not None
        ]
        self._norms = [
            name
            for name, module in reference.named_modules()
            if (bias or batchnorm) and is_batchnorm(module) and module.running_mean is not None
        ]
        self._variance = batchnorm
        self._expected: dict[str, list[Moments]] = {}
        with _watching(reference, self._biased, self._norms, self._note):
            self._run(reference)

    def corrected(self, twin: nn.Module, original: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute new values of biases and statistics, not yet quantised.

        Args:
            twin: the quantised model. It is run once; each layer already uses its new values, and
                the new BatchNorm statistics stay in it.
            original: tensors of the reference by name, from `coded_tensors`.

        Returns:
            Tensor name -> value, of the original's shape and dtype.
        """
        changed: dict[str, Tensor] = {}

        def correct(name: str, module: Any, found: Moments) -> Tensor | None:
            # A layer called several times has several shifts but only one bias.
            if len(self._expected.get(name, ())) != 1:
                return None
            if name in self._norms:
                changed.update(self._statistics(name, module, original, found))
                return None
            shift = self._expected[name][0][0] - found[0]
            key = qualified(name, "bias")
            bias = original[key]
            changed[key] = (module.bias.detach().double() + shift).to(bias.dtype)
            return shift

        with _watching(twin, self._biased, self._norms, correct):
            self._run(twin)
        return {name: value.reshape(original[name].shape) for name, value in changed.items()}

    def _statistics(
        self, name: str, module: Any, original: Mapping[str, Tensor], found: Moments
    ) -> dict[str, Tensor]:
        mean, variance = self._expected[name][0]
        old = {key: original[qualified(name, key)] for key in ("running_mean", "running_var")}
        new = {"running_mean": old["running_mean"].double() + found[0] - mean}
        if self._variance:
            # For a constant channel the ratio of variances is undefined.
            ratio = torch.where((variance > 0) & (found[1] > 0), found[1] / variance, 1.0)
            new["running_var"] = old["running_var"].double() * ratio
        with torch.no_grad():
            for key, value in new.items():
                getattr(module, key).copy_(value)
        return {qualified(name, key): value.to(old[key].dtype) for key, value in new.items()}

    def _note(self, name: str, _module: Any, found: Moments) -> None:
        self._expected.setdefault(name, []).append(found)

    def _run(self, model: nn.Module) -> None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with evaluation(model):
            self._inputs.map(lambda x: x.to(device)).call(model)


@contextmanager
def _watching(
    model: nn.Module,
    biased: Sequence[str],
    norms: Sequence[str],
    see: Callable[[str, Any, Moments], Tensor | None],
) -> Iterator[None]:
    """Call `see` with the moments of layers' outputs and of norms' inputs, inside the block.

    If `see` returns a shift, it is added to the layer's output.
    """

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            see(name, module, _moments(args[0] if args else next(iter(kwargs.values())), 1))

        return hook

    def after(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            axis = output.dim() - 1 if isinstance(module, nn.Linear) else 1
            shift = see(name, module, _moments(output, axis))
            if shift is None:
                return output
            view = [-1 if i == axis else 1 for i in range(output.dim())]
            return output + shift.to(output.dtype).view(view)

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(before(name), with_kwargs=True)
        for name in norms
    ]
    handles += [model.get_submodule(name).register_forward_hook(after(name)) for name in biased]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _moments(values: Tensor, axis: int) -> Moments:
    values = values.detach()
    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    axes = [i for i in range(values.dim()) if i != axis]
    variance, mean = torch.var_mean(values, axes, correction=0)
    return mean.double(), variance.double()
