"""Folding of BatchNorm into the layer before or after it.

In evaluation mode a norm is affine, so that its composition with a linear layer is one linear
layer. With scale s = gamma / sqrt(var + eps) and shift t = beta - mean * s, a layer (W, b) followed
by the norm is the layer (sW, sb + t); a norm followed by a layer (W, b) without zero padding is the
layer (Ws, b + Wt). The arithmetic is done in float64.

    folded = fold_batchnorm(model, example_inputs)
    torch.save(folded.state_dict(), "folded.pt"); json.dump(folds_of(folded), file)

    fresh = apply_folds(json.load(file), build())         # the structure, without pickled code
    fresh.load_state_dict(torch.load("folded.pt", weights_only=True))

A lean model made by `simplify` is folded the same way: apply its plan first, then its folds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from snello.errors import ModelError
from snello.graph import Example, Graph, Inputs, at_place, capture, evaluation, shape_of
from snello.neurons import TRANSPOSED, is_batchnorm
from snello.wrappers import check_module, copied, doubled, unwrapped

from .ops.layers import pads_with_zeros
from .ops.norms import affine_of, is_plain_batchnorm
from .ops.registry import is_plain
from .rewrite.absorb import PLAIN, absorb, absorb_next, add_bias
from .runtime.ragged import RaggedConv
from .verify import TOLERANCE, compare, difference, outputs


class FoldedBatchNorm(nn.Identity):
    """Identity that replaces a BatchNorm that was folded.

    Args:
        layer: name of the layer that the norm was folded into.
    """

    snello_leaf = True

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def extra_repr(self) -> str:
        return f"into {self.layer}"


@dataclass(frozen=True)
class _Fold:
    """A norm, the layer that it is folded into, and whether the norm comes first."""

    norm: str
    layer: str
    norm_first: bool


def fold_batchnorm(model: nn.Module, example_inputs: Example) -> nn.Module:
    """Copy a model with its BatchNorms folded into neighbouring layers where possible.

    The outputs in evaluation mode stay the same. A norm is folded into the Linear, convolution or
    transposed convolution before it if nothing else reads that layer, or into the Linear or
    convolution without zero padding after it if nothing else reads the norm. Shared, tied and
    parametrised layers, layers with hooks and norms without running statistics are left alone. In
    training mode the copy behaves like a model whose norms are frozen.

    Args:
        model: a model that can be captured, or a lean one; it is not changed.
        example_inputs: inputs of the real shape, batch first.

    Returns:
        A module of the model's own class, with a `FoldedBatchNorm` in place of each folded
        norm.

    Raises:
        ModelError: if the model cannot be captured, does not run on the example inputs, or has
            branches that depend on values.
        SimplifyError: if the outputs differ in float64, naming the first layer that does.
    """
    model = unwrapped(model, "fold_batchnorm")
    inputs = Inputs.of(example_inputs)
    folded = copied(model)
    folds = _fold_all(folded, inputs)
    # Folded weights are rounded to the model's dtype; exactness is checked on a copy in float64.
    reference = doubled(model).eval()
    twin = copied(reference)
    _fold_all(twin, inputs)
    compare(
        reference, twin, inputs, "with its BatchNorms folded, the outputs",
        lambda batch: _first_difference(reference, twin, folds, batch),
    )  # fmt: skip
    for fold in folds:
        folded.get_submodule(fold.norm).train(model.get_submodule(fold.norm).training)
    return folded


def folds_of(model: nn.Module) -> dict[str, str]:
    """Name of each folded norm -> name of the layer that it is folded into."""
    return {name: m.layer for name, m in model.named_modules() if isinstance(m, FoldedBatchNorm)}


def apply_folds(folds: Mapping[str, str], model: nn.Module) -> nn.Module:
    """Copy a model into the structure of a folded one, whose `state_dict` can then be loaded.

    Args:
        folds: from `folds_of`.
        model: a freshly built model, or one that a plan was applied to; it is not changed.

    Raises:
        ModelError: if the folds were made for another architecture, naming the layer.
    """
    check_module(model, "apply_folds")
    folded = copied(model)
    modules = dict(folded.named_modules())
    for norm, layer in folds.items():
        if norm not in modules or not is_batchnorm(modules[norm]):
            raise ModelError(
                f"the folds were made for another model: {norm!r} is no BatchNorm of this one"
            )
        if not hasattr(modules.get(layer), "weight"):
            raise ModelError(f"the folds were made for another model: there is no layer {layer!r}")
        add_bias(modules[layer], modules[norm].num_features)
        _replace(folded, norm, layer)
    return folded


def _fold_all(model: nn.Module, inputs: Inputs) -> list[_Fold]:
    """Fold in place, repeatedly: after a folded norm there may be another one."""
    done: list[_Fold] = []
    with evaluation(model):
        example = inputs.map(lambda x: _like(x, model))
        while folds := _candidates(_unbranched(capture(model, example), model)):
            for fold in folds:
                layer: Any = model.get_submodule(fold.layer)
                affine = (
                    x.to(layer.weight.device) for x in affine_of(model.get_submodule(fold.norm))
                )
                (absorb_next if fold.norm_first else absorb)(layer, *affine)
                _replace(model, fold.norm, fold.layer)
            done += folds
    return done


def _like(x: Tensor, model: nn.Module) -> Tensor:
    parameter = next(model.parameters(), None)
    return x.to(parameter.dtype) if parameter is not None and x.is_floating_point() else x


def _replace(model: nn.Module, norm: str, layer: str) -> None:
    parent, _, name = norm.rpartition(".")
    replacement = FoldedBatchNorm(layer).train(model.get_submodule(norm).training)
    setattr(model.get_submodule(parent), name, replacement)


_DECISIONS = {"__bool__", "__float__", "__index__", "__int__", "item", "tolist"}
"""Tensor methods that Python code calls for a branch that depends on values."""


def _unbranched(graph: Graph, model: nn.Module) -> Graph:
    """Return the graph, unless the model has branches that depend on values.

    On a branch that did not run, a layer may be read without its norm.

    Raises:
        ModelError: naming the operation.
    """
    for node in graph.nodes:
        if node.op == "call_method" and node.target in _DECISIONS and not graph.runnable:
            raise ModelError(
                f"{type(model).__name__} takes a path that depends on values ({node.name}"
                f"{at_place(node)}), and on another path a layer may be read without its norm"
            )
    return graph


def _candidates(graph: Graph) -> list[_Fold]:
    """Folds that are possible in one graph; each layer and each norm occurs once."""
    taken: set[str] = set()
    folds = []
    for node in graph.nodes:
        module = graph.layer(node)
        if module is None or not is_plain_batchnorm(module) or not _is_free(graph, node):
            continue
        if module.running_mean is None:
            continue
        fold = _into_source(graph, node) or _into_reader(graph, node)
        if fold is not None and fold.layer not in taken:
            taken.add(fold.layer)
            folds.append(fold)
    return folds


def _is_free(graph: Graph, node: fx.Node) -> bool:
    """True if a module can be changed: one call, one name, parameters of its own, and no hooks."""
    name, module = str(node.target), graph.layer(node)
    assert module is not None
    names = Counter(id(m) for _, m in graph.module.named_modules(remove_duplicate=False))
    calls = [n for n in graph.nodes if n.op == "call_module" and graph.layer(n) is module]
    read = any(n.op == "get_attr" and str(n.target).startswith(f"{name}.") for n in graph.nodes)
    hooked = any(
        getattr(module, f"_{kind}_hooks") for kind in ("forward", "forward_pre", "backward")
    )
    alone = names[id(module)] == 1 and len(calls) == 1 and not graph.is_shared(name)
    return alone and is_plain(module) and not (read or hooked)


def _into_source(graph: Graph, norm: fx.Node) -> _Fold | None:
    """The fold into the layer before a norm; None if something else reads that layer, too."""
    source = norm.all_input_nodes[0]
    while isinstance(graph.layer(source), nn.Identity) and len(source.users) == 1:
        source = source.all_input_nodes[0]
    layer = graph.layer(source)
    if layer is None or len(source.users) != 1 or not _is_free(graph, source):
        return None
    known = isinstance(layer, (*PLAIN, *TRANSPOSED, RaggedConv))
    if not known or not _has_channels_on_axis_1(source, layer):
        return None
    return _Fold(str(norm.target), str(source.target), norm_first=False)


def _into_reader(graph: Graph, norm: fx.Node) -> _Fold | None:
    """The fold into the only layer that reads a norm; None if it pads with zeros."""
    if len(norm.users) != 1:
        return None
    reader = next(iter(norm.users))
    layer = graph.layer(reader)
    if layer is None or type(layer) not in PLAIN or not _is_free(graph, reader):
        return None
    if pads_with_zeros(layer) or not _has_channels_on_axis_1(reader, layer):
        return None
    return _Fold(str(norm.target), str(reader.target), norm_first=True)


def _has_channels_on_axis_1(node: fx.Node, layer: nn.Module) -> bool:
    """True if the output is batched with channels on axis 1, unlike that of a Linear on tokens."""
    dimensions = 2 if isinstance(layer, nn.Linear) else len(layer.kernel_size) + 2  # type: ignore[arg-type]
    return len(shape_of(node) or ()) == dimensions


def _first_difference(
    reference: nn.Module, folded: nn.Module, folds: list[_Fold], batch: Inputs
) -> str:
    places = [fold.layer if fold.norm_first else fold.norm for fold in folds]
    expected, found = _record(reference, places, batch), _record(folded, places, batch)
    # In order of execution, so that the first difference is found.
    for place, output in expected.items():
        if not difference(output, found[place]) <= TOLERANCE:
            return next(
                f"{f.norm!r} (into {f.layer!r})" for f in folds if place in (f.norm, f.layer)
            )
    return "the output"


def _record(model: nn.Module, places: list[str], batch: Inputs) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def keep(place: str) -> Any:
        return lambda _module, _inputs, output: seen.__setitem__(place, output.clone())

    handles = [model.get_submodule(place).register_forward_hook(keep(place)) for place in places]
    try:
        outputs(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen
