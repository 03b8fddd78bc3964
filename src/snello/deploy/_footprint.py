"""Counts of a model: parameters, operations, bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from snello.errors import ModelError
from snello.flops import counted
from snello.graph import Example, evaluation, positional
from snello.neurons import count_parameters, dead_neurons, weighted_layers
from snello.wrappers import check_values

from ._verify import shapes


@dataclass(frozen=True)
class Footprint:
    """Counts of a model or a file.

    Attributes:
        parameters: number of parameters, tied ones counted once.
        nonzeros: number of non-zero parameters.
        dead_neurons: neurons of Linear and convolution layers whose incoming weights are all zero.
        macs: multiply-accumulate operations of one sample's forward pass, without normalisation
            layers and activations (as torch counts: ResNet-18 at 224² has 1.814 G).
        bytes: size of parameters and buffers in float32 (integers in their own dtype), tied ones
            counted once.
    """

    parameters: int
    nonzeros: int
    dead_neurons: int
    macs: int
    bytes: int


def model_footprint(model: nn.Module, example_inputs: Example) -> Footprint:
    """Count the parameters, operations and bytes of a model.

    Args:
        model: any module; its mode is restored.
        example_inputs: positional inputs with the batch on dimension 0; only one sample is run.

    Raises:
        ModelError: if the model does not run on the inputs.
    """
    check_values(model, "footprint")
    parameters, nonzeros = count_parameters(model)
    return Footprint(
        parameters=parameters,
        nonzeros=nonzeros,
        dead_neurons=sum(
            int(dead_neurons(layer).sum()) for layer in weighted_layers(model).values()
        ),
        macs=model_macs(model, example_inputs),
        bytes=state_bytes(model.state_dict(keep_vars=True).values()),
    )


def model_macs(model: nn.Module, example_inputs: Example) -> int:
    """Multiply-accumulate operations of one sample, in evaluation mode."""
    called, inputs = positional(model, example_inputs)
    with evaluation(model):
        return macs_of(called, inputs, type(model).__name__)


def macs_of(model: nn.Module, inputs: tuple[Tensor, ...], name: str) -> int:
    """Multiply-accumulate operations of one sample.

    Args:
        model: the model, in the mode in which it runs.
        inputs: its inputs with the batch on dimension 0.
        name: its name, for messages.

    Raises:
        ModelError: if it does not run on one sample.
    """
    sample = tuple(x[:1] for x in inputs)
    try:
        with counted(model) as counter:
            model(*sample)
    except Exception as error:  # the model's own code may raise any exception
        raise ModelError(
            f"{name} does not run on one sample of shape {shapes(sample)}: {error}"
        ) from error
    return counter.get_total_flops() // 2


def state_bytes(state: Iterable[object]) -> int:
    """Size of a `state_dict` in bytes: floating-point tensors in float32, tied ones once.

    Args:
        state: values of `state_dict(keep_vars=True)`, in which tied tensors are the same object.
    """
    tensors = {id(t): t for t in state if isinstance(t, Tensor)}
    return sum(
        t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in tensors.values()
    )
