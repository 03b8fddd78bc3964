"""Recovery of the accuracy after pruning, before and during fine-tuning.

None of the steps needs labels, and only the last one needs gradients:

    reconstruct(pruned, dense, batches)      # least squares for each layer, for removed inputs
    correct_biases(pruned, dense, batches)   # or, cheaper: only the means, through the biases
    recalibrate(pruned, batches)             # BatchNorm statistics of the pruned network
    loss = distillation(outputs, teacher(inputs), temperature=4)    # while fine-tuning

Weights that are exactly zero stay zero, in distillation if a pruner or a pin keeps them.

Sources: He, Zhang and Sun, "Channel pruning for accelerating very deep neural networks", ICCV 2017
(least squares); Li et al., "EagleEye: fast sub-net evaluation for efficient neural network
pruning", ECCV 2020 (statistics); Nagel et al., "Data-free quantization through weight equalization
and bias correction", ICCV 2019 (biases); Hinton, Vinyals and Dean, "Distilling the knowledge in a
neural network", 2015; Zagoruyko and Komodakis, "Paying more attention to attention", ICLR 2017
(features).
"""

from ._biases import correct_biases as correct_biases
from ._distil import FeatureDistillation as FeatureDistillation
from ._distil import distillation as distillation
from ._recalibrate import recalibrate as recalibrate
from ._reconstruct import Reconstruction as Reconstruction
from ._reconstruct import reconstruct as reconstruct

__all__ = [
    "FeatureDistillation",
    "Reconstruction",
    "correct_biases",
    "distillation",
    "recalibrate",
    "reconstruct",
]
