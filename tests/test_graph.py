"""The captured graph: its edges, shared layers, shapes, arguments, leaves; and modes that come
back.
"""

from __future__ import annotations

import copy
import inspect
import operator
import pickle

import pytest
import torch
from torch import Tensor, nn

import snello.graph
from snello.errors import ConfigError, ModelError
from snello.graph import (
    Inputs,
    TargetTable,
    as_inputs,
    capture,
    evaluation,
    register_leaf,
    shape_of,
)
from snello.lab.models import CifarResNet
from snello.neurons import is_batchnorm, weighted_layers
from zoo import ZOO, CalledTwice, Tied, tiny_mlp


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", ZOO)
def test_the_graph_computes_what_the_model_computes_and_changes_nothing(name: str) -> None:
    model = ZOO[name].build().double()
    inputs = ZOO[name].inputs(torch.Generator().manual_seed(0))
    before = copy.deepcopy(model.state_dict())
    graph = capture(model, inputs[0])
    assert all(m.training for m in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    model.eval()
    graph.module.eval()
    for x in inputs:
        assert torch.equal(graph.module(x), model(x))
    assert weighted_layers(model).keys() <= graph.calls.keys()


def test_every_convolution_of_a_resnet_is_followed_by_its_norm() -> None:
    model = CifarResNet(8)
    graph = capture(model)
    for name, module in weighted_layers(model).items():
        expected = name.replace("conv", "bn") if isinstance(module, nn.Conv2d) else None
        assert graph.norm_after(name) == expected


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x)


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(self.norm(self.a(x))))


def test_a_norm_must_read_the_layer_alone() -> None:
    assert capture(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))).norm_after("0") == "1"
    assert capture(TwoReaders()).norm_after("conv") is None
    assert capture(SharedNorm()).norm_after("a") is None
    assert (
        capture(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))).norm_after("0")
        is None
    )
    assert capture(nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4))).norm_after("0") is None
    assert capture(tiny_mlp()).norm_after("4") is None
    assert capture(tiny_mlp()).norm_after("no such layer") is None


def test_shared_layers() -> None:
    twice = capture(CalledTwice())
    assert [twice.is_shared(name) for name in ("first", "shared", "last")] == [False, True, False]
    assert len(twice.calls["shared"]) == 2
    tied = capture(Tied())
    assert [tied.is_shared(name) for name in ("first", "second", "third")] == [False, True, True]


def test_one_module_under_two_names_is_one_layer() -> None:
    layer = nn.Linear(3, 3)
    graph = capture(nn.Sequential(layer, nn.ReLU(), layer))
    assert len(graph.calls["0"]) == 2
    assert graph.is_shared("0")


def test_nodes_carry_the_shape_of_their_output() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.BatchNorm2d(3), nn.Flatten())
    graph = capture(model, torch.randn(4, 2, 7, 9))
    assert [shape_of(node) for node in graph.nodes[:-1]] == [
        (4, 2, 7, 9),
        (4, 3, 3, 4),
        (4, 3, 3, 4),
        (4, 36),
    ]
    assert all(shape_of(node) is None for node in capture(model).nodes)
    layers = [graph.layer(node) for node in graph.nodes]
    assert layers[0] is layers[-1] is None
    assert layers[1] is model[0]
    assert is_batchnorm(layers[2])


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(ModelError, match=r"cannot trace Branching.*branches or loops"):
        capture(Branching())


def test_inputs_that_do_not_fit_are_refused_with_their_shape() -> None:
    model = tiny_mlp()
    with pytest.raises(ModelError, match=r"shape \(2, 5\)"):
        capture(model, torch.randn(2, 5))
    assert model.training


def test_evaluation_gives_every_module_its_mode_back() -> None:
    model = CifarResNet(8)
    model.bn1.eval()
    modes = [m.training for m in model.modules()]
    with evaluation(model):
        assert not any(m.training for m in model.modules())
        assert not model.linear(torch.zeros(1, 64)).requires_grad
    assert [m.training for m in model.modules()] == modes

    def fails() -> None:
        with evaluation(model):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [m.training for m in model.modules()] == modes
    assert torch.is_grad_enabled()


def test_example_inputs_as_a_tuple() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    assert as_inputs(x) == (x,)
    assert as_inputs((x, y)) == (x, y)


