"""Sensitivity of the outputs or of the loss, and weight decay by sensitivity.

Weights with little influence on the outputs or the loss are driven towards zero during training.
Each method measures a sensitivity S and, after every optimizer step, shrinks the weights by their
*insensitivity* `max(0, 1 - S)`:

    w  <-  w - lmbda * w * max(0, 1 - S)

so that important weights keep their value and unimportant ones decay geometrically. All methods
share one protocol, which fits any training loop:

    serene = SeReNe(model, lmbda=1e-4)
    for inputs, targets in loader:
        outputs = model(inputs)
        serene.observe(outputs)              # before backward: needs the graph of the outputs
        optimizer.zero_grad()
        loss_function(outputs, targets).backward()
        optimizer.step()
        serene.step()                        # the decay

`lmbda` is not multiplied by the learning rate.

- [`Lobster`][snello.sensitivity.Lobster]: of the loss to a weight. It uses the gradients of
  training and costs no further pass.
- [`SeReNe`][snello.sensitivity.SeReNe]: of the outputs to a neuron. It costs a pass without weight
  gradients, every fourth step (C passes for `"full"`).
- [`OutputSensitivity`][snello.sensitivity.OutputSensitivity]: of the outputs to a weight. It costs
  a backward pass, every fourth step (C passes for `"full"`).

With a gradient scaler, call `scaler.step(optimizer)` before `step()`. With gradient
accumulation, observe every batch and step once; observe the outputs of each forward pass before the
next one. With `torch.utils.checkpoint`, use `use_reentrant=False`, which keeps the layers in the
graph. With DistributedDataParallel, call the methods on every process: they measure the joined
batch.

[`GroupDecay`][snello.sensitivity.GroupDecay] has one sensitivity for all slices that write a
channel, so that layers that can only be narrowed together (on a residual stream) lose the same
channels.

[`lobster_scores`][snello.sensitivity.lobster_scores] and
[`serene_scores`][snello.sensitivity.serene_scores] measure a *trained* network on calibration data,
for one-shot pruning.

Sources: Tartaglione et al., "Learning sparse neural networks via sensitivity-driven
regularization", NeurIPS 2018: [`OutputSensitivity`][snello.sensitivity.OutputSensitivity].
"Loss-based sensitivity regularization: towards deep sparse neural networks", Neural Networks
(2022): [`Lobster`][snello.sensitivity.Lobster]. "SeReNe: Sensitivity-based regularization of
neurons for structured sparsity in neural networks", IEEE TNNLS (2021):
[`SeReNe`][snello.sensitivity.SeReNe].
"""

from ._decay import Sensitivity as Sensitivity
from ._groups import GroupDecay as GroupDecay
from ._lobster import Lobster as Lobster
from ._output import OutputSensitivity as OutputSensitivity
from ._scores import lobster_scores as lobster_scores
from ._scores import serene_scores as serene_scores
from ._serene import SeReNe as SeReNe

__all__ = [
    "GroupDecay", "Lobster", "OutputSensitivity", "SeReNe", "Sensitivity", "lobster_scores",
    "serene_scores",
]  # fmt: skip
