"""Private names of ``snello.lab.datasets`` that tests use."""

# The real numbers of images, classes and bytes are lowered by monkeypatching.
from snello.lab.datasets import _cifar as cifar
from snello.lab.datasets import _folders as folders
from snello.lab.datasets import _streamed as streamed

# The augmentation is a function of corners and mirrors, compared image by image.
from snello.lab.datasets._batches import crop_flip as crop_flip

# The layout of MNIST's files, to damage each of them.
from snello.lab.datasets._load import MNIST_FILES as MNIST_FILES

# Splits and statistics are stated for random labels and pixels, without files.
from snello.lab.datasets._splits import channel_statistics as channel_statistics
from snello.lab.datasets._splits import stratified as stratified

# The masks of COCO are compared with masks drawn by hand.
from snello.lab.datasets._coco import VOC as VOC
from snello.lab.datasets._coco import CocoMasks as CocoMasks

# A list of texts must survive any text, line breaks and empty ones included.
from snello.lab.datasets._texts import Texts as Texts
