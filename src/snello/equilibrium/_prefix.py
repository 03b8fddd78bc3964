"""A network in two parts: the nodes before all layers that are updated, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from snello.errors import ModelError
from snello.graph import Inputs, capture, class_name, evaluation_mode, tensors_of

from ._features import Feature

_RANDOM = {
    nn.functional.dropout, nn.functional.dropout1d, nn.functional.dropout2d,
    nn.functional.dropout3d, nn.functional.alpha_dropout, nn.functional.feature_alpha_dropout,
    nn.functional.rrelu, torch.dropout, torch.bernoulli, torch.rand_like, torch.randn_like,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class RestingPrefix:
    """A network cut after its resting layers, of which all neurons are frozen.

    Attributes:
        front: computes the features from the inputs: a tuple of tensors with the batch on their
            first axis.
        rest: computes the outputs from the features, and from the inputs that it reads itself.
        modules: names of the modules in `front` that have parameters.
        features: shape, dtype and memory layout of each feature.
        inputs: positions of the model's inputs that `rest` reads.
        compiled: what computes the features in place of `front`, such as the compiled `front`.
        constants: whether `rest` holds values that were computed from weights in `front`.
    """

    front: nn.Module
    rest: nn.Module
    modules: tuple[str, ...]
    features: tuple[Feature, ...]
    inputs: tuple[int, ...]
    compiled: Callable[..., Any] | None = None
    constants: bool = False

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All parameters and buffers on which the features depend."""
        return [*self.front.parameters(), *self.front.buffers()]

    def bytes_per_sample(self, dtype: torch.dtype | None = None) -> int:
        """Size of the features of one sample, in another dtype than their own if one is given."""
        return sum(f.stored_as(dtype).itemsize * f.entries for f in self.features)

    def run_front(self, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        """Compute the features, in evaluation mode and without gradients."""
        with torch.no_grad(), evaluation_mode(self.front):
            front = self.front if self.compiled is None else self.compiled
            found: tuple[Tensor, ...] = front(*inputs)
        return found

    def run_rest(self, features: Sequence[Tensor], inputs: Sequence[Any]) -> Any:
        """Compute the outputs from features."""
        return self.rest(*features, *(inputs[i] for i in self.inputs))


def resting_prefix(
    model: nn.Module, frozen: Collection[Tensor], inputs: Sequence[Tensor]
) -> RestingPrefix | None:
    """Cut a network after its resting layers.

    Args:
        model: the model without wrappers, in the mode in which it is trained.
        frozen: the parameters of the layers of which all neurons are frozen.
        inputs: a small batch, the model's positional arguments.

    Returns:
        The two parts, which share every module with the model; None if there is no resting layer
        before the layers that are updated.

    Raises:
        ModelError: if torch.fx cannot trace the model, if the two parts have other outputs, or if
            features depend on the other samples of the batch.
    """
    graph = capture(model, whole_stateless=True)
    shapes = _Shapes(graph.module, len(inputs[0]))
    with evaluation_mode(model), torch.no_grad():
        shapes.run(*inputs)
    whole = graph.module.graph
    still = _still(model, whole, {id(p) for p in frozen})
    samples = _of_samples(still, shapes.tensors)
    behind = _behind(whole, still, samples)
    frontier = [
        node
        for node in still
        if node in samples and node.op != "placeholder" and not behind.isdisjoint(node.users)
    ]
    front = _front(model, whole, frontier)
    modules = tuple(
        str(node.target)
        for node in front.graph.nodes
        if node.op == "call_module" and any(True for _ in _module(model, node).parameters())
    )
    if not modules:
        return None
    rest, used = _rest(model, whole, behind, frontier)
    features = tuple(Feature.of(shapes.tensors[node]) for node in frontier)
    found = RestingPrefix(front, rest, modules, features, used)
    check(model, found, inputs)
    return found


class _Shapes(fx.Interpreter):
    """An interpreter that notes the tensors whose first axis is the batch."""

    def __init__(self, module: fx.GraphModule, batch: int) -> None:
        super().__init__(module)
        self.tensors: dict[fx.Node, Tensor] = {}
        self._batch = batch

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if isinstance(found, Tensor) and found.dim() and len(found) == self._batch:
            self.tensors[n] = found.detach().to("meta")
        return found


def _still(model: nn.Module, graph: fx.Graph, frozen: Collection[int]) -> dict[fx.Node, None]:
    """The nodes whose values do not change while the frozen layers are frozen, in order."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or (
            node.op != "output"
            and all(source in found for source in node.all_input_nodes)
            and _stands_still(model, node, frozen)
        ):
            found[node] = None
    return found


def _stands_still(model: nn.Module, node: fx.Node, frozen: Collection[int]) -> bool:
    if node.op == "call_function":
        return node.target not in _RANDOM
    if node.op == "call_method":
        # An in-place method would overwrite the stored features.
        return not str(node.target).endswith("_")
    if node.op == "get_attr":
        value = attrgetter(str(node.target))(model)
        return id(value) in frozen or not getattr(value, "requires_grad", False)
    module = _module(model, node)
    inplace = any(getattr(inner, "inplace", False) for inner in module.modules())
    if inplace and node.all_input_nodes[0].op == "placeholder":
        return False
    return all(id(p) in frozen or not p.requires_grad for p in module.parameters())


def _of_samples(still: Iterable[fx.Node], batched: Collection[fx.Node]) -> set[fx.Node]:
    """The nodes with one value per sample, which is computed from the sample's entries."""
    varying: set[fx.Node] = set()
    for node in still:
        if node.op == "placeholder" or (
            not _reads_size(node) and any(source in varying for source in node.all_input_nodes)
        ):
            varying.add(node)
    return {node for node in varying if node.op == "placeholder" or node in batched}


def _reads_size(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target is getattr and node.args[1] in ("shape", "dtype", "device", "ndim")
    return node.op == "call_method" and node.target in ("size", "dim")


def _behind(
    graph: fx.Graph, still: Collection[fx.Node], samples: Collection[fx.Node]
) -> set[fx.Node]:
    """The nodes that run behind the cut: those that change, and what they need of the others.

    Only what has one value per sample can be stored: sizes, tables, and windows of all samples
    together are computed again.
    """
    found = {node for node in graph.nodes if node not in still}
    todo = list(found)
    while todo:
        needed = [s for s in todo.pop().all_input_nodes if s not in samples and s not in found]
        found.update(needed)
        todo.extend(needed)
    return found


def _module(model: nn.Module, node: fx.Node) -> nn.Module:
    return model.get_submodule(str(node.target))


def _front(model: nn.Module, graph: fx.Graph, frontier: Sequence[fx.Node]) -> fx.GraphModule:
    copy = fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    wanted = _ancestors(frontier)
    for node in graph.nodes:
        if node in wanted or node.op == "placeholder":
            twins[node] = copy.node_copy(node, twins.__getitem__)
    copy.output(tuple(twins[node] for node in frontier))
    return fx.GraphModule(model, copy)


def _rest(
    model: nn.Module,
    graph: fx.Graph,
    behind: Collection[fx.Node],
    frontier: Sequence[fx.Node],
) -> tuple[fx.GraphModule, tuple[int, ...]]:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    used = [i for i, p in enumerate(placeholders) if any(user in behind for user in p.users)]
    copy = fx.Graph()
    twins = {node: copy.placeholder(node.name) for node in frontier}
    twins |= {placeholders[i]: copy.placeholder(placeholders[i].name) for i in used}
    for node in graph.nodes:
        if node in behind:
            twins[node] = copy.node_copy(node, twins.__getitem__)
    rest = fx.GraphModule(model, copy)
    rest.graph.eliminate_dead_code()
    rest.recompile()
    return rest, tuple(used)


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    found, todo = set(nodes), list(nodes)
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                todo.append(source)
    return found


def check(model: nn.Module, prefix: RestingPrefix, inputs: Sequence[Tensor]) -> None:
    """Compare the two parts with the model in evaluation mode, and features with those of each sample.

    Raises:
        ModelError: if they differ.
    """
    features = prefix.run_front(inputs)
    for place in range(len(inputs[0])):
        one = slice(place, place + 1)
        for both, alone in zip(features, prefix.run_front([x[one] for x in inputs]), strict=True):
            # Other sizes of a batch round otherwise, and no more.
            alone = alone.double()
            if not (both[one].double() - alone).norm() <= 0.01 * alone.norm():
                raise ModelError(
                    f"the outputs of the resting layers of {class_name(model)} depend on the other samples of "
                    "the batch"
                )
    with evaluation_mode(model), torch.no_grad():
        expected = tensors_of(Inputs.of(tuple(inputs)).call(model))
        found = tensors_of(prefix.run_rest(features, inputs))
    if not equal(expected, found):
        raise ModelError(
            f"{class_name(model)} cut behind its resting layers computes something else: its forward "
            "takes another path than torch.fx has traced"
        )


def equal(expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Return true if two lists of tensors are the same to the bit."""
    return len(expected) == len(found) and all(map(torch.equal, expected, found))
