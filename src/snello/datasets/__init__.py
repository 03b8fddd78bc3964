"""Image classification data, decoded once into memory, cut into training, validation and test parts.

Thresholds are chosen on the validation part and accuracy is reported on the test part, so the two never
share an image: the test part is the dataset's own and depends on nothing, the validation part is cut from the
training part, class by class, by a seed. Batches are normalised by the training part's mean and deviation.

>>> from snello.datasets import load, loader
>>> splits = load("digits", validation=0.1, seed=0)
>>> splits.input_shape, len(splits.classes)
((1, 8, 8), 10)
>>> batches = loader(splits.train, splits, batch_size=32, shuffle=True, seed=0)
>>> images, labels = next(iter(batches))
>>> images.shape, labels.dtype
(torch.Size([32, 1, 8, 8]), torch.int64)

The order of a shuffled loader and its augmentation are functions of the seed and of the epoch given to
``batches.sampler.set_epoch(epoch)``, never of the global random state: a resumed run sees the same batches.

Sources: digits, scikit-learn's copy of the UCI optical digits; MNIST, LeCun et al., 1998; CIFAR-10,
Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the crop-flip augmentation, He et
al., "Deep residual learning for image recognition", 2016, section 4.2.
"""

from snello.datasets._batches import loader as loader
from snello.datasets._load import available as available
from snello.datasets._load import load as load
from snello.datasets._types import DataSplits as DataSplits
from snello.datasets._types import Images as Images

__all__ = ["DataSplits", "Images", "available", "load", "loader"]
