"""A soak: random sequences of everything that may happen to a model in training; the promises hold
after every step.

After each action what is pruned is zero, frozen neurons have not moved, the state of the optimizers
fits their parameters, and `simplify` gives the same outputs. Sixteen sequences are in the suite; two
thousand behind the ``exhaustive`` marker, one in fifty of them with inductor.
"""

from __future__ import annotations

import copy
import io
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from snello import simplify
from snello.equilibrium import NEq
from snello.neurons import Masks, neuron_count, spread
from snello.pruning import Pin, Pruner, Ratio

pytestmark = pytest.mark.usefixtures("one_thread")

ACTIONS = 20
BLOCK = 25
"""Sequences in a test behind the marker: about half a minute."""
INDUCTOR = shutil.which("g++") is not None


def _mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 14), nn.ReLU(), nn.Linear(14, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def _convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 3),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "mlp": (_mlp, (6,)),
    "convnet": (_convnet, (2, 6, 6)),
}

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.02),
    "momentum": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.005, weight_decay=0.1, amsgrad=True),
    "fused": lambda p: torch.optim.Adam(p, 0.005, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.002, momentum=0.5, weight_decay=0.1),
}


@dataclass
class _World:
    """A model in training, with everything that holds some of its weights."""

    random: random.Random
    model: nn.Module
    shape: tuple[int, ...]
    backend: str
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    pruner: Pruner | None = None
    neq: NEq | None = None
    average: AveragedModel | None = None
    run: Callable[..., Tensor] | None = None
    amp: bool = False
    still: list[tuple[nn.Parameter, Tensor, Tensor]] = field(default_factory=list)
    trail: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def batch(self, size: int = 8) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.random.randrange(1000))
        x = torch.randn(size, *self.shape, generator=generator).to(self.dtype)
        return x, torch.randint(3, (size,), generator=generator)

    # Actions; each leaves the world consistent

    def renew_optimizers(self) -> None:
        """One optimizer, or one for each half of the parameters; those before are gone."""
        parameters = list(self.model.parameters())
        cut = self.random.choice([len(parameters), len(parameters) // 2])
        parts = [part for part in (parameters[:cut], parameters[cut:]) if part]
        self.optimizers = [
            OPTIMIZERS[self.random.choice(sorted(OPTIMIZERS))](part) for part in parts
        ]

    def train(self) -> None:
        self.model.train()
        for _ in range(self.random.randint(1, 3)):
            x, y = self.batch()
            self.model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.amp):
                run = self.model if self.run is None else self.run
                loss = F.cross_entropy(run(x).float(), y)
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.model)

    def prune(self) -> None:
        if self.pruner is None:
            granularity = self.random.choice(["weight", "neuron"])
            given = self.random.choice([self.optimizers, None])
            self.pruner = Pruner(self.model, given, granularity=granularity, amount=Ratio(0.2))  # type: ignore[arg-type]
            if self.average is not None:
                self.pruner.follow(self.average)
        self.pruner.amount = Ratio(self.random.choice([0.2, 0.4, 0.6]))
        self._thawed()  # pruning may take weights of frozen neurons
        self.pruner.prune()

    def freeze(self) -> None:
        if self.neq is None:
            self.neq = NEq(self.model, self.optimizers, self.batch(4)[0], dispatch="fixed")
        masks = {}
        for name, layer in self.neq.freezer.layers.items():
            share, count = self.random.choice([0.0, 0.3, 1.0]), neuron_count(layer)
            masks[name] = torch.tensor([self.random.random() < share for _ in range(count)])
        self.neq.apply(masks)
        self._note_still(masks)

    def thaw(self) -> None:
        if self.neq is not None:
            self.neq.remove()
        self.neq, self.still = None, []

    def _thawed(self) -> None:
        if self.neq is not None:
            self.neq.apply({})
        self.still = []

    def _note_still(self, masks: Masks) -> None:
        self.still = []
        for name, mask in masks.items():
            layer = self.model.get_submodule(name)
            for key, parameter in layer.named_parameters(recurse=False):
                rows = spread(layer, mask) if key == "weight" and parameter.dim() > 1 else mask
                frozen = rows.expand(parameter.shape)
                self.still.append((parameter, frozen, parameter.detach()[frozen].clone()))

    def simplify(self) -> None:
        """Go on with the lean model and the rebound optimizer; pruner and NEq end with the old
        one.
        """
        x, _ = self.batch(3)
        self.model.eval()
        with torch.no_grad():
            before = self.model(x)
        self.thaw()
        single = len(self.optimizers) == 1
        lean = simplify(self.model, x, optimizer=self.optimizers[0] if single else None)
        with torch.no_grad():
            scale = float(before.abs().max()) or 1.0
            tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}[self.dtype]
            assert float((lean(x) - before).abs().max()) <= tolerance * scale
        if sum(p.numel() for p in lean.parameters()) == sum(
            p.numel() for p in self.model.parameters()
        ):
            if single:
                self.renew_optimizers()
            return
        self.model, self.pruner, self.average, self.run = lean, None, None, None
        if not single:
            self.renew_optimizers()

    def check_simplify(self) -> None:
        x, _ = self.batch(3)
        self.model.eval()
        twin = copy.deepcopy(self.model).double()
        lean = simplify(twin, x.double())
        with torch.no_grad():
            before = twin(x.double())
            assert float((lean(x.double()) - before).abs().max()) <= 1e-9 * (
                float(before.abs().max()) or 1.0
            )

    def save_and_load(self) -> None:
        buffer = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
                    "pruner": self.pruner.state_dict() if self.pruner else None}, buffer)  # fmt: skip
        self.train_without_note()
        buffer.seek(0)
        found = torch.load(buffer, weights_only=True)
        parts = [lambda: self.model.load_state_dict(found["model"])]
        if self.pruner is not None:
            pruner = self.pruner
            parts.append(lambda: pruner.load_state_dict(found["pruner"]))  # type: ignore[arg-type, return-value]
        self.random.shuffle(parts)
        for load in parts:
            load()
        for optimizer, state in zip(self.optimizers, found["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for name, value in self.model.state_dict().items():
            assert torch.equal(value, found["model"][name]), name

    def train_without_note(self) -> None:
        average, self.average = self.average, None
        self.train()
        self.average = average

    def load_dense(self) -> None:
        """Weights of nobody's are loaded over the model: what is pruned stays so."""
        if self.pruner is None or self.neq is not None:
            return
        state = {
            n: v + 0.01 if v.is_floating_point() else v for n, v in self.model.state_dict().items()
        }
        self.model.load_state_dict(state)

    def deepcopy(self) -> None:
        """Go on with copies of everything; NEq ends with the original."""
        self.thaw()
        self.model, self.optimizers, self.pruner = copy.deepcopy(
            (self.model, self.optimizers, self.pruner)
        )
        self.average, self.run = None, None
        if self.pruner is not None:
            self.pruner._followers.clear()

    def copy_alone(self) -> None:
        """Go on with a copy of the model alone, which keeps its masks without a pruner."""
        self.thaw()
        masks = dict(self.pruner.masks) if self.pruner is not None else {}
        self.model = copy.deepcopy(self.model)
        self.average, self.run = None, None
        self.renew_optimizers()
        self.pruner = None
        self.train()
        named = dict(self.model.named_parameters())
        assert all(not named[name].detach()[~mask].any() for name, mask in masks.items())

    def refit(self) -> None:
        """Another pruner, as a second fit makes one: it begins with the masks of the last."""
        if self.pruner is None:
            return
        masks, granularity = dict(self.pruner.masks), self.pruner.granularity
        if self.random.random() < 0.5:
            self.pruner.remove()
        self.renew_optimizers()
        self.pruner = Pruner(
            self.model, self.optimizers, granularity=granularity, amount=Ratio(0.2)
        )
        if self.average is not None:
            self.pruner.follow(self.average)
        for name, mask in masks.items():
            if not bool(mask.all()):
                assert not (self.pruner.masks[name] & ~mask).any(), name

    def compile(self) -> None:
        self.run = torch.compile(self.model, backend=self.backend)  # type: ignore[assignment]

    def ema(self) -> None:
        if self.average is None:
            update = get_ema_multi_avg_fn(0.9)
            self.average = AveragedModel(self.model, multi_avg_fn=update, use_buffers=True)
            if self.pruner is not None:
                self.pruner.follow(self.average)

    def switch_amp(self) -> None:
        self.amp = not self.amp and self.dtype is torch.float32

    def move(self) -> None:
        """Another dtype; the optimizers begin anew, as their state has the other one."""
        other = torch.float64 if self.dtype is torch.float32 else torch.float32
        self.thaw()
        self.model.to(other)
        self.amp = False
        self.average = None
        if self.pruner is not None:
            self.pruner._followers.clear()
        for optimizer in self.optimizers:
            optimizer.state.clear()

    # What holds after every action

    def check(self) -> None:
        named = dict(self.model.named_parameters())
        if self.pruner is not None:
            for name, mask in self.pruner.masks.items():
                assert not named[name].detach()[~mask].any(), f"{name}: revived"
                if self.average is not None:
                    averaged = dict(self.average.module.named_parameters())[name]
                    assert not averaged.detach()[~mask].any(), f"{name}: lives on in the average"
        for parameter, frozen, before in self.still:
            assert torch.equal(parameter.detach()[frozen], before), "a frozen neuron moved"
        own = {id(p) for p in named.values()}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                assert id(parameter) in own, "the optimizer holds a stranger"
                for value in state.values():
                    assert not isinstance(value, Tensor) or value.shape in (
                        parameter.shape,
                        torch.Size([]),
                    )
        assert all(p.isfinite().all() for p in named.values())


ACTION_NAMES = [
    "train", "train", "train", "prune", "prune", "freeze", "freeze", "thaw", "simplify", "check_simplify",
    "save_and_load", "load_dense", "deepcopy", "copy_alone", "refit", "compile", "ema", "switch_amp", "move",
    "renew_optimizers",
]  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _sequence(seed: int, compiler: str = "eager") -> None:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    torch.compiler.reset()
    build, shape = NETWORKS[chance.choice(sorted(NETWORKS))]
    world = _World(
        chance, build().to(chance.choice([torch.float32, torch.float64])), shape, compiler
    )
    world.renew_optimizers()
    with _quiet():
        for _ in range(ACTIONS):
            action = chance.choice(ACTION_NAMES)
            world.trail.append(action)
            try:
                getattr(world, action)()
                world.check()
            except BaseException as error:
                error.add_note(f"seed {seed}, after: {' '.join(world.trail)}")
                raise


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", range(16))
def test_a_random_life(seed: int) -> None:
    _sequence(seed)


@pytest.mark.exhaustive
@pytest.mark.parametrize("block", range(80))
def test_two_thousand_random_lives(block: int) -> None:
    for seed in range(BLOCK * block, BLOCK * (block + 1)):
        _sequence(seed, "inductor" if seed % 50 == 49 and INDUCTOR else "eager")


@pytest.mark.exhaustive
def test_the_soak_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the masks out of force, the same sequences fail."""
    monkeypatch.setattr(Pin, "after", lambda *_: None)
    failed = 0
    for seed in range(12):
        try:
            _sequence(seed)
        except AssertionError as error:
            failed += "revived" in str(error)
    assert failed
