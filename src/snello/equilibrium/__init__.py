"""Which neurons still learn? The others skip their part of the backward pass.

A neuron is at *equilibrium* when its answers on a fixed probe set have stopped changing: the similarity phi
of its outputs at consecutive epochs has (almost) no velocity any more. Until it moves again it gets no weight
gradient, and the optimizer leaves its weights exactly where they are. The gradient of the input is always
exact, so all other neurons train as ever.

>>> import torch
>>> from torch import nn
>>> from snello.equilibrium import NEq
>>> _ = torch.manual_seed(0)
>>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
>>> x, y = torch.randn(64, 1, 8, 8), torch.randint(10, (64,))
>>> neq = NEq(model, optimizer, probe=x[:16])           # before training: the first reference
>>> for epoch in range(5):
...     for inputs, targets in zip(x.split(16), y.split(16)):
...         optimizer.zero_grad()
...         nn.functional.cross_entropy(model(inputs), targets).backward()
...         optimizer.step()
...     decided = neq.step()                            # once an epoch
>>> decided.epoch, decided.flops <= decided.dense_flops
(5, True)
>>> neq.remove()                                        # a plain model and a plain optimizer again

Freezing saves weight gradients, which are one of the two halves of a backward pass; ``decided.flops`` follows
the paper's convention, :func:`backward_flops` counts what is executed, :func:`time_backward` measures it.
The random baseline is ``SelectiveUpdate(model, optimizer, probe, Stochastic(p=0.5))``.

Eager mode in one process; ``torch.compile``, activation checkpointing and DDP are not supported yet.

Source: Bragagnolo, Tartaglione, Grangetto, "To update or not to update? Neurons at equilibrium in deep
models", NeurIPS 2022, https://arxiv.org/abs/2207.09455
"""

from snello.equilibrium._flops import BackwardFlops as BackwardFlops
from snello.equilibrium._flops import backward_flops as backward_flops
from snello.equilibrium._neq import EquilibriumStep as EquilibriumStep
from snello.equilibrium._neq import NEq as NEq
from snello.equilibrium._neq import SelectiveUpdate as SelectiveUpdate
from snello.equilibrium._probe import similarity as similarity
from snello.equilibrium._selection import Selection as Selection
from snello.equilibrium._selection import Stochastic as Stochastic
from snello.equilibrium._selection import Velocity as Velocity
from snello.equilibrium._timing import BackwardTiming as BackwardTiming
from snello.equilibrium._timing import time_backward as time_backward
