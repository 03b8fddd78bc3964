"""Recovery of the accuracy after pruning, before and during fine-tuning.

None of the three steps needs labels; the first two need no gradients either::

    reconstruct(pruned, dense, batches)      # least squares for each layer, for removed inputs
    recalibrate(pruned, batches)             # BatchNorm statistics of the pruned network
    loss = distillation(outputs, teacher(inputs), temperature=4)    # while fine-tuning

Weights that are exactly zero stay zero in the first two.

Sources: He, Zhang and Sun, "Channel pruning for accelerating very deep neural networks", ICCV 2017
(least squares); Li et al., "EagleEye: fast sub-net evaluation for efficient neural network
pruning", ECCV 2020 (statistics); Hinton, Vinyals and Dean, "Distilling the knowledge in a neural
network", 2015; Zagoruyko and Komodakis, "Paying more attention to attention", ICLR 2017 (features).
"""

from ._distil import FeatureDistillation as FeatureDistillation
from ._distil import distillation as distillation
from ._recalibrate import recalibrate as recalibrate
from ._reconstruct import Reconstruction as Reconstruction
from ._reconstruct import reconstruct as reconstruct

__all__ = ["FeatureDistillation", "Reconstruction", "distillation", "recalibrate", "reconstruct"]
