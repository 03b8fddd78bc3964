"""Outputs of all neurons on a fixed probe set, and the similarity of two such outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError, check_count, check_option
from snello.graph import Example, Inputs, evaluation
from snello.wrappers import eagerly, unfused_layers

from ._sketch import sketch
from ._uses import WeightUses

Read = Callable[[str, tuple[Any, ...], Tensor], None]


class Probe:
    """The fixed inputs on which the neurons' outputs are compared, epoch after epoch.

    Args:
        model: the model; its mode, BatchNorm statistics and the random generators are restored.
        inputs: one input tensor, or the model's arguments as a tuple or by name.
        positions: number of spatial positions of every output to keep, see
            [`sketch`][snello.equilibrium.sketch]; None for all.

    Attributes:
        lent: names of layers that are read where a module uses their weights without calling them.

    Raises:
        ConfigError: for an empty probe, or fewer than one position.
    """

    def __init__(self, model: nn.Module, inputs: Example, positions: int | None = None) -> None:
        self.model, self.positions = model, positions
        self.lent: Collection[str] = ()
        self.inputs = Inputs.of(inputs)
        if positions is not None:
            check_count("positions", positions, "; None keeps all of them")
        first = next(iter(self.inputs.tensors()), None)
        if first is None or first.dim() == 0 or not len(first):
            raise ConfigError("probe: needs at least one sample; give a batch of training inputs")

    @property
    def samples(self) -> int:
        """Number of probe samples."""
        return self.inputs.samples

    def outputs(self, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Outputs of the layers, before any activation, of one forward in evaluation mode.

        Returns:
            Layer name -> shape `(samples, channels, positions)`; the calls of a shared layer
            are concatenated along the samples and padded with zeros to the same number of
            positions, which changes no cosine. A layer that the forward never calls as a module
            is missing, except those in `lent`.
        """
        found: dict[str, list[Tensor]] = {}

        def keep(name: str, _inputs: tuple[Any, ...], output: Tensor) -> None:
            answers = by_channel(layers[name], output)
            # A copy, because an in-place activation may overwrite the output.
            kept = answers.clone() if self.positions is None else sketch(answers, self.positions)
            found.setdefault(name, []).append(kept)

        self.read(layers, keep)
        return {name: _joined(calls) for name, calls in found.items()}

    def read(self, layers: Mapping[str, nn.Module], read: Read) -> None:
        """Run the probe once and call `read(name, inputs, output)` at every call of a layer.

        Raises:
            ModelError: if the model does not run on the probe inputs.
        """
        with ExitStack() as stack:
            stack.enter_context(_evaluation(self.model))
            for name, layer in layers.items():
                handle = layer.register_forward_hook(
                    lambda _m, inputs, output, name=name: read(name, inputs, output)
                )
                stack.callback(handle.remove)
            if lent := {name: layers[name] for name in self.lent if name in layers}:
                stack.enter_context(
                    WeightUses(lent, lambda use: read(use.layer, (use.x,), use.output))
                )
            try:
                self.inputs.call(self.model)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                shapes = ", ".join(f"{tuple(x.shape)} on {x.device}" for x in self.inputs.tensors())
                raise ModelError(
                    f"the model does not run on the probe inputs of shape {shapes}: {error}"
                ) from error


def _joined(calls: list[Tensor]) -> Tensor:
    if len(calls) == 1:
        return calls[0]
    positions = max(call.shape[2] for call in calls)
    return torch.cat([F.pad(call, (0, positions - call.shape[2])) for call in calls])


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, full precision; all of it is restored afterwards."""
    devices = {p.device for p in model.parameters()}
    accelerated = sorted(d.index or 0 for d in devices if d.type == "cuda")
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=accelerated))
        stack.enter_context(evaluation(model))
        stack.enter_context(eagerly())
        for kind in sorted({d.type for d in devices if torch.amp.is_autocast_available(d.type)}):
            # The precision of phi must not depend on whether step() is called under autocast.
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(unfused_layers())
        yield


def by_channel(module: nn.Module, output: Tensor) -> Tensor:
    """A layer's output as `(samples, channels, positions)`.

    Linear and LayerNorm have their channels last, `(B, *positions, F)`; convolutions and
    BatchNorm second, `(B, C, *positions)`. An output without positions gets one.
    """
    if isinstance(module, (nn.Linear, nn.LayerNorm)):
        own = 1 if isinstance(module, nn.Linear) else len(module.normalized_shape)
        flat = output.flatten(-own) if own > 1 else output
        if flat.dim() == 1:
            flat = flat.unsqueeze(0)
        return flat.reshape(flat.shape[0], -1, flat.shape[-1]).transpose(1, 2)
    weight: Tensor = module.weight  # type: ignore[assignment]
    if output.dim() == weight.dim() - 1:
        output = output.unsqueeze(0)  # a convolution without a batch dimension
    return output.reshape(output.shape[0], output.shape[1], -1)


def similarity(now: Tensor, before: Tensor) -> Tensor:
    r"""Similarity of each neuron's outputs at two times: $\varphi$ of the paper.

    Cosine over positions per sample and channel, then the mean over samples. Where both outputs are
    zero everywhere, the cosine counts as 1; where only one is, as 0.

    Args:
        now: outputs, shape `(samples, channels, positions)`.
        before: outputs of the same probe one epoch earlier, same shape.

    Returns:
        Shape `(channels,)` in [-1, 1] up to rounding, at least in float32.

    Raises:
        ConfigError: for outputs of different shapes.
    """
    check_option(
        now.shape == before.shape,
        f"similarity: outputs of shape {tuple(now.shape)} and {tuple(before.shape)}; compare outputs on the same "
        "samples and positions",
    )
    dtype = torch.promote_types(now.dtype, torch.float32)
    now, before = _unit(now.to(dtype)), _unit(before.to(device=now.device, dtype=dtype))
    cosine = (now * before).sum(dim=2)
    both_zero = (now == 0).all(dim=2) & (before == 0).all(dim=2)
    return cosine.masked_fill(both_zero, 1.0).mean(dim=0)


def _unit(outputs: Tensor) -> Tensor:
    """Scale each channel to length one; channels of zeros stay zero."""
    # Divide by the largest entry first, so that squares neither overflow nor underflow.
    peak = outputs.abs().amax(dim=2, keepdim=True)
    scaled = outputs / torch.where(peak == 0, 1, peak)
    length = torch.linalg.vector_norm(scaled, dim=2, keepdim=True)
    return scaled / torch.where(length == 0, 1, length)
