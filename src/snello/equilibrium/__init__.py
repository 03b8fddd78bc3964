"""Which neurons still learn? The others skip their part of the backward pass.

A neuron is at *equilibrium* when its answers on a fixed probe set have stopped changing: the
similarity phi of its outputs at consecutive epochs has (almost) no velocity any more. Until it
moves again it gets no weight gradient, and the optimizer leaves its weights exactly where they are.
The gradient of the input is always exact, so all other neurons train as ever.

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
...     decided = neq.step()                            # once an epoch, or every n iterations
>>> decided.step, decided.flops <= decided.dense_flops
(5, True)
>>> neq.remove()                                        # a plain model and a plain optimizer again

Selections: :class:`Velocity` is NEq's rule, in the paper's form or as the authors' code computes
it. Its baselines are :class:`Stochastic`, :class:`MatchedStochastic` (Stochastic*, as many neurons
as NEq froze) and :class:`Prefix` (whole layers from the input on, :class:`FreezeOut`'s timetable).
:class:`Budget` lets a fixed number of parameters learn, those with most velocity. All go into
``SelectiveUpdate(model, optimizer, probe, selection)``; :class:`NEq` is the one with
:class:`Velocity`.

Cost: freezing saves weight gradients, which are one of the two halves of a backward pass.
``decided.flops`` follows the paper's convention, :func:`step_flops` counts what is executed,
:func:`time_step` measures it, :func:`step_memory` sees what autograd saves, and
:func:`measure_cost` does all of it.

Source: Bragagnolo, Tartaglione, Grangetto, "To update or not to update? Neurons at equilibrium in
deep models", NeurIPS 2022, https://arxiv.org/abs/2207.09455
"""

from snello.equilibrium._baselines import Budget as Budget
from snello.equilibrium._baselines import FreezeOut as FreezeOut
from snello.equilibrium._baselines import MatchedStochastic as MatchedStochastic
from snello.equilibrium._baselines import Prefix as Prefix
from snello.equilibrium._baselines import Stochastic as Stochastic
from snello.equilibrium._cache import CacheStatus as CacheStatus
from snello.equilibrium._cache import FeatureCache as FeatureCache
from snello.equilibrium._cost import UpdateCost as UpdateCost
from snello.equilibrium._cost import measure_cost as measure_cost
from snello.equilibrium._flops import BackwardFlops as BackwardFlops
from snello.equilibrium._flops import StepFlops as StepFlops
from snello.equilibrium._flops import backward_flops as backward_flops
from snello.equilibrium._flops import step_flops as step_flops
from snello.equilibrium._memory import StepMemory as StepMemory
from snello.equilibrium._memory import step_memory as step_memory
from snello.equilibrium._neq import NEq as NEq
from snello.equilibrium._neq import SelectiveUpdate as SelectiveUpdate
from snello.equilibrium._probe import similarity as similarity
from snello.equilibrium._records import EquilibriumStep as EquilibriumStep
from snello.equilibrium._selection import Selection as Selection
from snello.equilibrium._selection import Velocity as Velocity
from snello.equilibrium._selection import WatchedLayer as WatchedLayer
from snello.equilibrium._settled import Settled as Settled
from snello.equilibrium._sketch import sketch as sketch
from snello.equilibrium._timing import BackwardTiming as BackwardTiming
from snello.equilibrium._timing import PhaseTiming as PhaseTiming
from snello.equilibrium._timing import StepTiming as StepTiming
from snello.equilibrium._timing import time_backward as time_backward
from snello.equilibrium._timing import time_step as time_step
