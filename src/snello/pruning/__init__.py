"""Pruning: the units that are removed, how many of them, and when.

A [`Pruner`][snello.pruning.Pruner] follows the template of Han et al. (2015): train until the loss
stops improving, prune, continue training. [`Plateau`][snello.pruning.Plateau] decides when (PWE,
the number of epochs to wait without improvement), [`LossBound`][snello.pruning.LossBound] how much
(TWT, how much worse the loss may get):

    pruner = Pruner(model, optimizer, evaluate=validation_loss,
                    amount=LossBound(0.05), schedule=Plateau(5))
    for epoch in range(epochs):
        train_one_epoch()
        print(pruner.step())        # evaluates; on a plateau restores the best weights and prunes

Pruned weights stay exactly zero: they are set to zero again after every step of every optimizer, so
that momentum and weight decay cannot change them. Give the pruner all optimizers of the model, in a
list if there are several: it raises an error if one is missing.

Importance, amount and schedule are independent options:

    from snello.pruning import Budget, Cubic, Pruner, Ratio, nonzero_macs, taylor

    # one-shot, a trained network: the neurons with the least effect on the loss, down to 5 M MACs
    pruner = Pruner(model, None, granularity="neuron", importance=taylor(batches),
                    amount=Budget(5e6, nonzero_macs(images)))
    print(pruner.plan())            # the effect on each layer; nothing has changed yet
    pruner.prune()

    # 90 % of the weights of every layer, gradually over 10 epochs
    pruner = Pruner(model, optimizer, scope="layer", amount=Ratio(0.9), schedule=Cubic(over=10))

No layer loses all of its units. Scores are normalised to be comparable across layers
(`normalise`), every layer keeps a minimum ([`LayerLimits`][snello.pruning.LayerLimits]), and
[`QualityBound`][snello.pruning.QualityBound] ends pruning if the accuracy has fallen too far, and
postpones it while the network is at chance:

    guard = QualityBound(accuracy, max_drop=0.02, chance=0.1, samples=5000)
    pruner = Pruner(model, optimizer, validation_loss, quality=guard)

- What, `importance`: "l1", "l2", "han", "bn-scale", "random", [`taylor`][snello.pruning.taylor], or
  the scores of [`lobster_scores`][snello.sensitivity.lobster_scores] and
  [`serene_scores`][snello.sensitivity.serene_scores].
- How much, `amount`: [`LossBound`][snello.pruning.LossBound] (TWT),
  [`Ratio`][snello.pruning.Ratio], [`Budget`][snello.pruning.Budget] of parameters, MACs, latency.
- When, `schedule`: [`Plateau`][snello.pruning.Plateau] (PWE),
  [`OneShot`][snello.pruning.OneShot], [`Cubic`][snello.pruning.Cubic].

[`import_masks`][snello.pruning.import_masks] and [`export_masks`][snello.pruning.export_masks]
exchange masks with `torch.nn.utils.prune`; [`pruning_potential`][snello.pruning.pruning_potential]
measures the curve of quality against the pruned share.

Sources: Han et al., "Learning both weights and connections for efficient neural networks", NeurIPS
2015; Tartaglione et al. (2021, 2022) for PWE and TWT. Unlike the published one, the bisection here
only returns a threshold that was tested.
"""

from ._amount import Amount as Amount
from ._amount import Budget as Budget
from ._amount import LossBound as LossBound
from ._amount import Ratio as Ratio
from ._amount import Trial as Trial
from ._amount import nonzero_parameters as nonzero_parameters
from ._cost import nonzero_macs as nonzero_macs
from ._importance import CALIBRATED as CALIBRATED
from ._importance import IMPORTANCES as IMPORTANCES
from ._importance import Importance as Importance
from ._importance import random as random
from ._importance import taylor as taylor
from ._interchange import export_masks as export_masks
from ._interchange import import_masks as import_masks
from ._limits import LayerLimits as LayerLimits
from ._normalise import Normalise as Normalise
from ._normalise import comparable as comparable
from ._pin import Pin as Pin
from ._pin import pin as pin
from ._pin import unpin as unpin
from ._pin import zero_masks as zero_masks
from ._plan import LayerShare as LayerShare
from ._plan import PrunerStep as PrunerStep
from ._plan import PruningPlan as PruningPlan
from ._plateau import Plateau as Plateau
from ._potential import PotentialPoint as PotentialPoint
from ._potential import potential_point as potential_point
from ._potential import pruning_potential as pruning_potential
from ._pruner import Pruner as Pruner
from ._quality import QualityBound as QualityBound
from ._quality import at_chance as at_chance
from ._schedule import Cubic as Cubic
from ._schedule import OneShot as OneShot
from ._schedule import Schedule as Schedule
from ._threshold import ThresholdSearch as ThresholdSearch
from ._threshold import search_threshold as search_threshold

__all__ = [
    "IMPORTANCES", "Amount", "Budget", "Cubic", "Importance", "LayerLimits", "LayerShare",
    "LossBound", "Normalise", "OneShot", "Pin", "Plateau", "PotentialPoint", "Pruner", "PrunerStep",
    "PruningPlan", "QualityBound", "Ratio", "Schedule", "ThresholdSearch", "Trial", "at_chance",
    "comparable", "export_masks", "import_masks", "nonzero_macs", "nonzero_parameters", "pin",
    "potential_point", "pruning_potential", "random", "search_threshold", "taylor", "unpin",
    "zero_masks",
]  # fmt: skip
