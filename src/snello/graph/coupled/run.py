"""One forward of a model in which every tensor carries labels along its axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from snello.graph.inputs import Inputs, tensors_in
from snello.graph.modes import evaluation
from snello.graph.places import calling_place
from snello.graph.twins import same_numbers
from snello.wrappers import unfused_layers

from .labels import HEAD_DIM, Axis, Labels, Reason, Vector
from .products import Product

READ, WRITE, SCALE, SIZE = "read", "write", "scale", "size"


@dataclass(frozen=True)
class Shadow:
    """The labels of a tensor.

    Attributes:
        axes: labels by axis. An axis of length 1 has none: it broadcasts.
        weight: whether the tensor is computed from parameters alone.
    """

    axes: tuple[Axis, ...]
    weight: bool = False


@dataclass(frozen=True)
class Mirror:
    """An integer attribute that held the length of a labelled axis.

    Attributes:
        module: qualified name of the module.
        attribute: name of the attribute.
        position: index, where the attribute is a tuple; else -1.
        axis: labels of the axis.
    """

    module: str
    attribute: str
    position: int
    axis: Vector


@dataclass
class Run:
    """The record of one forward.

    Attributes:
        model: the model.
        removed: labels of removed channels; statistics are computed over the others. None to only
            record.
        labels: the labels of all tensors.
        roles: label of a parameter's axis -> `"read"` or `"write"`; none where it only scales.
        statistics: (module, operation, axis) of every reduction over labelled channels.
        mirrors: attributes that held the length of a labelled axis.
        products: the matrix products, convolutions and attentions.
        outputs: the tensors that the model returned.
    """

    model: nn.Module
    removed: frozenset[int] | None = None
    labels: Labels = field(default_factory=Labels)
    roles: dict[int, str] = field(default_factory=dict)
    statistics: list[tuple[str, str, Vector]] = field(default_factory=list)
    mirrors: list[Mirror] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        self._names = {id(tensor): name for name, tensor in named}
        self._storages = {(t.data_ptr(), t.shape): t for _, t in named if t.numel()}
        self._modules = dict(self.model.named_modules())
        self._stack: list[str] = []
        self._shadows: Any = WeakIdKeyDictionary()
        self._sources: dict[int, str] = {}
        self.parameters: dict[str, Shadow] = {}

    # --- called by rules ----------------------------------------------------------------------

    def of(self, tensor: Tensor) -> Shadow:
        """The labels of a tensor; labels are made for a parameter at its first use."""
        found = self._shadows.get(tensor)
        if found is None:
            found = self._first_sight(tensor)
            self._shadows[tensor] = found
        return found  # type: ignore[no-any-return]

    def _first_sight(self, tensor: Tensor) -> Shadow:
        """New labels for a parameter, found by identity or memory; none for other tensors."""
        name = self._names.get(id(tensor))
        if name is None and tensor.numel():
            held = self._storages.get((tensor.data_ptr(), tensor.shape))
            name = self._names[id(held)] if held is not None else None
        if name is None or not tensor.is_floating_point():
            return Shadow((None,) * tensor.dim())
        if name not in self.parameters:
            axes = tuple(self.labels.fresh(size) if size > 1 else None for size in tensor.shape)
            self.parameters[name] = Shadow(axes, weight=True)
            self._sources.update((label, name) for axis in axes for label in axis or ())
            self._mirror_owner(name, axes)
        return self.parameters[name]

    def sources(self, tensor: Tensor) -> set[str]:
        """Names of the parameters whose labels a weight has; none for other tensors."""
        shadow = self.of(tensor)
        labels = (label for axis in shadow.axes for label in axis or ()) if shadow.weight else ()
        return {self._sources[label] for label in labels if label in self._sources}

    def _mirror_owner(self, name: str, axes: tuple[Axis, ...]) -> None:
        """Note the sizes of a linear layer whose weight another module uses, as attention does."""
        owner = name.rpartition(".")[0]
        layer = self._modules[owner]
        if owner == self.path or not isinstance(layer, nn.Linear) or len(axes) != 2:
            return
        for attribute, axis in zip(("out_features", "in_features"), axes, strict=True):
            if axis is not None and len(axis) == getattr(layer, attribute):
                self.mirrors.append(Mirror(owner, attribute, -1, axis))

    def keep(self, tensor: Tensor, shadow: Shadow) -> None:
        """Store the labels of a tensor, and pin those along an axis of length 1.

        Raises:
            AssertionError: if a rule returned another number of labels than the axis has indices.
        """
        for size, axis in zip(tensor.shape, shadow.axes, strict=True):
            if size == 1:
                self.labels.pin(axis, self.reason("a single index is used by itself"))
            elif axis is not None and len(axis) != size:
                raise AssertionError(f"{len(axis)} labels for {size} indices")
        axes = zip(tensor.shape, shadow.axes, strict=True)
        plain = tuple(axis if n > 1 else None for n, axis in axes)
        self._shadows[tensor] = Shadow(plain, shadow.weight)

    def reason(self, text: str) -> Reason:
        """A reason for a pin, with the module and the line of the user's code that are running."""
        return lambda: f"{text}{self._where()}"

    def _where(self) -> str:
        inside = f" in {self.path}" if self.path else ""
        place = calling_place()
        return f"{inside} ({place})" if place else inside

    @property
    def path(self) -> str:
        """Qualified name of the module whose forward is running."""
        return self._stack[-1] if self._stack else ""

    def role(self, axis: Axis, role: str) -> None:
        """Note that an axis of a weight reads or writes channels; the first note is kept."""
        for label in axis or ():
            if label > 0:
                self.roles.setdefault(label, role)

    def statistic(self, axis: Axis, operation: str) -> None:
        """Note that an operation, such as a norm, reduces over channels."""
        if axis is not None and any(label > 0 for label in axis):
            self.statistics.append((self.path, operation, axis))

    def mirror(self, axis: Axis, names: Sequence[str] = ()) -> None:
        """Note the attributes of the running module that hold the length of an axis.

        Args:
            axis: labels of the axis.
            names: names of the attributes to check; if empty, every integer attribute whose name
                is like that of a size, except those of torch's layers.
        """
        if axis is None or not any(label > 0 for label in axis):
            return
        for name, value in vars(self._modules[self.path]).items():
            if name in names or (not names and name not in LAYER_SIZES and _is_size(name)):
                for position, number in _numbers(value):
                    if number == len(axis):
                        self.mirrors.append(Mirror(self.path, name, position, axis))

    def kept(self, axis: Axis) -> list[bool] | None:
        """For each index of an axis, whether it is kept; None if all are."""
        if axis is None or not self.removed:
            return None
        kept = [label not in self.removed for label in axis]
        return None if all(kept) else kept

    # --- the forward ----------------------------------------------------------------------------

    def forward(self, inputs: Inputs) -> Run:
        """Run the model, in evaluation mode and without gradients."""
        inputs = inputs.map(torch.clone)
        with (
            evaluation(self.model),
            same_numbers(),
            unfused_layers(),
            self._paths(),
            Watch(self) as watch,
            watch.calls,
        ):
            output = inputs.call(self.model)
        self._join_equal_widths()
        self.outputs = tensors_in(output)
        for tensor in self.outputs:
            for axis in self.of(tensor).axes:
                self.labels.pin(axis, lambda: "an output of the model")
        return self

    def _join_equal_widths(self) -> None:
        """Join head dimensions whose width is in one attribute, as for keys and values."""
        known: dict[tuple[str, str, int], Vector] = {}
        flags = {self.labels.find(x): flag for x, flag in self.labels.flags.items()}
        for mirror in self.mirrors:
            dims = {flags.get(self.labels.find(x)) for x in mirror.axis if x > 0}
            if dims == {HEAD_DIM} and not is_count(mirror.attribute):
                first = known.setdefault(
                    (mirror.module, mirror.attribute, mirror.position), mirror.axis
                )
                self.labels.join(first, mirror.axis)

    def tie(self, name: str) -> None:
        """Join the columns of a square weight with its rows, so that both keep one width.

        A weight with three times as many rows as columns computes queries, keys and values: its
        columns are joined with the rows of each. Other weights are left alone.

        Args:
            name: qualified name of the weight.
        """
        axes = self.parameters[name].axes if name in self.parameters else ()
        if len(axes) != 2 or axes[0] is None or axes[1] is None:
            return
        rows, columns = axes[0], axes[1]
        if len(rows) == 3 * len(columns):
            part = self.labels.split(rows, [3, len(columns)])[1]
            self.labels.join(columns, part or columns)
        elif len(rows) == len(columns):
            self.labels.join(columns, rows)

    @contextmanager
    def _paths(self) -> Iterator[None]:
        """Keep the stack of the modules whose forward is running, by hooks."""

        def enter(name: str) -> Callable[..., None]:
            return lambda *_: self._stack.append(name)

        def leave(*_: Any) -> None:
            self._stack.pop()

        handles = []
        try:
            for name, module in self._modules.items():
                if not isinstance(module, torch.jit.ScriptModule):
                    handles.append(module.register_forward_pre_hook(enter(name)))
                    handles.append(module.register_forward_hook(leave, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()


LAYER_SIZES = (
    "in_features", "out_features", "in_channels", "out_channels", "nx", "nf", "groups", "num_groups",
    "num_features", "num_channels", "normalized_shape", "embedding_dim", "num_embeddings",
    "kernel_size", "stride", "padding", "dilation", "output_padding",
)  # fmt: skip


_COUNTS = ("head", "group")
_WIDTHS = ("dim", "size", "width", "channel", "feature", "inner", "hidden", "embed")
_OTHERS = ("image", "img", "patch", "window", "kernel", "grid", "vocab", "batch", "seq", "position")


def is_count(name: str) -> bool:
    """True of names of attributes that count heads or groups, as in `num_heads`."""
    counts = any(part in name for part in _COUNTS) or name in ("h", "nh")
    return counts and not any(part in name for part in _WIDTHS)


def _is_size(name: str) -> bool:
    if any(part in name for part in _OTHERS):
        return False
    return is_count(name) or any(part in name for part in _WIDTHS)


def _numbers(value: object) -> list[tuple[int, int]]:
    """(position, number) of an integer, or of the integers in a tuple or list."""
    if type(value) is int:
        return [(-1, value)]
    if isinstance(value, (tuple, list)):
        return [(i, number) for i, number in enumerate(value) if type(number) is int]
    return []


class Watch(TorchDispatchMode):
    """Applies a rule to every operation of a run."""

    def __init__(self, run: Run) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run = run
        self.calls = Calls(self)
        self.paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        from .rules import apply

        if self.paused:
            return func(*args, **(kwargs or {}))
        return apply(self.run, func, args, kwargs or {})


class Calls(TorchFunctionMode):  # type: ignore[no-untyped-call]
    """Applies one rule to some functions as a whole, instead of to the operators they call.

    These are attention, which is lowered differently for each device, and circular padding, which
    writes into an empty tensor.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        from .attention import attention
        from .rules import circular_pad

        kwargs = kwargs or {}
        rule = None
        if func is F.multi_head_attention_forward:
            with self._attention_seen():
                return func(*args, **kwargs)
        if func is _ATTENTION:
            rule = attention
        elif func is F.pad and "circular" in (*args[2:], *kwargs.values()):
            rule = circular_pad
        if rule is None or self.watch.paused:
            return func(*args, **kwargs)
        self.watch.paused = True
        try:
            return rule(self.watch.run, func, args, kwargs)
        finally:
            self.watch.paused = False

    @contextmanager
    def _attention_seen(self) -> Iterator[None]:
        """Pass calls of attention to this mode inside the block, in which torch suspends it."""

        def seen(*args: Any, **kwargs: Any) -> Any:
            return self.__torch_function__(_ATTENTION, (), args, kwargs)

        present = F.scaled_dot_product_attention  # users put faster kernels there
        F.scaled_dot_product_attention = seen
        try:
            yield
        finally:
            F.scaled_dot_product_attention = present


_ATTENTION = torch._C._nn.scaled_dot_product_attention
"""torch's own, also where a user has put another one into `torch.nn.functional`."""


Rule = Callable[[Run, tuple[Any, ...], Mapping[str, Any], Any], Any]
