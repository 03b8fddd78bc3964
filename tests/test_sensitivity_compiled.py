"""Sensitivities of models that are wrapped, or were compiled before the sensitivity came."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from snello.errors import ConfigError
from snello.sensitivity import Lobster, OutputSensitivity, SeReNe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _no_graphs_of_others() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)
    ).double()


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 6, generator=generator).double(), torch.randint(
        3, (12,), generator=generator
    )


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def _in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def _train(model: nn.Module, run: nn.Module, sensitivity: Any, steps: int = 6) -> dict[str, Tensor]:
    optimizer, (x, y) = torch.optim.SGD(model.parameters(), 0.1), _batch()
    for _ in range(steps):
        outputs = run(x)
        sensitivity.observe(outputs, y)
        optimizer.zero_grad()
        F.cross_entropy(outputs, y).backward()
        optimizer.step()
        sensitivity.step()
    return dict(model.named_parameters())


METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "sampled": lambda m: SeReNe(m, 0.1),
    "full": lambda m: SeReNe(m, 0.1, estimate="full"),
    "local": lambda m: SeReNe(m, 0.1, estimate="local"),
    "examples": lambda m: SeReNe(m, 0.1, examples=4),
    "lobster": lambda m: Lobster(m, 0.1),
    "output": lambda m: OutputSensitivity(m, 0.1),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("compiled", [_compiled, _in_place])
@pytest.mark.parametrize("ran", ["this model", "another of its class", "not at all"])
def test_a_compiled_model_decays_as_the_plain_one(
    method: str, compiled: Callable[[nn.Module], nn.Module], ran: str
) -> None:
    model, twin = _model(), _model()
    expected = _train(twin, twin, METHODS[method](twin))
    run = compiled(model)
    if ran != "not at all":
        (run if ran == "this model" else compiled(_model()))(_batch()[0]).sum().backward()
    found = _train(model, run, METHODS[method](model))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-12, atol=1e-14)


class Residual(nn.Module):
    """A network whose compiled backward overwrites the gradient that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        found: Tensor = self.head(F.relu(x + self.branch(F.relu(x))))
        return found


@pytest.mark.parametrize("ran", [False, True])
def test_a_compiled_backward_pass_can_be_run_twice(ran: bool) -> None:
    torch.manual_seed(0)
    model = Residual().double()
    twin = copy.deepcopy(model)
    expected = _train(twin, twin, METHODS["output"](twin))
    run = torch.compile(model, backend="aot_eager")
    with torch._functorch.config.patch(donated_buffer=True):  # as torch has it
        if ran:
            run(_batch()[0]).sum().backward()
        found = _train(model, run, METHODS["output"](model))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-12, atol=1e-14)


def test_a_removed_sensitivity_sees_nothing_more_of_a_compiled_model() -> None:
    model = _model()
    run, serene = _compiled(model), SeReNe(model, 0.1)
    _train(model, run, serene, 2)
    serene.remove()
    run(_batch()[0])
    assert serene._taps == []


@pytest.mark.sampled(5)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, _compiled, lambda m: nn.DataParallel(_compiled(m))]
)
def test_wrapped_models_are_looked_through(
    method: str, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    model, twin = _model(), _model()
    expected = _train(twin, twin, METHODS[method](twin))
    wrapped = wrap(model)
    sensitivity = METHODS[method](wrapped)
    found = _train(model, wrapped, sensitivity)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-12, atol=1e-14)
    assert all(
        "module" not in name and "_orig_mod" not in name for name in sensitivity.sensitivity()
    )


@pytest.mark.parametrize("method", METHODS)
def test_computed_weights_are_left_alone_with_a_reason(method: str) -> None:
    model = _model()
    parametrizations.weight_norm(model[0])
    sensitivity = METHODS[method](model)
    assert "remove_parametrizations" in sensitivity.left_alone["0"]
    frozen = copy.deepcopy(model[0].parametrizations.state_dict())
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    _train(model, model, sensitivity)
    for name, value in model[0].parametrizations.state_dict().items():
        assert torch.equal(value, frozen[name])


@pytest.mark.parametrize("examples", [None, 4])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_the_model_is_not_observed(
    examples: int | None, copied: Callable[[Any], Any]
) -> None:
    model, (x, _) = _model(), _batch()
    serene = SeReNe(model, 0.1, every=1, examples=examples)
    outputs = model(x)
    copied(model)(x[:2])  # an average that is evaluated between a forward and its observation
    serene.observe(outputs)
    assert set(serene.sensitivity()) == {"0", "2"}


@pytest.mark.parametrize("method", [SeReNe, OutputSensitivity])
def test_a_step_without_an_observation_is_refused(method: type) -> None:
    with pytest.raises(ConfigError, match=r"nothing has been observed.*observe\(outputs\)"):
        method(_model(), 0.1).step()


def test_several_devices_of_data_parallel_are_refused_with_the_way_out() -> None:
    wrapped = nn.DataParallel(_model())
    wrapped.device_ids = [0, 1]
    with pytest.raises(ConfigError, match=r"DataParallel.*2 devices.*use DistributedDataParallel"):
        SeReNe(wrapped, 0.1)
