"""Narrowing of modules and parameters to the rows and columns that a plan keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from snello.simplification.ir.plan import LayerPlan, SimplificationPlan, Slice
from snello.simplification.ops.layers import has_inputs_first
from snello.simplification.runtime.convolution import fold
from snello.simplification.runtime.ragged import RaggedConv, is_even
from snello.simplification.runtime.windows import lean_attention


def narrow(root: nn.Module, plan: SimplificationPlan) -> None:
    """Narrow all layers and parameters of a plan, in place.

    Folded constants are zero until values are written. Modules that were removed with a dead branch
    are skipped.
    """
    present = dict(root.named_modules())
    for name, layer in plan.layers.items():
        if name in present:
            _narrow_layer(root, name, layer)
    for name, attention in plan.attentions.items():
        if name in present:
            root.set_submodule(name, lean_attention(present[name], attention))
    for name, kept in plan.norms.items():
        if name in present:
            _narrow_norm(present[name], kept)
    for name, slices in plan.parameters.items():
        for part in slices:
            _narrow_parameter(root, name, part)


def _narrow_layer(root: nn.Module, name: str, plan: LayerPlan) -> None:
    module = root.get_submodule(name)
    grouped = plan.groups > 1 and not isinstance(module, _ConvTransposeNd)
    if grouped and isinstance(module, _ConvNd) and not is_even(plan):
        root.set_submodule(name, RaggedConv(module, plan))
        return
    dense: Tensor = module.weight  # type: ignore[assignment]
    weight = dense.detach()
    outputs = index_of(plan.kept_outputs, weight)
    _replace_parameter(module, "weight", sliced_weight(module, weight, plan))
    bias = module.bias
    if isinstance(bias, Tensor):
        _replace_parameter(module, "bias", bias.detach()[outputs])
    elif plan.bias:
        module.bias = nn.Parameter(weight.new_zeros(len(outputs)), dense.requires_grad)
    if not isinstance(module, _ConvNd):
        for name, kept in zip(_WIDTHS, (plan.kept_outputs, plan.kept_inputs) * 2, strict=True):
            if hasattr(module, name):
                setattr(module, name, len(kept))
        return
    module.out_channels, module.in_channels = len(plan.kept_outputs), len(plan.kept_inputs)
    if plan.groups > 1:
        module.groups = len(torch.unique(outputs // (plan.outputs // plan.groups)))
    for record in plan.folds:
        fold(module, record, outputs)


_WIDTHS = ("out_features", "in_features", "nf", "nx")
"""Names of the attributes of linear layers with their widths: torch's, then transformers'."""


def sliced_weight(module: nn.Module, weight: Tensor, plan: LayerPlan) -> Tensor:
    """Return the kept rows and columns of a weight, or of a gradient or moment of its shape."""
    # Indexing returns unusual strides, with which layers are slow; channels_last is kept.
    channels_last = weight.dim() == 4 and not weight.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return _sliced(module, weight, plan).clone(memory_format=memory_format)


def _sliced(module: nn.Module, weight: Tensor, plan: LayerPlan) -> Tensor:
    outputs, inputs = (index_of(kept, weight) for kept in (plan.kept_outputs, plan.kept_inputs))
    transposed = has_inputs_first(module)
    if plan.groups == 1:
        rows, columns = (inputs, outputs) if transposed else (outputs, inputs)
        return weight.index_select(0, rows).index_select(1, columns)
    fan_out, fan_in = plan.outputs // plan.groups, plan.inputs // plan.groups
    # Rows are kept outputs (inputs, if transposed); the columns of each are those of its own group.
    if transposed:
        rows, columns, own, fan = inputs, outputs, inputs // fan_in, fan_out
    else:
        rows, columns, own, fan = outputs, inputs, outputs // fan_out, fan_in
    members = {int(g): columns[columns // fan == g] % fan for g in torch.unique(own)}
    return weight[rows[:, None], torch.stack([members[int(g)] for g in own])]


def _narrow_norm(module: nn.Module, kept: Sequence[int]) -> None:
    for name in ("weight", "bias"):
        if isinstance(parameter := getattr(module, name, None), Tensor):
            _replace_parameter(module, name, parameter.detach()[index_of(kept, parameter)])
    for name in ("running_mean", "running_var"):
        if isinstance(buffer := getattr(module, name, None), Tensor):
            setattr(module, name, buffer[index_of(kept, buffer)].clone())
    if isinstance(module, nn.GroupNorm):  # whole groups stay
        module.num_groups = module.num_groups * len(kept) // module.num_channels
    for name in ("num_features", "num_parameters", "num_channels"):
        if hasattr(module, name):
            setattr(module, name, len(kept))


def _narrow_parameter(root: nn.Module, name: str, part: Slice) -> None:
    owner, _, attribute = name.rpartition(".")
    try:
        module = root.get_submodule(owner)
    except AttributeError:
        return  # it belonged to a dead branch, which was removed
    tensor: Tensor = getattr(module, attribute)
    kept = tensor.detach().index_select(part.axis, index_of(part.kept, tensor))
    if isinstance(tensor, nn.Parameter):
        _replace_parameter(module, attribute, kept)
        _tie(root, tensor, getattr(module, attribute))
    else:
        setattr(module, attribute, kept)
    if isinstance(module, nn.Embedding):
        module.embedding_dim = len(part.kept)
    elif attribute == "weight":
        _follow_weight(module, kept)


def _follow_weight(module: nn.Module, weight: Tensor) -> None:
    """Set the widths of a layer whose own forward passes its weight to a function."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
        if module.groups == 1:
            module.in_channels = weight.shape[1]
        elif module.groups == module.in_channels == module.out_channels:
            module.groups = module.in_channels = len(weight)
        module.out_channels = len(weight)


def _tie(root: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    """Replace a parameter by the narrowed one under all of its other names."""
    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is old:
                module._parameters[name] = new


def _replace_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    requires_grad = getattr(module, name).requires_grad
    setattr(module, name, nn.Parameter(value, requires_grad=requires_grad))


def index_of(kept: Sequence[int], like: Tensor) -> Tensor:
    """Kept indices as a tensor on the device of another one."""
    return torch.tensor(kept, dtype=torch.long, device=like.device)
