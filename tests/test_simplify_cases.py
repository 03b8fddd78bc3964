"""Laws of simplification on every hard case: the same outputs at every size, never larger, small
enough.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from _pytest.mark import ParameterSet
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hard_cases import CASES, REFUSED, Case, blind, kill, neurons_of, random_dead
from laws import difference, generator, tensors
from snello.errors import SimplifyError, SnelloError
from snello.neurons import weighted_layers
from snello.simplification import apply, plan_of, simplify

Inputs = tuple[Tensor, ...]


def structure(output: object) -> object:
    if isinstance(output, dict):
        return {key: structure(value) for key, value in output.items()}
    return [structure(v) for v in output] if isinstance(output, (list, tuple)) else type(output)


def outputs(model: nn.Module, inputs: Inputs) -> object:
    """Of copies of the inputs: a model may write on them."""
    with torch.no_grad():
        return model(*(x.clone() for x in inputs))


def assert_same(model: nn.Module, lean: nn.Module, inputs: Inputs, tolerance: float = 1e-9) -> None:
    expected, found = outputs(model, inputs), outputs(lean, inputs)
    assert structure(expected) == structure(found)
    for number, (a, b) in enumerate(zip(tensors(expected), tensors(found), strict=True)):
        shapes = [tuple(x.shape) for x in inputs]
        assert difference(a, b) <= tolerance, f"output {number} for inputs of shape {shapes}"


def size_of(model: nn.Module) -> int:
    """Elements of everything that is saved, tied tensors once."""
    tensors_by_id = {id(t): t.numel() for t in model.state_dict(keep_vars=True).values()}
    return sum(tensors_by_id.values())


Shrunk = tuple[nn.Module, nn.Module, list[Inputs]]


def shrink(
    case: Case,
    dead: Mapping[str, tuple[int, ...]],
    *,
    constant: bool,
    unread: float = 0.0,
    seed: int = 0,
) -> Shrunk:
    """The model with dead neurons, its lean twin, and the inputs."""
    model = case.model(seed)
    kill(model, dead, constant=constant)
    if unread:
        blind(model, unread, generator(seed))
    inputs = case.inputs(generator(seed + 1))
    before = copy.deepcopy(model.state_dict())
    lean = simplify(model, tuple(x.clone() for x in inputs[0]))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return model, lean, inputs


@cache
def masked(name: str, share: float, constant: bool) -> Shrunk:
    """Random neurons dead. Many laws read the same pair; who trains it takes a copy."""
    case, seed = CASES[name], round(10 * share)
    dead = random_dead(case.model(), share, generator(seed))
    return shrink(case, dead, constant=constant, unread=0.2 if share > 0.5 else 0.0, seed=seed)


@cache
def named(name: str, constant: bool) -> Shrunk:
    """The neurons dead that the case names."""
    return shrink(CASES[name], CASES[name].dead, constant=constant)


ZERO, CONSTANT = False, True
LIMITS: dict[str, tuple[bool, ...]] = {
    "input: two tensors, one shared encoder": (CONSTANT,),
    "pad: cut off": (CONSTANT,),
    "pool: average with its own divisor": (CONSTANT,),
    "scalar: shape[1] as a number": (CONSTANT,),
    "scalar: width as a number": (ZERO, CONSTANT),
    "shape: groups and back": (ZERO, CONSTANT),
    "shape: there and back": (CONSTANT,),
    "slice: getitem by half of the width": (ZERO, CONSTANT),
    "slice: one channel": (ZERO, CONSTANT),
    "tokens: mixer": (CONSTANT,),
}
"""Cases that keep channels which could go, and whether where dead neurons are zero or constants;
docs/simplify.md says why.
"""

SHARES = (0.3, 0.6, 0.9)
_ALIKE = ("activation", "scalar", "dropout", "global pool")
STRUCTURES = [name for name in CASES if not name.startswith(_ALIKE)]
QUICK = {*STRUCTURES, *[name for name in CASES if name.startswith(_ALIKE)][::5]}
"""The quick run sees every structure and every fifth of the cases that differ in a function only."""


def parameter(quick: bool, *values: object) -> ParameterSet:
    marks = () if quick else (pytest.mark.exhaustive,)
    words = {False: "zero", True: "constant"}
    return pytest.param(*values, marks=marks, id="-".join(words.get(v, str(v)) for v in values))


every_mask = pytest.mark.parametrize(
    ("name", "share", "constant"),
    [
        # Six masks of each case; a quick run takes them by turns.
        parameter(name in QUICK and turn % 6 == turn // 6 % 6, name, share, constant)
        for turn, (name, share, constant) in enumerate(product(CASES, SHARES, (False, True)))
    ],
)
zero_or_not = pytest.mark.parametrize("constant", [False, True], ids=["zero", "constant"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_graph_does_not_show_is_exact_or_refused(name: str) -> None:
    case = REFUSED[name]
    model = case.model(0).eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.get_submodule("conv1").weight[:2] = 0
    x = case.inputs(generator(0))[0]
    masked_state = copy.deepcopy(model.state_dict())
    try:
        lean = simplify(model, x)
    except SimplifyError as error:
        if "in place" not in str(error):
            raise
    else:
        for inputs in case.inputs(generator(1)):
            assert_same(model, lean, inputs)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, masked_state[key]) for key, value in model.state_dict().items())


@pytest.mark.sampled(110)
@every_mask
def test_outputs_are_the_same_at_every_size_and_nothing_grows(
    name: str, share: float, constant: bool
) -> None:
    model, lean, inputs = masked(name, share, constant)
    for x in inputs:
        assert_same(model, lean, x)
    assert size_of(lean) <= size_of(model)


@pytest.mark.sampled(40)
@every_mask
def test_a_lean_model_is_copied_and_loaded_without_pickled_code(
    name: str, share: float, constant: bool
) -> None:
    _, lean, inputs = masked(name, share, constant)
    plan = plan_of(lean)
    assert plan is not None
    text = plan.to_json()
    assert type(plan).from_json(text) == plan
    file = io.BytesIO()
    torch.save(lean.state_dict(), file)
    file.seek(0)
    fresh = apply(type(plan).from_json(text), CASES[name].build().double().eval())
    fresh.load_state_dict(torch.load(file, weights_only=True))
    twin = copy.deepcopy(lean)
    assert plan_of(twin) == plan
    for x in inputs:
        assert_same(lean, twin, x, tolerance=0.0)
        assert_same(lean, fresh, x, tolerance=0.0)


@pytest.mark.sampled(70)
@pytest.mark.parametrize(
    ("name", "constant"),
    [
        parameter(name in QUICK and (constant or turn % 3 == 0), name, constant)
        for turn, (name, constant) in enumerate(product(CASES, (False, True)))
        if CASES[name].lean and constant not in LIMITS.get(name, ())
    ],
)
def test_what_can_go_is_gone(name: str, constant: bool) -> None:
    wide = left_wide(name, constant)
    assert not wide, ", ".join(f"{layer}: {what}" for layer, what in wide.items())


@pytest.mark.parametrize(
    ("name", "constant"),
    [
        parameter(True, name, constant)
        for name, constants in LIMITS.items()
        for constant in constants
    ],
)
def test_known_limits_are_exact_and_still_limits(name: str, constant: bool) -> None:
    assert left_wide(name, constant), "lifted: take it off this list and out of docs/simplify.md"


def test_known_limits_are_listed_in_the_docs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "simplify.md").read_text()
    assert not [name for name in LIMITS if f"| {name} |" not in page]


def left_wide(name: str, constant: bool) -> dict[str, str]:
    """Layers that are wider than the case says, in a lean model that is exact and no larger."""
    model, lean, inputs = named(name, constant)
    for x in inputs:
        assert_same(model, lean, x)
    assert size_of(lean) <= size_of(model)
    case = CASES[name]
    return too_wide(lean, case.constant if constant and case.constant is not None else case.lean)


def too_wide(lean: nn.Module, expected: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Layers that are wider than expected."""
    weights = dict(lean.named_parameters(remove_duplicate=False))
    wide = {}
    for name, allowed in expected.items():
        weight = weights.get(f"{name}.weight")
        found = (
            tuple(weight.shape[: len(allowed)]) if weight is not None and weight.numel() else None
        )
        if not any(allowed):
            if found:
                wide[name] = f"{found}, should be gone"
        elif found is None or any(a > b for a, b in zip(found, allowed, strict=True)):
            wide[name] = f"{found}, at most {allowed} is possible"
    return wide


