"""Check that a plan was made for the model that it is applied to."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from snello.errors import ModelError
from snello.simplification.ir.plan import AttentionPlan, SimplificationPlan
from snello.simplification.ops.attention_weights import attention_weights
from snello.simplification.ops.layers import has_inputs_first


def check(plan: SimplificationPlan, root: nn.Module) -> None:
    """Compare the layers, nodes and parameters that a plan names with those of a model.

    Raises:
        ModelError: naming the first that is missing or has another size.
    """
    modules = dict(root.named_modules())
    for name, layer in plan.layers.items():
        module = modules.get(name)
        weight = getattr(module, "weight", None)
        found = _widths(module, weight) if isinstance(weight, Tensor) else "no such layer"
        if found != (layer.outputs, layer.inputs):
            raise ModelError(
                f"the plan was made for another model: layer {name!r} should be "
                f"{(layer.outputs, layer.inputs)} (outputs, inputs), found {found}"
            )
    for name, attention in plan.attentions.items():
        _check_attention(name, attention, modules.get(name))
    missing = next(_missing(plan, root, modules), None)
    if missing is not None:
        raise ModelError(f"the plan was made for another model: there is no {missing!r}")


def _widths(module: nn.Module | None, weight: Tensor) -> tuple[int, int]:
    if isinstance(module, _ConvNd):
        return module.out_channels, module.in_channels
    inputs_first = module is not None and has_inputs_first(module)
    outputs, inputs = reversed(weight.shape) if inputs_first else weight.shape
    return int(outputs), int(inputs)


def _missing(
    plan: SimplificationPlan, root: nn.Module, modules: dict[str, nn.Module]
) -> Iterator[str]:
    nodes = {node.name for node in root.graph.nodes} if isinstance(root, fx.GraphModule) else set()
    tensors = {name for name, _ in (*root.named_parameters(), *root.named_buffers())}
    yield from (name for name in plan.norms if name not in modules)
    for edit in plan.edits:
        yield from (name for name in edit.modules if name not in modules)
        yield from (name for name in edit.nodes if name not in nodes)
    yield from (name for name in plan.parameters if name not in tensors)
    for name in plan.attributes:
        owner, _, attribute = name.rpartition(".")
        module = root if not owner else modules.get(owner)
        kind = (tuple, list) if isinstance(plan.attributes[name], tuple) else int
        if not isinstance(getattr(module, attribute, None), kind):
            yield name


def _check_attention(name: str, plan: AttentionPlan, module: nn.Module | None) -> None:
    found: object = "no such attention"
    if module is not None and (own := attention_weights(module)) is not None:
        width = len(own.weight) // (3 * own.heads)
        found = (len(own.out_weight), own.weight.shape[1], own.heads, width)
    if found != (expected := (plan.outputs, plan.inputs, plan.heads, plan.width)):
        raise ModelError(
            f"the plan was made for another model: attention {name!r} should be {expected} "
            f"(outputs, inputs, heads, width of a head), found {found}"
        )
