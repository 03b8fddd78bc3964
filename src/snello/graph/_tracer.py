"""torch.fx's tracer, with modules that stay one node and arguments that keep a constant value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from torch import fx, nn

from snello.neurons import is_batchnorm, is_weighted

from ._signature import keep_signature
from .places import note_caller
from .targets import TargetTable

_LEAVES: TargetTable[None] = TargetTable()
"""Classes added by `register_leaf`. A set: a lookup gives one None for each match."""


def register_leaf(target: type[nn.Module] | str) -> None:
    """Keep a class of modules as one operation of every graph, instead of tracing into it.

    In a class of your own, set the attribute `snello_leaf = True` to the same effect.

    Args:
        target: the class, its qualified name (it need not be importable) or its bare name;
            subclasses are included. See `TargetTable`.
    """
    _LEAVES.add(target, None)


_CONTAINERS = (
    nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder, nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)  # fmt: skip
"""Modules of torch that are made of layers, as models are. torch.fx cannot trace them, but a run of them
can be recorded; a capture without example inputs keeps them as one node."""


def _runs_as_torchs(module: nn.Module) -> bool:
    """True for a layer of a subclass that only builds it in another way: torch's own forward runs."""
    methods = [getattr(module, name, None) for name in ("forward", "_conv_forward")]
    return is_weighted(module) and all(
        str(getattr(method, "__module__", "torch.nn")).startswith("torch.nn") for method in methods
    )


class Tracer(fx.Tracer):
    """torch.fx's tracer, with snello's leaves and constant arguments.

    Args:
        constants: placeholder -> the value that is passed to the forward instead of a proxy. The
            placeholder stays in the graph, unused, so that the signature is the model's.
        whole_containers: keep torch's transformer layers as one node each, instead of tracing into
            them.
        whole_stateless: keep modules without parameters and buffers as one node each.
    """

    def __init__(
        self,
        constants: Mapping[str, Any] | None = None,
        *,
        whole_containers: bool = False,
        whole_stateless: bool = False,
    ) -> None:
        # Optional, because torch makes a tracer without arguments when it unpickles a graph module.
        super().__init__()
        self.constants, self.whole_containers = constants or {}, whole_containers
        self.whole_stateless = whole_stateless

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in _CONTAINERS:
            return self.whole_containers
        if self.whole_stateless and not any(True for _ in chain(m.parameters(), m.buffers())):
            return True
        leaf = bool(getattr(m, "snello_leaf", False)) or bool(_LEAVES.find_module(m))
        # A user's subclass of BatchNorm mostly calls F.batch_norm(..., self.training): traced into,
        # the mode at capture would be a constant of the graph.
        leaf = leaf or is_batchnorm(m) or _runs_as_torchs(m)
        return leaf or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        if isinstance(node.type, str):
            # An annotation below `from __future__ import annotations`, which older torch.fx (2.11)
            # takes for an object to import: the graph could not be pickled.
            node.type = None
        note_caller(node)
        return node

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,
    ) -> tuple[Any, list[Any]]:
        # Constants are put in here: as concrete_args, torch.fx would rename their placeholders and
        # assert their values in the graph.
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        if is_module:
            keep_signature(self.graph, self.root)
        return function, [self._constant(arg) for arg in args]

    def _constant(self, arg: Any) -> Any:
        return self.constants.get(str(arg.node.target), arg) if isinstance(arg, fx.Proxy) else arg