@pytest.mark.sampled(20)
@pytest.mark.parametrize(
    ("name", "constant"),
    [
        parameter(name in QUICK and turn % 7 == 0, name, constant)
        for turn, (name, constant) in enumerate(product(CASES, (False, True)))
    ],
)
def test_everything_dead(name: str, constant: bool) -> None:
    case = CASES[name]
    dead = {layer: tuple(range(count)) for layer, count in neurons_of(case.model()).items()}
    model, lean, inputs = shrink(case, dead, constant=constant)
    for x in inputs:
        assert_same(model, lean, x)
    assert size_of(lean) <= size_of(model)


@pytest.mark.sampled(20)
@pytest.mark.parametrize(
    "name", [parameter(name in QUICK and turn % 4 == 0, name) for turn, name in enumerate(CASES)]
)
def test_nothing_dead_changes_nothing(name: str) -> None:
    model, lean, inputs = shrink(CASES[name], {}, constant=False)
    assert size_of(lean) <= size_of(model)
    for x in inputs:
        assert_same(model, lean, x, tolerance=1e-12)


# Training goes on


def input_gradients(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    # Not the leaves themselves: a model may write on its input.
    found = model(*(x * 1 for x in leaves))
    loss = sum(
        (y * torch.linspace(-1, 2, y.numel()).to(y).view(y.shape)).sum() for y in tensors(found)
    )
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]


