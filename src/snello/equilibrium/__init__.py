"""NEq: no weight gradients for neurons whose outputs have stopped changing.

A neuron is at *equilibrium* if its outputs on a fixed probe set have stopped changing: phi, the
similarity of its outputs at consecutive epochs, has a velocity close to zero. At equilibrium it
gets no weight gradient, and its weights are kept exactly as they are through optimizer steps. The
gradient of the input is always exact, so that all other neurons train as usual.

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

Selections: [`Velocity`][snello.equilibrium.Velocity] is NEq's rule, in the paper's form or as the
authors' code computes it. Its baselines are [`Stochastic`][snello.equilibrium.Stochastic] (random
neurons), [`MatchedStochastic`][snello.equilibrium.MatchedStochastic] (as many random neurons as NEq
froze: the paper's Stochastic*) and [`Prefix`][snello.equilibrium.Prefix] (whole layers from the
input on, with [`FreezeOut`][snello.equilibrium.FreezeOut]'s timetable).
[`GradientChange`][snello.equilibrium.GradientChange] (AutoFreeze),
[`Plasticity`][snello.equilibrium.Plasticity] (Egeria) and
[`StableCKA`][snello.equilibrium.StableCKA] judge whole layers, and
[`Settled`][snello.equilibrium.Settled] lets layers rest from the input on by any of these rules.
[`ParameterBudget`][snello.equilibrium.ParameterBudget] updates a fixed number of parameters, those
with most velocity, and [`TimeBudget`][snello.equilibrium.TimeBudget] lets layers rest until a step
takes at most some milliseconds. All are arguments of [`SelectiveUpdate`][snello.equilibrium.SelectiveUpdate];
[`NEq`][snello.equilibrium.NEq] is the one with [`Velocity`][snello.equilibrium.Velocity].

Cost: freezing saves weight gradients, which are about half of a backward pass. `decided.flops`
follows the paper's convention, [`step_flops`][snello.equilibrium.step_flops] counts the FLOPs
executed, [`time_step`][snello.equilibrium.time_step] measures times,
[`step_memory`][snello.equilibrium.step_memory] the memory that autograd takes, and
[`measure_cost`][snello.equilibrium.measure_cost] all of them.

Source: Bragagnolo, Tartaglione, Grangetto, "To update or not to update? Neurons at equilibrium in
deep models", NeurIPS 2022, https://arxiv.org/abs/2207.09455
"""

from ._baselines import FreezeOut as FreezeOut
from ._baselines import MatchedStochastic as MatchedStochastic
from ._baselines import ParameterBudget as ParameterBudget
from ._baselines import Prefix as Prefix
from ._baselines import Stochastic as Stochastic
from ._cache import FeatureCache as FeatureCache
from ._cost import UpdateCost as UpdateCost
from ._cost import measure_cost as measure_cost
from ._flops import BackwardFlops as BackwardFlops
from ._flops import StepFlops as StepFlops
from ._flops import backward_flops as backward_flops
from ._flops import step_flops as step_flops
from ._gradient_change import GradientChange as GradientChange
from ._memory import StepMemory as StepMemory
from ._memory import step_memory as step_memory
from ._neq import NEq as NEq
from ._neq import SelectiveUpdate as SelectiveUpdate
from ._neve import NeVe as NeVe
from ._neve import VelocityStep as VelocityStep
from ._probe import similarity as similarity
from ._records import EquilibriumStep as EquilibriumStep
from ._representations import Plasticity as Plasticity
from ._representations import StableCKA as StableCKA
from ._selection import Selection as Selection
from ._selection import Velocity as Velocity
from ._selection import WatchedLayer as WatchedLayer
from ._settled import Settled as Settled
from ._sketch import sketch as sketch
from ._time_budget import StepTimes as StepTimes
from ._time_budget import TimeBudget as TimeBudget
from ._timing import BackwardTiming as BackwardTiming
from ._timing import PhaseTiming as PhaseTiming
from ._timing import StepTiming as StepTiming
from ._timing import time_backward as time_backward
from ._timing import time_step as time_step

# Other names are for the packages of snello.
__all__ = [
    "EquilibriumStep", "FeatureCache", "FreezeOut", "GradientChange", "MatchedStochastic", "NEq", "NeVe",
    "ParameterBudget", "Plasticity", "Prefix", "Selection", "SelectiveUpdate", "Settled", "StableCKA",
    "Stochastic", "TimeBudget", "UpdateCost", "Velocity",
    "WatchedLayer",
    "backward_flops", "measure_cost", "similarity", "sketch", "step_flops", "step_memory",
    "time_backward", "time_step",
]  # fmt: skip
