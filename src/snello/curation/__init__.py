"""Training on a part of the samples, chosen in every epoch or once before training.

*Dynamic*: [`InfoBatch`][snello.curation.InfoBatch], [`OrderDP`][snello.curation.OrderDP] and
[`RandomSubset`][snello.curation.RandomSubset] leave out other samples in every epoch. Each is a
dataset around yours and makes the sampler for it, also around your own.

>>> import torch
>>> from torch.utils.data import DataLoader, TensorDataset
>>> from snello.curation import InfoBatch
>>> _ = torch.manual_seed(0)
>>> data = TensorDataset(torch.randn(512, 8), torch.randint(4, (512,)))
>>> model = torch.nn.Linear(8, 4)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> keep = InfoBatch(data, ratio=0.5, epochs=8)
>>> loader = DataLoader(keep, batch_size=64, sampler=keep.sampler())
>>> for epoch in range(8):
...     for (x, y), index in loader:
...         losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
...         loss = keep.weigh(losses, index)
...         optimizer.zero_grad()
...         loss.backward()
...         optimizer.step()
>>> keep.kept < 0.9                        # share of the samples that were trained on
True

The choice is a function of the seed, the epoch and the losses: nothing is patched, no global random
state is touched, `state_dict` resumes it, and several processes (DDP) get equal batches without a
common sample. A learning rate follows `keep.moment`, which counts the real steps.

*Static*: a [`Recorder`][snello.curation.Recorder] notes what a network gives to every sample during
one training; [`el2n`][snello.curation.el2n], [`forgetting`][snello.curation.forgetting],
[`aum`][snello.curation.aum], [`dual`][snello.curation.dual] and [`noise`][snello.curation.noise]
are scores of that recording; [`keep_highest`][snello.curation.keep_highest],
[`keep_covering`][snello.curation.keep_covering] (CCS), [`keep_dual`][snello.curation.keep_dual] and
[`keep_random`][snello.curation.keep_random] make a [`Kept`][snello.curation.Kept] of it: an index
file, with the cost of scoring. [`near_duplicates`][snello.curation.near_duplicates] compares
features.

Not here: methods that need embeddings or gradients of single samples (D2, Moderate, GraNd), which
gain nothing over these at ratios up to 70 %, and TDDS, whose parameters are tuned per ratio.
"""

from ._duplicates import near_duplicates as near_duplicates
from ._dynamic import DynamicSubset as DynamicSubset
from ._infobatch import InfoBatch as InfoBatch
from ._kept import Kept as Kept
from ._orderdp import OrderDP as OrderDP
from ._random import RandomSubset as RandomSubset
from ._recorder import Recorder as Recorder
from ._recorder import Recording as Recording
from ._samplers import SubsetBatchSampler as SubsetBatchSampler
from ._samplers import SubsetSampler as SubsetSampler
from ._select import keep_covering as keep_covering
from ._select import keep_dual as keep_dual
from ._select import keep_highest as keep_highest
from ._select import keep_random as keep_random
from ._static import aum as aum
from ._static import dual as dual
from ._static import el2n as el2n
from ._static import forgetting as forgetting
from ._static import noise as noise

__all__ = [
    "DynamicSubset", "InfoBatch", "Kept", "OrderDP", "RandomSubset", "Recorder", "Recording",
    "SubsetBatchSampler", "SubsetSampler", "aum", "dual", "el2n", "forgetting", "keep_covering",
    "keep_dual", "keep_highest", "keep_random", "near_duplicates", "noise",
]  # fmt: skip