def assert_same_gradients(model: nn.Module, lean: nn.Module, inputs: Inputs) -> None:
    pairs = zip(input_gradients(model, inputs), input_gradients(lean, inputs), strict=True)
    for expected, found in pairs:
        assert float((expected - found).abs().max()) <= 1e-9 * max(
            float(expected.abs().max()), 1e-6
        )


@pytest.mark.sampled(60)
@every_mask
def test_the_gradient_of_the_input_is_the_same(name: str, share: float, constant: bool) -> None:
    if CASES[name].vocabulary:
        pytest.skip("integers have no gradient")
    model, lean, inputs = masked(name, share, constant)
    assert_same_gradients(model, lean, inputs[0])


NOT_TRAINED = (
    # random in training mode
    "dropout", "activation: RReLU",
    # a constant that is not zero reaches a batch statistic: training mode computes something else,
    # as it must
    "constant", "norm: BatchNorm without affine", "norm: InstanceNorm with statistics", "tokens: 1-d BatchNorm",
    "architecture: DenseNet", "grouped: whole groups", "grouped: depthwise",
    # read in training mode only; gone from the lean model
    "output: head of training only",
)  # fmt: skip
TRAINED = [
    name
    for name, case in CASES.items()
    if case.lean and not case.vocabulary and not name.startswith(NOT_TRAINED)
]


@pytest.mark.sampled(20)
@pytest.mark.parametrize(
    "name", [parameter(list(CASES).index(name) % 3 == 0, name) for name in TRAINED]
)
def test_training_mode_is_the_same_where_dead_neurons_are_zero(name: str) -> None:
    model, lean, inputs = (copy.deepcopy(part) for part in named(name, False))
    model.train()
    lean.train()
    assert all(m.training for m in lean.modules())
    assert_same_gradients(model, lean, inputs[0])
    for a, b in zip(tensors(model(*inputs[0])), tensors(lean(*inputs[0])), strict=True):
        assert difference(a.detach(), b.detach()) <= 1e-9


