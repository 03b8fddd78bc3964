"""Rules of one's own, and rules that fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laws import assert_same_outputs, generator, randomise
from snello.simplification import plan_of, rule_for, simplify
from snello.simplification.ops import Call
from snello.simplification.ops.channelwise import PerChannel

QUESTIONS = ("match", "propagate", "live_inputs", "arrange", "lower")
X = torch.randn(2, 3, 7, 8, dtype=torch.float64, generator=generator(0))


class Odd(nn.Module):
    """An operation of its own that a rule is registered for."""

    snello_leaf = True

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class Failing(PerChannel):
    """Fails at one question."""

    def __getattribute__(self, name: str) -> Any:
        node = object.__getattribute__(self, "node")
        module = node.graph.owning_module.get_submodule(str(node.target))
        if name == module.question:
            raise IndexError("index 7 is out of bounds")
        return super().__getattribute__(name)


@rule_for(Odd)
def odd(call: Call) -> PerChannel | None:
    assert isinstance(call.module, Odd)
    if call.module.question == "match":
        raise IndexError("index 7 is out of bounds")
    operand = call.known_operand(1)
    return operand and Failing.of(call, operand, function=torch.sin)


@pytest.mark.failing_rule
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_rule_that_fails_costs_savings_alone(question: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), Odd(question), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    model = randomise(model.double(), generator(1)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[:3] = layer.bias[:3] = 0
    lean = simplify(model, X)
    plan = plan_of(lean)
    assert plan is not None
    assert plan.left_alone["1"] == "its rule failed with IndexError: index 7 is out of bounds"
    assert_same_outputs(model, lean, X)
    assert lean.get_submodule("4").weight.shape == (2, 3, 1, 1), (
        "what is behind goes on being narrowed"
    )


def test_the_same_rule_without_the_fault_saves() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), Odd("none"), nn.Conv2d(6, 2, 1))
    model = randomise(model.double(), generator(1)).eval()
    with torch.no_grad():
        model[0].weight[:3] = model[0].bias[:3] = 0
    lean = simplify(model, X)
    assert lean.get_submodule("2").weight.shape == (2, 3, 1, 1)
    assert_same_outputs(model, lean, X)
