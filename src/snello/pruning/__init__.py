"""Pruning: what goes, and when.

A :class:`Pruner` follows the template of Han et al. (2015): train until the loss stops improving, prune,
train on. *When* is decided by PWE, the number of bad epochs to wait on a plateau; *how much* by TWT, how
much worse the loss may get::

    pruner = Pruner(model, optimizer, evaluate=validation_loss, granularity="weight", twt=0.05, pwe=5)
    for epoch in range(epochs):
        train_one_epoch()
        print(pruner.step())        # evaluates; on a plateau restores the best weights and prunes

What was pruned stays exactly zero: a hook on the optimizer sets it to zero again after every step, so that
momentum and weight decay cannot revive it.

Sources: Han et al., "Learning both weights and connections for efficient neural networks", NeurIPS 2015;
Tartaglione et al. (2021, 2022) for PWE and TWT; the bisection here returns a threshold that was tested.
"""

from ._pin import pin as pin
from ._plateau import Plateau as Plateau
from ._pruner import Pruner as Pruner
from ._pruner import PrunerStep as PrunerStep
from ._threshold import ThresholdSearch as ThresholdSearch
from ._threshold import search_threshold as search_threshold

__all__ = ["Plateau", "Pruner", "PrunerStep", "ThresholdSearch", "pin", "search_threshold"]