@pytest.mark.parametrize(
    "name", ["sum: ResNet blocks", "gate: inverted residual", "tokens: ConvNeXt block"]
)
def test_weights_that_stay_get_the_same_gradient(name: str) -> None:
    """Weight for weight: those of the lean model are found in the original by their value."""
    model, lean, inputs = (copy.deepcopy(part) for part in named(name, False))
    for network in (model, lean):
        sum(y.square().sum() for y in tensors(network(*inputs[0]))).backward()
    originals = dict(model.named_parameters())
    for layer, parameter in lean.named_parameters():
        if layer not in originals or parameter.dim() < 2:
            continue
        values, gradients = originals[layer].detach().flatten(), originals[layer].grad.flatten()
        place = torch.tensor(
            [int((values == v).nonzero()[0]) for v in parameter.detach().flatten()]
        )
        scale = float(gradients.abs().max()) or 1.0
        alive = parameter.detach().flatten() != 0
        assert (
            float((gradients[place] - parameter.grad.flatten())[alive].abs().max()) <= 1e-9 * scale
        ), layer


# Compiled, exported, other dtypes

SAMPLE = [
    "sum: ResNet blocks",
    "gate: inverted residual",
    "slice: ShuffleNet unit",
    "architecture: U-Net",
    "architecture: DenseNet",
    "tokens: ConvNeXt block",
    "attention: small ViT",
    "output: dictionary of heads",
    "pool: max with padding",
]


@pytest.mark.parametrize("name", SAMPLE)
def test_torch_export(name: str) -> None:
    _, lean, inputs = named(name, True)
    program = torch.export.export(lean.eval(), inputs[0])
    assert_same(lean, program.module(), inputs[0])


@pytest.mark.parametrize("name", SAMPLE[:4])
def test_torch_compile(name: str) -> None:
    _, lean, inputs = named(name, True)
    torch.compiler.reset()
    compiled = torch.compile(lean, backend="aot_eager", fullgraph=True)
    assert_same(lean, compiled, inputs[0])


@pytest.mark.parametrize("name", SAMPLE[:3])
def test_onnx(name: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra onnx is not installed")
    from snello.deploy import export, file_runner

    _, lean, inputs = named(name, True)
    lean, x = copy.deepcopy(lean).float(), inputs[0][0].float()
    path = export(lean, x, tmp_path / "lean.onnx")
    found = torch.from_numpy(file_runner(path, x)()[0])
    assert torch.allclose(found, lean(x), atol=1e-4)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SAMPLE)
def test_other_dtypes_stay_within_their_rounding(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    model = case.model().to(dtype)
    kill(model, case.dead, constant=True)
    inputs = [tuple(x.to(dtype) for x in xs) for xs in case.inputs(generator(1))]
    lean = simplify(model, inputs[0])
    assert {p.dtype for p in lean.parameters()} == {dtype}
    exact = copy.deepcopy(model).double()
    for xs in inputs:
        for a, b, c in zip(
            tensors(outputs(exact, tuple(x.double() for x in xs))),
            tensors(outputs(model, xs)),
            tensors(outputs(lean, xs)),
            strict=True,
        ):
            assert c.dtype == dtype
            # Rounding of the original, and of the constants that were folded.
            rounding = float((a - b.double()).abs().max()) + 8 * torch.finfo(dtype).eps * float(
                a.abs().max()
            )
            assert float((a - c.double()).abs().max()) <= 4 * rounding


@pytest.mark.parametrize(
    "name", ["sum: ResNet blocks", "grouped: depthwise, padded", "architecture: Inception"]
)
def test_channels_last_stays(name: str) -> None:
    case = CASES[name]
    model = case.model().to(memory_format=torch.channels_last)
    kill(model, case.dead, constant=True)
    inputs = case.inputs(generator(1))
    lean = simplify(model, inputs[0])
    for parameter in lean.parameters():
        assert parameter.dim() != 4 or parameter.is_contiguous(memory_format=torch.channels_last)
    for xs in inputs:
        assert_same(model, lean, tuple(x.to(memory_format=torch.channels_last) for x in xs))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SAMPLE[:3])
