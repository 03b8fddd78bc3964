"""One operation with its shapes, and its key in a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from snello.errors import ConfigError

Kind = Literal["conv", "linear", "matmul"]
Precision = Literal["float32", "int8"]


@dataclass(frozen=True)
class Operation:
    """A convolution or a matrix product.

    Attributes:
        kind: "conv"; "linear", a product with a constant matrix; "matmul", of two activations.
        shape: of "conv" (samples, channels in, channels out, groups, *size); of "linear" (rows,
            features in, features out); of "matmul" (products, rows, inner size, columns).
        options: of "conv" (*kernel, *strides, *padding, *dilation), else empty.
        precision: precision of weights and activations.
    """

    kind: Kind
    shape: tuple[int, ...]
    options: tuple[int, ...] = ()
    precision: Precision = "float32"

    @property
    def key(self) -> str:
        """Text that identifies the operation in a table."""
        options = f" {'.'.join(map(str, self.options))}" if self.options else ""
        return f"{self.kind} {'x'.join(map(str, self.shape))}{options} {self.precision}"

    @staticmethod
    def from_key(key: str) -> Operation:
        """The operation of a key.

        Raises:
            ConfigError: for a text that is no key.
        """
        try:
            kind, shape, *options, precision = key.split(" ")
            if kind not in ("conv", "linear", "matmul") or precision not in ("float32", "int8"):
                raise ValueError(key)
            numbers = tuple(int(n) for text in options for n in text.split("."))
            sizes = tuple(map(int, shape.split("x")))
            if not _are_sizes(kind, sizes, numbers):
                raise ValueError(key)
            return Operation(kind, sizes, numbers, precision)  # type: ignore[arg-type]
        except ValueError as error:
            raise ConfigError(f"{key!r} is no key of an operation") from error

    def at(self, precision: Precision) -> Operation:
        """The same operation in another precision; products of two activations stay as they are."""
        # ONNX Runtime's quantiser leaves small products in float32 as often as not.
        return self if self.kind == "matmul" else replace(self, precision=precision)

    @property
    def dimensions(self) -> int:
        """Number of spatial dimensions of a convolution."""
        return len(self.options) // 4

    @property
    def output_size(self) -> tuple[int, ...]:
        """Spatial size of a convolution's output."""
        kernel, strides, padding, dilation = self.split_options()
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                self.shape[4:], kernel, strides, padding, dilation, strict=True
            )
        )

    def split_options(self) -> tuple[tuple[int, ...], ...]:
        """Kernel, strides, padding and dilation of a convolution."""
        n = self.dimensions
        return tuple(self.options[i * n : (i + 1) * n] for i in range(4))

    @property
    def macs(self) -> int:
        """Multiply-accumulates, of the whole batch."""
        if self.kind != "conv":
            return prod(self.shape)
        samples, into, out, groups = self.shape[:4]
        kernel = self.split_options()[0]
        return samples * out * (into // max(groups, 1)) * prod(kernel) * prod(self.output_size)


def _are_sizes(kind: str, shape: tuple[int, ...], options: tuple[int, ...]) -> bool:
    """Return True if an operation of a kind can have these numbers."""
    if min(shape) < 1:
        return False
    if kind != "conv":
        return not options and len(shape) == (3 if kind == "linear" else 4)
    size = len(shape) - 4
    padding = options[2 * size : 3 * size]
    others = options[: 2 * size] + options[3 * size :]
    return size >= 1 and len(options) == 4 * size and min(others) >= 1 and min(padding) >= 0
