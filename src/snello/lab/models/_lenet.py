"""The two LeNets of the pruning literature."""

from __future__ import annotations

from torch import Tensor, nn

from snello.errors import ModelError


class LeNet300(nn.Module):
    """LeNet-300-100: three linear layers with ReLU between them, on the flattened image.

    LeCun et al., "Gradient-based learning applied to document recognition", 1998. 266 610
    parameters with the defaults.

    Args:
        classes: number of outputs.
        in_channels: channels of the image.
        image_size: height and width of the image, in pixels.
        in_features: number of inputs, for data other than square images; overrides `in_channels`
            and `image_size`.

    Shape:
        Input `(B, in_channels, image_size, image_size)` or anything with as many values per
        example; output `(B, classes)`.
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        in_channels: int = 1,
        image_size: int = 28,
        in_features: int | None = None,
    ) -> None:
        super().__init__()
        inputs = in_channels * image_size**2 if in_features is None else in_features
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(inputs, 300)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(300, 100)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, shape `(B, classes)`."""
        x = self.relu1(self.fc1(self.flatten(x)))
        return self.fc3(self.relu2(self.fc2(x)))  # type: ignore[no-any-return]


class LeNet5(nn.Module):
    """LeNet-5 in Caffe's variant, 20-50-500-10, of the pruning papers: 431 080 parameters.

    Two unpadded 5×5 convolutions, each followed by 2×2 max pooling, then two linear layers. As in
    Caffe's `lenet_train_test.prototxt`, the only ReLU stands between the two linear layers; there
    is none after the convolutions.

    Args:
        classes: number of outputs.
        in_channels: channels of the image.
        image_size: height and width of the image, in pixels, at least 16.

    Shape:
        Input `(B, in_channels, image_size, image_size)`, output `(B, classes)`.

    Raises:
        ModelError: if the image is too small for both convolutions and poolings.
    """

    def __init__(self, classes: int = 10, *, in_channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        if side < 1:
            raise ModelError(
                f"lenet-5 needs images of at least 16×16 pixels, got image_size={image_size}; "
                "pass a larger image_size to the dataset or use lenet-300-100"
            )
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(50 * side**2, 500)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, shape `(B, classes)`."""
        x = self.pool2(self.conv2(self.pool1(self.conv1(x))))
        return self.fc2(self.relu(self.fc1(self.flatten(x))))  # type: ignore[no-any-return]
