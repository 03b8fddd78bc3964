"""Masks to and from `torch.nn.utils.prune`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import prune

from snello.errors import ConfigError
from snello.neurons import Masks, apply_masks, qualified
from snello.wrappers import unwrapped

from ._pin import remember, remembered


@torch.no_grad()
def import_masks(model: nn.Module) -> Masks:
    """Convert the masks of `torch.nn.utils.prune` to masks of snello, and remove them there.

    `weight_orig` and `weight_mask` become one `weight`, the same `Parameter` object that
    the optimizer holds, with zeros where the mask has them. A [`Pruner`][snello.pruning.Pruner]
    made for the model afterwards starts with these masks; without a pruner,
    [`pin`][snello.pruning.pin] keeps the zeros.

    Args:
        model: changed in place, before a pruner is made for it.

    Returns:
        The masks; empty if the model has none.
    """
    model, masks = unwrapped(model, "import_masks"), {}
    for prefix, module in model.named_modules():
        for key in [
            name[: -len("_mask")]
            for name in dict(module.named_buffers(recurse=False))
            if _masks(module, name)
        ]:
            mask = getattr(module, f"{key}_mask")
            masks[qualified(prefix, key)] = mask.detach() != 0
            prune.remove(module, key)  # type: ignore[no-untyped-call]
    apply_masks(model, masks)
    remember(model, {**remembered(model), **masks})
    return masks


def export_masks(model: nn.Module, masks: Masks) -> nn.Module:
    """Convert masks to those of `torch.nn.utils.prune`: the inverse of
    [`import_masks`][snello.pruning.import_masks].

    Args:
        model: changed in place: every masked `weight` becomes `weight_orig` (the same
            `Parameter` object) and a buffer `weight_mask`.
        masks: such as `pruner.masks`.

    Returns:
        The same model.

    Raises:
        ConfigError: for a mask that does not fit the model.
    """
    inner = unwrapped(model, "export_masks")
    modules = dict(inner.named_modules(remove_duplicate=False))
    owners = {name: modules.get(name.rpartition(".")[0]) for name in masks}
    for name, module in owners.items():
        if hasattr(module, f"{name.rpartition('.')[2]}_mask"):
            raise ConfigError(
                f"{name} has a mask of torch.nn.utils.prune already: import_masks(model) first"
            )
    apply_masks(inner, masks)  # raises for masks that do not fit
    for name, mask in masks.items():
        module, key = owners[name], name.rpartition(".")[2]
        prune.custom_from_mask(module, key, mask)  # type: ignore[no-untyped-call]
    return model


def _masks(module: nn.Module, buffer: str) -> bool:
    return buffer.endswith("_mask") and hasattr(module, f"{buffer[: -len('_mask')]}_orig")
