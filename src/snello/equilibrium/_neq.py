"""The object for the training loop, which runs the probe, selects neurons and freezes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snello.errors import ConfigError, DivergenceError, check_count, check_state
from snello.graph import Example
from snello.neurons import neuron_count, weighted_layers
from snello.optimizers import Optimizers
from snello.wrappers import unwrapped, wrappers_of

from ._agree import from_first_rank
from ._dispatch import Dispatch, DispatchMode
from ._flops import forward_use, paper_flops
from ._freezer import Freezer
from ._layers import CHOSEN, HEAD, monitored_layers
from ._probe import Probe, similarity
from ._records import EquilibriumStep
from ._selection import (
    Formula,
    Selection,
    Velocity,
    WatchedLayer,
    check_selection,
    show,
    whole_layers,
)
from ._whole import wholes
from ._worth import Worth


class UpdateOptions(TypedDict, total=False):
    """Types of the keyword options of `SelectiveUpdate`, where they are described."""

    warmup: int
    exclude: Iterable[str]
    kinds: Iterable[str] | None
    positions: int | None
    dispatch: DispatchMode
    only_if_faster: bool


class SelectiveUpdate:
    """Freeze the neurons that a selection names at each call of
    [`step`][snello.equilibrium.SelectiveUpdate.step].

    The time between two calls of [`step`][snello.equilibrium.SelectiveUpdate.step] may be an epoch
    or any number of iterations.

    The weights of frozen neurons stay bit-identical, also with momentum and weight decay. The
    forward pass does not change, and BatchNorm statistics are still updated. Masks are kept until
    the next step or [`remove`][snello.equilibrium.SelectiveUpdate.remove].

    Projections of attention whose weights a module uses without calling a layer are watched, too:
    `qkv` and `proj` of torchvision's window attention, and `in_proj` and `out_proj` of
    `MultiheadAttention`, where `in_proj` is a name for the attention's own `in_proj_weight`. They
    save time once all their neurons are frozen; before that their dense gradient is masked.
    Parameters in no watched layer, such as class tokens, embeddings, tables of relative positions
    and the scales of RMSNorm, rest as soon as all watched layers do that run before their last use,
    or the first layer, if they are used before it. Those of a module with layers also rest
    together with these, if all of them are watched and have more parameters. The head, excluded
    layers and those of other `kinds` are always updated.

    A copy by `deepcopy`, in one call with the model and the optimizers, freezes the copied neurons.

    In distributed training every process calls [`step`][snello.equilibrium.SelectiveUpdate.step]
    and runs the probe, so that each can save and restore its state, but all ranks use the
    similarities and masks of the first rank. The probes of the other ranks may have different
    samples.

    Args:
        model: the model in training. Its parameters are never replaced. It may be wrapped in
            `DataParallel`, `torch.compile`, or `DistributedDataParallel` with
            `find_unused_parameters=True`.
        optimizer: the optimizer that trains it; a list if there are several; None if there is none
            yet. Every trained parameter of the watched layers must be in one of them. Frozen rows
            are kept through the steps of any optimizer, also of one that is created later.
        probe: a few training inputs under evaluation transforms, the same during the whole training:
            a tensor, or the model's arguments as a tuple or by name. The outputs of all watched
            layers on it are kept in memory.
        selection: the rule that decides which neurons are frozen.
        warmup: number of the call of `step` that is the first to freeze neurons, at least 1.
        exclude: names of layers that are always updated, in addition to the head.
        kinds: kinds of layers to watch, some of "conv" (also transposed), "batchnorm", "layernorm"
            and "linear"; None for all. The others are always updated.
        positions: number of spatial positions to keep of every probe output, instead of all; see
            [`snello.equilibrium.sketch`][] for the memory that it saves and the error.
        dispatch: "measured" times once per shape whether computing only the active rows is faster
            than masking the dense gradient; "fixed" decides by a rule (on accelerators, never), so
            that two runs are bit-identical.
        only_if_faster: apply masks only if a training step on the probe is measured to be faster
            with them. If it is not, as in a network too small to gain, nothing is frozen, no hook
            is attached, and the step's `note` says so. Once it would not pay with most neurons
            frozen either, the probe is not run any more. For one process.

    Attributes:
        model: the model, unwrapped.
        wrapped: the model as it was given.
        optimizers: the optimizers given, without their wrappers.
        optimizer: the first of them, or None.
        left_alone: layer name -> why its neurons are not watched.
        similarities: layer name -> similarity of each neuron's outputs to those of the step before,
            of the last step; empty before it, or if the selection does not observe.

    Raises:
        ConfigError: for an impossible option, sharded parameters, an optimizer of another model,
            and optimizers that leave out a trained parameter of a watched layer.
        ModelError: if the model does not run on the probe.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        probe: Example,
        selection: Selection,
        *,
        warmup: int = 1,
        exclude: Iterable[str] = (),
        kinds: Iterable[str] | None = None,
        positions: int | None = None,
        dispatch: DispatchMode = "measured",
        only_if_faster: bool = False,
    ) -> None:
        check_count("warmup", warmup, "; nothing is known before one step")
        if dispatch not in get_args(DispatchMode):
            raise ConfigError(
                f"dispatch: must be one of {', '.join(get_args(DispatchMode))}, not {dispatch!r}"
            )
        check_selection(selection, "selection")
        self.wrapped, self.model = model, _unwrapped(model)
        self.selection, self.warmup = selection, warmup
        found, self.left_alone = monitored_layers(self.model, exclude, kinds)
        self._probe = Probe(self.model, probe, positions)
        use = forward_use(self.model, self._probe)
        self._macs = use.macs
        # The layer that gives the outputs need not be the one that is registered last.
        weighted = weighted_layers(self.model)
        last = next((name for name in reversed(use.order) if name in weighted), None)
        if last is not None and found.pop(last, None) is not None:
            self.left_alone[last] = HEAD
        # The module around a layer that is lent rests in its place, but not the model.
        lent = {name for name in use.lent if "." in name}
        layers = {n: found[n] for n in use.order if n in found and (n in use.called or n in lent)}
        self._probe.lent = lent
        uncalled = [name for name in found if name not in layers]
        self.left_alone |= dict.fromkeys(uncalled, "the forward never calls it as a module")
        if not layers:
            raise ConfigError(f"NEq: no layer is left to watch; left alone: {self.left_alone}")
        self._layers = {name: _watched(layer) for name, layer in layers.items()}
        fronts = {key: _front(use.order[:count], layers) for key, count in use.before.items()}
        always = [name for name, reason in self.left_alone.items() if reason in CHOSEN]
        around = wholes(self.model, layers, lent, fronts, always)
        self.freezer = Freezer(layers, optimizer, Dispatch(dispatch), around)
        self.optimizers = self.freezer.optimizers
        self.optimizer = next(iter(self.optimizers), None)
        self._reference = self._probe.outputs(layers) if selection.observes else {}
        if selection.observes:
            show(selection, self._reference)
        self.similarities: dict[str, Tensor] = {}
        self._step = 0
        self._worth = Worth() if only_if_faster else None
        self.only_if_faster = only_if_faster

    @property
    def frozen(self) -> dict[str, Tensor]:
        """Layer name -> boolean tensor of shape `(neurons,)`, true where frozen."""
        return self.freezer.frozen

    def apply(self, frozen: Mapping[str, Tensor]) -> None:
        """Freeze neurons by masks until the next [`step`][snello.equilibrium.SelectiveUpdate.step].

        Args:
            frozen: layer name -> boolean tensor of shape `(neurons,)`, true where frozen; all
                neurons of layers without one are updated.

        Raises:
            ConfigError: for an unknown layer or a mask of another shape or dtype.
        """
        self.freezer.apply(frozen)

    def step(self) -> EquilibriumStep:
        """Decide which neurons are frozen until the next call; call it once an epoch or more often.

        Raises:
            ConfigError: if a watched layer has been replaced.
            DivergenceError: if the probe outputs of a layer are not finite.
        """
        if self._worth is not None and self._worth.given_up:
            self._step += 1
            self.freezer.apply({})
            return self.status()
        self.similarities = self._similarities() if self.selection.observes else {}
        # Also during warm-up: most rules have a state to advance.
        chosen = self.selection.select(self._layers, self.similarities)
        self._step += 1
        masks: Mapping[str, Tensor] = self._agreed(chosen) if self._step >= self.warmup else {}
        if self._worth is not None:
            masks = self._worth.judged(self, self._probe.inputs, masks, self._macs)
        self.freezer.apply(masks)
        return self.status()

    def status(self) -> EquilibriumStep:
        """The share of each layer that is updated, and the FLOPs until the next step."""
        masks = self.freezer.frozen
        learning = {name: len(mask) - int(mask.sum()) for name, mask in masks.items()}
        updated = {name: count / len(masks[name]) for name, count in learning.items()}
        return EquilibriumStep(
            step=self._step,
            updated=updated,
            total=sum(learning.values()) / sum(len(mask) for mask in masks.values()),
            flops=paper_flops(self._macs, updated),
            dense_flops=paper_flops(self._macs, {}),
            note="" if self._worth is None else self._worth.reason,
        )

    def state_dict(self) -> dict[str, Any]:
        """The state on which the next masks depend, as tensors and primitives.

        It contains the probe outputs of the last step, and is therefore as large as the activations
        of the probe, or as their sketch.
        """
        return {
            "step": self._step,
            "frozen": self.frozen,
            "reference": {name: outputs.clone() for name, outputs in self._reference.items()},
            "positions": self._probe.positions,
            "selection": self.selection.state_dict(),
            "worth": {} if self._worth is None else self._worth.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state. Those of the model and the optimizer are loaded separately.

        Raises:
            ConfigError: if it belongs to other layers, another probe, other positions or another
                selection.
        """
        self._check_state(state)
        worth = self._worth if state.get("worth") else None
        if worth is not None:
            worth.check_state(state["worth"])
        self._load_selection(state["selection"])
        if worth is not None:
            worth.load_state_dict(state["worth"])
        self.freezer.apply(state["frozen"])
        self._step = state["step"]
        self._reference = {
            name: outputs.to(self._reference[name], copy=True)
            for name, outputs in state["reference"].items()
        }

    def drop_optimizer_state(self) -> int:
        """Drop the optimizer state of the parameters at rest; call it after `step`.

        The optimizers start it again when layers are unfrozen, as for new parameters: Adam's
        averages from zero. For SGD nothing changes, since the momentum of frozen neurons is zero.

        Returns:
            The memory that was freed, in bytes.
        """
        return self.freezer.drop_state()

    def remove(self) -> None:
        """Unfreeze everything and remove all hooks: layers and optimizer are plain again."""
        self.freezer.remove()

    @property
    def device(self) -> torch.device:
        """Device of the watched layers."""
        return next(p.device for layer in self.freezer.layers.values() for p in layer.parameters())

    def _similarities(self) -> dict[str, Tensor]:
        now = self._probe.outputs(self.freezer.layers)
        if gone := self._layers.keys() - now.keys():
            raise ConfigError(
                f"layer {min(gone)!r} did not run on the probe: build a new {type(self).__name__} after replacing "
                "layers, and exclude those that the model's forward leaves out at times"
            )
        own = {name: similarity(outputs, self._reference[name]) for name, outputs in now.items()}
        phi = from_first_rank(own, self.device)
        for name, values in phi.items():  # after the broadcast, so that all ranks raise or none
            if not torch.isfinite(values).all():
                raise DivergenceError(
                    f"layer {name!r}: its outputs on the probe are not finite at step {self._step + 1}; "
                    "lower the learning rate"
                )
        self._reference = now
        show(self.selection, now)
        return phi

    def _agreed(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Names of no layer are kept, for `Freezer.apply` to refuse.
        return from_first_rank({**whole_layers(self._layers, ()), **masks}, self.device)

    def _load_selection(self, state: Mapping[str, Any]) -> None:
        before = self.selection.state_dict()
        try:
            self.selection.load_state_dict(state)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self.selection.load_state_dict(before)
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"state_dict: its selection is not a {type(self.selection).__name__} as this one: {error!r}"
            ) from error

    def _check_state(self, state: Mapping[str, Any]) -> None:
        tensors = dict[str, Tensor]
        kinds = {
            "step": int, "frozen": tensors, "reference": tensors, "positions": int | None,
            "selection": dict,
        }  # fmt: skip
        check_state(state, kinds, type(self).__name__, {"worth": dict})
        if other := set(state["frozen"]) ^ set(self._layers):
            raise ConfigError(
                f"state_dict: belongs to other layers; they differ in: {', '.join(sorted(other))}"
            )
        for name, mask in state["frozen"].items():
            self.freezer.check(name, mask)
        kept, own = state["positions"], self._probe.positions
        if kept != own:
            raise ConfigError(
                f"state_dict: its probe keeps {kept or 'all'} positions, not {own or 'all'}"
            )
        _check_reference(state["reference"], self._reference)


def _check_reference(reference: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(x.shape) for name, x in reference.items()}
    expected = {name: tuple(x.shape) for name, x in own.items()}
    if shapes != expected:
        name = min(n for n in {*shapes, *expected} if shapes.get(n) != expected.get(n))
        raise ConfigError(
            f"state_dict: its probe outputs do not fit this probe in layer {name!r}: "
            f"{shapes.get(name)} is not {expected.get(name)}; resume with the same probe"
        )


def _unwrapped(model: nn.Module) -> nn.Module:
    inner = unwrapped(model, "NEq")
    for wrapper in wrappers_of(model):
        if isinstance(wrapper, DistributedDataParallel):
            _check_distributed(wrapper)
    return inner


def _check_distributed(model: DistributedDataParallel) -> None:
    if not model.find_unused_parameters or model.static_graph:
        raise ConfigError(
            "model: a layer that is frozen whole gives no gradient, and which layers are changes from step to "
            "step; wrap the model with find_unused_parameters=True and without static_graph"
        )


def _front(before: Iterable[str], layers: Mapping[str, nn.Module]) -> frozenset[str]:
    """The watched layers that have run before; the first of all, if none has."""
    return frozenset(name for name in before if name in layers) or frozenset([next(iter(layers))])


def _watched(layer: nn.Module) -> WatchedLayer:
    trained = sum(p.numel() for p in layer.parameters(recurse=False) if p.requires_grad)
    return WatchedLayer(neuron_count(layer), trained // neuron_count(layer))


class NEq(SelectiveUpdate):
    """NEq: neurons whose outputs have stopped changing get no weight gradient.

    [`SelectiveUpdate`][snello.equilibrium.SelectiveUpdate] with the
    [`Velocity`][snello.equilibrium.Velocity] rule.

    Args:
        model: the model in training.
        optimizer: the optimizer that trains it, a list of several, or None; see
            [`SelectiveUpdate`][snello.equilibrium.SelectiveUpdate].
        probe: a few training inputs under evaluation transforms; the paper's ResNet-32 uses 50.
        eps: bound on the velocity below which a neuron is at equilibrium.
        mu: weight of the last velocity.
        formula: "paper" or "released"; see [`Velocity`][snello.equilibrium.Velocity].
        smoothing: weight of the past in a moving average of the similarities.
        options: `warmup`, `exclude`, `kinds`, `positions`, `dispatch`, `only_if_faster` of
            [`SelectiveUpdate`][snello.equilibrium.SelectiveUpdate], which describes all arguments.

    Raises:
        ConfigError: as [`SelectiveUpdate`][snello.equilibrium.SelectiveUpdate] and
            [`Velocity`][snello.equilibrium.Velocity] do.
        ModelError: if the model does not run on the probe.

    Source: Bragagnolo, Tartaglione, Grangetto, "To update or not to update? Neurons at equilibrium
    in deep models", NeurIPS 2022.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        probe: Example,
        *,
        eps: float = 1e-3,
        mu: float = 0.5,
        formula: Formula = "paper",
        smoothing: float = 0.0,
        **options: Unpack[UpdateOptions],
    ) -> None:
        rule = Velocity(eps, mu, formula, smoothing=smoothing)
        super().__init__(model, optimizer, probe, rule, **options)
