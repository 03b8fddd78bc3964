"""Datasets of images, in memory or streamed from their files, in three parts.

Thresholds are chosen on the validation part and accuracy is reported on the test part, so the two
never share an image: the test part is the dataset's own and depends on nothing, the validation part
is cut from the training part by a seed (class by class where every image has one).

>>> from snello.lab.datasets import load_dataset, loader
>>> splits = load_dataset("digits", validation=0.1, seed=0)
>>> splits.task, splits.input_shape, len(splits.classes)
('classification', (1, 8, 8), 10)
>>> batches = loader(splits.train, splits, batch_size=32, shuffle=True, seed=0)
>>> images, labels = next(iter(batches))
>>> images.shape, labels.dtype
(torch.Size([32, 1, 8, 8]), torch.int64)

Small sets (digits, MNIST, CIFAR) are decoded once: :class:`DataSplits` with :class:`Images`.
ImageNet, COCO and large folders are streamed: :class:`StreamedSplits` with :class:`StreamedImages`,
decoded and augmented by worker processes. Both have
``name, train, validation, test, classes, mean, std, source, task, input_shape``, and one call makes
batches of either::

    loader(part, splits, batch_size, shuffle=, seed=, augment=, limit=, replicas=, rank=, workers=)

A batch is (float32 ``(B, C, H, W)``, int64 ``(B,)``), or for the task ``"segmentation"`` (float32
``(B, 3, H, W)``, int64 ``(B, H, W)``), where 255 marks a pixel without a class.
``augment="crop-flip"`` is the random crop and mirror that goes with the set: 4 padded pixels in
memory, a crop of random area and aspect for streamed classification, a random scale and crop for
segmentation. ``"none"`` is the evaluation's view.

The order of a shuffled loader and its augmentation are functions of the seed, of the epoch given to
``batches.sampler.set_epoch(epoch)`` and of the image: not of the global random state, the batch
size, the worker processes or the replicas. A resumed run sees the same batches.

Sources: digits, scikit-learn's copy of the UCI optical digits; MNIST, LeCun et al., 1998; CIFAR-10,
Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the crop-flip
augmentation, He et al., "Deep residual learning for image recognition", 2016, section 4.2.
"""

from ._batches import loader as loader
from ._load import FIXED_SIZE as FIXED_SIZE
from ._load import dataset_names as dataset_names
from ._load import load_dataset as load_dataset
from ._types import DataSplits as DataSplits
from ._types import Images as Images
from ._types import Part as Part
from ._types import Splits as Splits
from ._types import StreamedImages as StreamedImages
from ._types import StreamedSplits as StreamedSplits

# Other names are for the packages of snello.
__all__ = [
    "DataSplits", "Images", "Splits", "StreamedImages", "StreamedSplits", "dataset_names",
    "load_dataset", "loader",
]  # fmt: skip
