"""Image datasets, in memory or streamed from files, split into three parts.

Thresholds are chosen on the validation part and accuracy is reported on the test part, so the two
never share an image. The test part is the dataset's own and does not depend on the seed; the
validation part is a random subset of the training part, stratified by class for classification.

>>> from snello.lab.datasets import load_dataset, loader
>>> splits = load_dataset("digits", validation=0.1, seed=0)
>>> splits.task, splits.input_shape, len(splits.classes)
('classification', (1, 8, 8), 10)
>>> batches = loader(splits.train, splits, batch_size=32, shuffle=True, seed=0)
>>> images, labels = next(iter(batches))
>>> images.shape, labels.dtype
(torch.Size([32, 1, 8, 8]), torch.int64)

Small datasets (digits, MNIST, CIFAR) are decoded once into memory:
[`DataSplits`][snello.lab.datasets.DataSplits] with [`Images`][snello.lab.datasets.Images].
ImageNet, COCO and large folders are streamed:
[`StreamedSplits`][snello.lab.datasets.StreamedSplits] with
[`StreamedImages`][snello.lab.datasets.StreamedImages], decoded and augmented by worker processes.
Both have the attributes
`name, train, validation, test, classes, mean, std, source, task, input_shape`, and the same
function builds a data loader for either:

    loader(part, splits, batch_size, shuffle=, seed=, augment=, limit=, replicas=, rank=, workers=)

A batch is (float32 `(B, C, H, W)`, int64 `(B,)`), or for the task `"segmentation"` (float32
`(B, 3, H, W)`, int64 `(B, H, W)`), where 255 marks pixels without a class.
`augment="crop-flip"` is random cropping and horizontal flipping: with 4 pixels of padding for
datasets in memory, with random area and aspect ratio for streamed classification, with a random
scale for segmentation. `"none"` applies the evaluation transforms.

The order of a shuffled loader and its augmentation depend only on the seed, on the epoch passed to
`batches.sampler.set_epoch(epoch)` and on the image, not on the global random state, the batch
size, the number of workers or the number of replicas. A resumed run gets the same batches.

Sources: digits, scikit-learn's copy of the UCI optical digits; MNIST, LeCun et al., 1998; CIFAR-10,
Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the crop-flip
augmentation, He et al., "Deep residual learning for image recognition", 2016, section 4.2.
"""

from ._batches import loader as loader
from ._load import FIXED_SIZE as FIXED_SIZE
from ._load import WITH_PATH as WITH_PATH
from ._load import dataset_names as dataset_names
from ._load import load_dataset as load_dataset
from ._load import normalised as normalised
from ._types import DataSplits as DataSplits
from ._types import Images as Images
from ._types import Part as Part
from ._types import Splits as Splits
from ._types import StreamedImages as StreamedImages
from ._types import StreamedSplits as StreamedSplits
from ._types import Task as Task

# The names left out of __all__ are internal to snello's own packages.
__all__ = [
    "DataSplits", "Images", "Splits", "StreamedImages", "StreamedSplits", "dataset_names",
    "load_dataset", "loader",
]  # fmt: skip
