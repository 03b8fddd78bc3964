"""Sensitivity: how much does the output, or the loss, care?

Weights that nobody would miss are driven towards zero while the network trains. Each method measures a
sensitivity S, bounds it as an *insensitivity* ``max(0, 1 - S)``, and after every optimizer step shrinks

    w  <-  w - lmbda * w * max(0, 1 - S)

so that what matters keeps its value and what does not decays geometrically. All methods share one protocol,
in anyone's training loop::

    serene = SeReNe(model, lmbda=1e-4)
    for inputs, targets in loader:
        outputs = model(inputs)
        serene.observe(outputs)              # before backward: looks at the graph of the outputs
        optimizer.zero_grad()
        loss_function(outputs, targets).backward()
        optimizer.step()
        serene.step()                        # the decay

``lmbda`` is not multiplied by the learning rate.

Sources: Tartaglione et al., "Loss-based sensitivity regularization: towards deep sparse neural networks",
Neural Networks (2022): :class:`Lobster`. Tartaglione et al., "SeReNe: Sensitivity-based regularization of
neurons for structured sparsity in neural networks", IEEE TNNLS (2021): :class:`SeReNe`.
"""

from ._decay import Sensitivity as Sensitivity
from ._lobster import Lobster as Lobster
from ._serene import SeReNe as SeReNe

__all__ = ["Lobster", "SeReNe", "Sensitivity"]
