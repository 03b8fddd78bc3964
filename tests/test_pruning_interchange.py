"""Masks of ``torch.nn.utils.prune`` are taken over and handed back."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import prune as torch_prune

from laws import assert_zero_where
from pruning_samples import batch, convnet, weights
from snello.errors import ConfigError
from snello.neurons import Masks
from snello.pruning import Pruner, Ratio, export_masks, import_masks


def test_masks_of_torch_are_taken_over_and_handed_back() -> None:
    model = convnet()
    parameters = {id(p) for p in model.parameters()}
    original = weights(model)
    torch_prune.random_unstructured(model[0], "weight", 0.5)
    torch_prune.ln_structured(model[6], "weight", 0.3, 1, 0)
    torch_prune.l1_unstructured(model[6], "bias", 0.2)
    expected: Masks = {
        "0.weight": model[0].weight_mask != 0, "6.weight": model[6].weight_mask != 0, "6.bias": model[6].bias_mask != 0
    }  # fmt: skip
    outputs = model(batch()[0]).detach()
    masks = import_masks(model)
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[name], mask) for name, mask in expected.items())
    assert {id(p) for p in model.parameters()} == parameters  # the optimizer still trains them
    torch.testing.assert_close(model(batch()[0]), outputs)
    assert import_masks(model) == {}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    pruner = Pruner(model, optimizer, amount=Ratio(0.3))
    pruner.adopt(masks)
    for _ in range(3):
        optimizer.zero_grad()
        model(batch()[0]).square().sum().backward()
        optimizer.step()
    assert_zero_where(model, masks)
    pruner.prune()
    assert all(not (pruner.masks[name] & ~mask).any() for name, mask in masks.items())
    kept = weights(model)
    export_masks(model, pruner.masks)
    assert torch_prune.is_pruned(model)
    assert {id(p) for p in model.parameters()} == parameters
    with pytest.raises(ConfigError, match="already"):
        export_masks(model, pruner.masks)
    back = import_masks(model)
    assert all(torch.equal(back[name], mask) for name, mask in pruner.masks.items())
    assert all(torch.equal(w, kept[name]) for name, w in weights(model).items())
    assert not torch.equal(kept["0"], original["0"])