def test_the_mode_is_kept(name: str, training: bool) -> None:
    case = CASES[name]
    model = case.model().train(training)
    lean = simplify(model, case.inputs(generator())[0])
    assert {m.training for m in lean.modules()} == {training}
    assert {m.training for m in model.modules()} == {training}


# Exact or refused


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


class WritesOnASlice(Branching):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x[:, 0] = 0
        return F.relu(x)


class Hooked(nn.Module):
    """A hook changes what a convolution returns; it is no part of the traced graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, padding=1)
        self.conv1.register_forward_hook(lambda _m, _x, y: y * 2 + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class BranchesOnNone(nn.Module):
    """Tracing takes the other branch: a traced value is never None."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.conv = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> object:
        x = self.conv(x.flatten(2))
        y, weights = self.attention(x, x, x, need_weights=False)
        return y if weights is None else (y, weights)


class NormAndActivation(nn.BatchNorm2d):
    """A user's BatchNorm with an activation inside."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


def around(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), layer, nn.Conv2d(6, 4, 3, padding=1))


def with_parametrized_first_layer() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)
    )


STRANGE: dict[str, Callable[[], nn.Module]] = {
    "branch on values": Branching,
    "writes on a slice": WritesOnASlice,
    "branch on None": BranchesOnNone,
    "forward hook": Hooked,
    "user's BatchNorm": lambda: around(NormAndActivation(6)),
    "weight norm": lambda: around(parametrizations.weight_norm(nn.Conv2d(6, 6, 3))),
    "weight norm in front": with_parametrized_first_layer,
    "spectral norm": lambda: around(parametrizations.spectral_norm(nn.Conv2d(6, 6, 3))),
}


@zero_or_not
@pytest.mark.parametrize("name", STRANGE)
def test_what_tracing_does_not_see_is_exact_or_refused(name: str, constant: bool) -> None:
    torch.manual_seed(0)
    model, x = STRANGE[name]().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        for layer in weighted_layers(model).values():
            if type(layer) in (nn.Conv2d, nn.Linear) and "weight" in dict(layer.named_parameters()):
                layer.weight[:2] = 0
                if layer.bias is not None and not constant:
                    layer.bias[:2] = 0
    try:
        lean = simplify(model, x)
    except SnelloError:
        return
    for inputs in (x, -x, x[:1]):
        assert_same(model, lean, (inputs,))


def test_a_model_that_branches_on_values_keeps_its_class() -> None:
    model, x = Branching().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    lean = simplify(model, x)
    assert type(lean) is Branching
    assert plan_of(lean).representation == "module"
    assert_same(model, lean, (x,))


def test_a_model_that_torch_fx_cannot_trace_keeps_its_class() -> None:
    model = WritesOnASlice().double().eval()
    with torch.no_grad():
        for layer in weighted_layers(model).values():
            layer.weight[:2] = layer.bias[:2] = 0
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    lean = simplify(model, x)
    assert type(lean) is WritesOnASlice
    assert plan_of(lean).representation == "module"
    assert_same(model, lean, (x,))


@pytest.mark.parametrize("shape", [(2, 5, 8, 8), (2, 3), (2, 3, 1, 1, 1, 1)])
def test_inputs_that_do_not_fit_are_refused_with_their_shape(shape: tuple[int, ...]) -> None:
    model = CASES["activation: ReLU"].model()
    with pytest.raises(SnelloError) as caught:
        simplify(model, torch.randn(shape, dtype=torch.float64))
    assert str(shape) in str(caught.value)


def test_no_warning_is_given() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shrink(CASES["gate: inverted residual"], {"expand": (0, 1)}, constant=True)