class Options(nn.Module):
    """Every kind of argument that a forward can have."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(
        self,
        x: Tensor,
        extra: Tensor | None = None,
        *,
        scale: float = 2.0,
        mask: Tensor,
        again: bool = False,
    ) -> Tensor:
        y = self.a(x) * scale * mask
        if extra is not None:
            y = y + self.b(extra)
        return y + self.c(x) if again else y


OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    "left out": (("x", "mask"), {}),
    "by keyword": (("x", "mask", "extra"), {}),
    "a number": (("x", "mask", "extra"), {"scale": 3.0}),
    "a switch": (("x", "mask"), {"again": True}),
    "none given": (("x", "mask"), {"extra": None, "again": False}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_arguments_settle_the_path_and_the_signature_stays(name: str) -> None:
    model, (names, values) = Options().double().eval(), OPTIONS[name]
    tensors = {"x": torch.randn(5, 3), "extra": torch.randn(5, 3), "mask": torch.rand(5, 1)}
    given = {key: tensors[key].double() for key in names}
    graph = capture(model, given | values)
    expected = model(**given, **values)
    assert torch.equal(graph.module(**given, **values), expected)
    assert torch.equal(graph.module(given.pop("x"), **given, **values), expected)
    assert {"b", "c"} & graph.calls.keys() == ({"b"} if "extra" in names else set()) | (
        {"c"} if values.get("again") else set()
    )
    ours, theirs = inspect.signature(graph.module.forward), inspect.signature(model.forward)
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in theirs.parameters.values()
    ]
    assert not [node for node in graph.nodes if "assert" in str(node.target)]
    assert graph.constants.keys() == {"extra", "again"} - set(names)
    # Older torch.fx (2.11) cannot pickle annotations that are text, as those of this file.
    assert not [node for node in graph.nodes if isinstance(node.type, str)]
    # A captured module is captured, copied and pickled like any other.
    loaded = pickle.loads(pickle.dumps(graph.module))
    assert torch.equal(loaded(tensors["x"].double(), **given, **values), expected)
    again = capture(copy.deepcopy(graph.module), (tensors["x"].double(),), given | values)
    assert torch.equal(again.module(tensors["x"].double(), **given, **values), expected)


class Stars(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)

    def forward(self, x: Tensor, *rest: Tensor, factor: float = 1.0, **options: Tensor) -> Tensor:
        if rest:
            x = x + rest[0]
        if "shift" in options:
            x = x + options["shift"]
        return self.a(x) * factor


def test_arguments_with_stars_that_are_left_out_are_empty() -> None:
    model, x = Stars(), torch.randn(2, 3)
    graph = capture(model, x)
    assert graph.constants == {"*rest": (), "**options": {}}
    assert torch.equal(graph.module(x), model(x))
    # A number that is computed with is an argument still.
    assert torch.equal(graph.module(x, factor=3.0), model(x, factor=3.0))
    parameters = inspect.signature(graph.module.forward).parameters.values()
    assert [str(p).partition("=")[0].partition(":")[0].strip() for p in parameters] == [
        "x", "*rest", "factor", "**options"
    ]  # fmt: skip


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        y = self.a(x)
        return y if extra is None else y + self.b(extra)


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor, steps: int = 2) -> Tensor:
        for _ in range(steps):
            x = self.a(x)
        return x


def test_a_default_that_cannot_be_traced_is_constant() -> None:
    model, x = Steps(), torch.randn(2, 3)
    graph = capture(model, x)
    assert graph.constants == {"steps": 2}
    assert len(graph.calls["a"]) == 2
    assert torch.equal(graph.module(x), model(x))
    with pytest.raises(ModelError, match="cannot trace Steps"):
        capture(model)


def test_without_example_inputs_every_argument_is_traced() -> None:
    model, x = Optional(), torch.randn(2, 3)
    graph = capture(model)
    assert not graph.constants
    assert list(graph.calls) == ["a", "b"]
    assert torch.equal(graph.module(x, x), model(x, x))
    assert list(capture(model, x).calls) == ["a"]


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, batch: dict[str, Tensor], pair: list[Tensor]) -> dict[str, Tensor]:
        first, second = pair
        y = self.a(batch["image"]) + self.b(batch["meta"]) + first * second
        return {"y": y + torch.cat(pair, 1).sum(1, keepdim=True)}


def test_nested_inputs() -> None:
    model = Nested()
    batch = {"image": torch.randn(2, 3), "meta": torch.randn(2, 2)}
    pair = [torch.randn(2, 1), torch.randn(2, 1)]
    for arguments in (
        (batch, pair),
        Inputs((batch,), {"pair": pair}),
        {"batch": batch, "pair": pair},
    ):
        graph = capture(model, arguments)
        assert torch.equal(graph.module(batch, pair)["y"], model(batch, pair)["y"])
        assert [shape_of(node) for node in graph.calls["a"] + graph.calls["b"]] == [(2, 4), (2, 4)]
    graph = capture(model, (batch,), {"pair": pair})
    assert torch.equal(graph.module(batch, pair=pair)["y"], model(batch, pair)["y"])


def test_arguments_that_the_forward_does_not_take_are_refused() -> None:
    x = torch.randn(5, 3)
    with pytest.raises(ModelError, match=r"does not run.*shape \(5, 3\), \(5, 3\): .*'mask'"):
        capture(Options(), (x, x))
    with pytest.raises(ModelError, match="unexpected keyword argument 'masks'"):
        capture(Options(), (x,), {"mask": x, "masks": x})


def test_inputs() -> None:
    x, y, z = torch.zeros(1), torch.ones(2, 3), torch.ones(4)
    assert Inputs.of(x).args == (x,)
    assert Inputs.of([x, {"y": y}]).args == (x, {"y": y})
    assert Inputs.of({"x": x}).kwargs == {"x": x}
    nested = Inputs((x, {"y": [y, None]}), {"z": z, "flag": True})
    assert Inputs.of(nested) is nested
    assert [t is u for t, u in zip(nested.tensors(), (x, y, z), strict=True)] == [True] * 3
    assert nested.shapes == ((1,), (2, 3), (4,))
    doubled = nested.map(lambda t: t.double())
    assert [t.dtype for t in doubled.tensors()] == [torch.float64] * 3
    assert doubled.args[1]["y"][1] is None
    assert doubled.kwargs["flag"] is True
    model, mask = Options(), torch.ones(5, 1)
    called = Inputs((torch.ones(5, 3),), {"mask": mask}).call(model)
    assert isinstance(called, Tensor)
    assert torch.equal(called, model(torch.ones(5, 3), mask=mask))
    with pytest.raises(ConfigError, match="mapping of keyword arguments, not int"):
        Inputs.of(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"1 is no name.*\(batch,\)"):
        Inputs.of({1: x})  # type: ignore[dict-item]


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Tensor) -> Tensor:
        return x


class Mine(nn.Linear):
    pass


def test_tables_find_modules_from_the_most_derived_class() -> None:
    table: TargetTable[str] = TargetTable()
    table.add("Mine", "by bare name")
    table.add(nn.Module, "module")
    table.add("torch.nn.modules.linear.Linear", "by name")
    table.add(nn.Linear, "by class")
    assert table.find_module(nn.Linear(1, 1)) == ["by class", "by name", "module"]
    assert table.find_module(Mine(1, 1)) == ["by bare name", "by class", "by name", "module"]
    assert table.find_module(nn.ReLU()) == ["module"]
    table.add("torch.nn.modules.linear.Linear", "override")
    assert table.find_module(nn.Linear(1, 1))[0] == "override"


def test_tables_find_functions_and_methods() -> None:
    table: TargetTable[int] = TargetTable()
    table.add(torch.relu, 1)
    table.add("torch.nn.functional.gelu_like", 2)
    table.add("torch.nn.functional.softmax", 3)
    table.add(nn.functional.softmax, 4)
    table.add("view", 5)
    table.add("view", 6)
    assert table.find_function(torch.relu) == [1]
    assert table.find_function(nn.functional.softmax) == [4, 3]
    assert table.find_method("view") == [6, 5]
    assert table.find_method("relu") == []
    for function in (
        Unhashable(),
        torch.add,
        len,
        operator.add,
        torch.ops.aten.add.Tensor,
        nn.Linear,
    ):
        assert table.find_function(function) == []
    for odd in (Unhashable(), 3, ""):
        with pytest.raises(ConfigError, match="a target is a class, a function"):
            table.add(odd, 0)  # type: ignore[arg-type]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class ByClass(Block):
    pass


class ByName(Block):
    pass


class ByAttribute(Block):
    snello_leaf = True


def test_registered_leaves_are_one_operation() -> None:
    assert list(capture(nn.Sequential(Block())).calls) == ["0.inner"]
    register_leaf(ByClass)
    register_leaf(f"{ByName.__module__}.ByName")
    model = nn.Sequential(Block(), ByClass(), ByName(), ByAttribute())
    assert list(capture(model).calls) == ["0.inner", "1", "2", "3"]


def test_the_old_name_tells_the_new_one() -> None:
    with pytest.raises(
        ImportError, match=r"snello\.graph\.trace is called snello\.graph\.capture now"
    ):
        from snello.graph import trace  # noqa: F401
    with pytest.raises(AttributeError, match="no attribute 'tracer'"):
        snello.graph.tracer  # noqa: B018
