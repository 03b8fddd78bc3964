"""Rate search with one quantisation parameter for all weights, then with one per tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import Tensor, nn

from snello.codec import CodecSettings
from snello.errors import ConfigError
from snello.graph import Example, Inputs
from snello.neurons import is_batchnorm
from snello.simplification import fold_batchnorm, folds_of
from snello.wrappers import copied

from ._allocation import (
    OCTAVE,
    Allocation,
    Table,
    allocate,
    byte_table,
    coarsest_qp,
    curvature_costs,
    probed_costs,
)
from ._correct import Correction
from ._fisher import fisher
from ._probe import Probe
from ._trial import Evaluate, RateSearch, with_tensors
from ._workbench import Form, Workbench, check_bound, first_below, measured

_DEFAULTS = CodecSettings()
_ONE_QP_OCTAVES = 12
LARGE = 0.01
"""Share of the bytes above which a tensor's costs are measured instead of estimated."""

_FINENESS = 8
_PRICES = range(-100 * _FINENESS, 50 * _FINENESS)  # from 1e-30 to 1e15 per byte, 8 to an octave


@dataclass(frozen=True)
class _Options:
    calibration: Sequence[Example]
    per_tensor: bool
    fold: bool | None
    dependent: tuple[bool, ...]
    correct_bias: bool
    refresh_batchnorm: bool
    settings: CodecSettings


def search_rate(
    model: nn.Module,
    evaluate: Evaluate,
    *,
    max_drop: float,
    higher_is_better: bool = False,
    calibration: Tensor | Sequence[Example] | None = None,
    per_tensor: bool | None = None,
    fold: bool | None = None,
    dependent_quantisation: bool | None = None,
    keep_zeros: bool = False,
    correct_bias: bool | None = None,
    refresh_batchnorm: bool | None = None,
    settings: CodecSettings = _DEFAULTS,
) -> RateSearch:
    """Find the smallest bitstream whose decoded model is worse by at most `max_drop`.

    First, one quantisation parameter for all weights is found by bisection; then one for every
    tensor, vectors included, from the cost of its quantisation on the calibration inputs. The
    smaller stream within the bound is returned; it has been decoded and evaluated. The result is
    deterministic if `evaluate` is.

    Args:
        model: the model to code; it is not changed.
        evaluate: function that returns the loss or accuracy of a model on validation data (not on
            test data). Its argument is a copy of the model with decoded weights, in evaluation
            mode, on the model's device.
        max_drop: largest allowed loss of the value, in the unit of `evaluate`.
        higher_is_better: true if `evaluate` returns an accuracy, false for a loss.
        calibration: a batch of inputs, or a sequence of batches (a tuple is one batch of several
            arguments, a mapping one of keyword arguments), without labels. A few hundred inputs are
            enough. Without it, only one quantisation parameter is searched, and the model is
            neither folded nor corrected.
        per_tensor: search one parameter per tensor; None: if `calibration` is given.
        fold: fold BatchNorms into their layers before coding; None tries both if `calibration` is
            given, and takes the smaller stream.
        dependent_quantisation: dependent (true) or uniform (false) quantisation; None tries both
            and takes the smaller stream.
        keep_zeros: keep zero weights exactly zero, as needed for a pruned model; restricts the
            search to uniform quantisation.
        correct_bias: after quantisation, correct biases and running means so that the mean
            activations on the calibration inputs equal the original's; None: if `calibration` is
            given.
        refresh_batchnorm: also correct running means and variances of BatchNorms; None: if
            `calibration` is given.
        settings: the other coding options. With one parameter for all weights, vectors use its
            `nonweight_qp`.

    Returns:
        The model and settings to code, the size, and all trials.

    Raises:
        ConfigError: for contradictory options, an invalid `max_drop`, an `evaluate` that does
            not return a number, or if even the finest quantisation exceeds the bound (the message
            has its value).
        ModelError: if `fold=True` and the model cannot be traced.
        MissingExtraError: without nncodec.

    Source: the allocation is Shoham and Gersho's (1988), with Fisher information as in Choi et al.,
    "Towards the limit of network quantization", ICLR 2017, https://arxiv.org/abs/1612.01543, and
    probes where it does not hold.
    """
    batches = _batches(calibration)
    options = _Options(
        batches,
        _wanted(per_tensor, batches, "per_tensor"),
        fold if fold is None else _wanted(fold, batches, "fold"),
        _dependent(dependent_quantisation, keep_zeros),
        _wanted(correct_bias, batches, "correct_bias"),
        _wanted(refresh_batchnorm, batches, "refresh_batchnorm"),
        settings,
    )
    _check(model, options)
    reference = copied(model)
    before = measured(evaluate, reference)
    bound = check_bound(max_drop, before, higher_is_better)
    bench = Workbench(evaluate, bound, higher_is_better)
    forms = _forms(model, options)
    for form in forms:
        for dependent in options.dependent:
            _search_one_qp(bench, form, _tools(settings, dependent))
    probes = 0
    for form in forms if options.per_tensor else ():
        probes += _search_per_tensor(bench, form, options)
    return _result(bench, before, bound, probes)


def _check(model: nn.Module, options: _Options) -> None:
    if options.settings.qp_of:
        raise ConfigError("settings.qp_of is the result of the search: pass settings without it")
    if not any(p.is_floating_point() and p.numel() for p in model.state_dict().values()):
        raise ConfigError(f"{type(model).__name__} has no floating-point tensor to quantise")


def _wanted(choice: bool | None, batches: Sequence[Example], name: str) -> bool:
    if choice and not batches:
        raise ConfigError(f"{name}=True needs inputs to run the model on: pass calibration")
    return bool(batches) if choice is None else choice


def _batches(calibration: Tensor | Sequence[Example] | None) -> tuple[Example, ...]:
    batches = (
        ()
        if calibration is None
        else (calibration,)
        if isinstance(calibration, Tensor)
        else calibration
    )
    if calibration is not None and not len(batches):
        raise ConfigError("calibration: there is no batch of inputs; pass at least one, or None")
    for batch in batches:
        given = isinstance(batch, (Tensor, tuple, list, Mapping, Inputs))
        if isinstance(batch, (tuple, list)):
            given = all(isinstance(x, Tensor) for x in batch)
        tensors = Inputs.of(batch).tensors() if given else ()
        if not tensors or not all(x.dim() and len(x) for x in tensors):
            raise ConfigError(
                "every batch of calibration must be a tensor with a first dimension of at least 1, "
                "or a tuple or mapping of keywords to such tensors, not a "
                f"{type(batch).__name__}; pass inputs without labels"
            )
    return tuple(batches)


def _dependent(choice: bool | None, keep_zeros: bool) -> tuple[bool, ...]:
    if keep_zeros and choice:
        raise ConfigError(
            "keep_zeros=True with dependent_quantisation=True: dependent quantisation does not "
            "keep zeros exact; switch one of the two off"
        )
    if keep_zeros:
        return (False,)
    return (True, False) if choice is None else (choice,)


def _tools(settings: CodecSettings, dependent: bool) -> CodecSettings:
    # The NNC standard defines codebooks for uniform quantisation only.
    return replace(
        settings, dependent_quantisation=dependent, codebook=settings.codebook and not dependent
    )


def _forms(model: nn.Module, options: _Options) -> list[Form]:
    """The forms that the model can be coded in, with their corrections."""
    models = [] if options.fold else [copied(model)]
    if options.fold or (options.fold is None and options.calibration and _has_batchnorm(model)):
        # Two examples are enough to trace the model.
        folded = fold_batchnorm(model, Inputs.of(options.calibration[0]).map(lambda x: x[:2]))
        if options.fold or folds_of(folded) != folds_of(model):
            models.append(folded)
    return [
        Form(m, folded=len(folds_of(m)) > len(folds_of(model)), correction=_correction(m, options))
        for m in models
    ]


def _has_batchnorm(model: nn.Module) -> bool:
    return any(is_batchnorm(module) for module in model.modules())


def _correction(model: nn.Module, options: _Options) -> Correction | None:
    if not (options.correct_bias or options.refresh_batchnorm):
        return None
    return Correction(
        model, options.calibration, bias=options.correct_bias, batchnorm=options.refresh_batchnorm
    )


def _search_one_qp(bench: Workbench, form: Form, tools: CodecSettings) -> None:
    """One parameter for all weights: an integer, found by bisection."""
    # A model of vectors alone uses nonweight_qp only, so all these settings give the same stream.
    weights = [value for value in form.tensors.values() if value.dim() > 1] or list(
        form.tensors.values()
    )
    top = max(coarsest_qp(value) for value in weights)
    settings_at = cache(lambda qp: replace(tools, qp=qp))
    size_at = cache(lambda qp: form.size(settings_at(qp)))
    qps = range(max(-128, top - OCTAVE * _ONE_QP_OCTAVES), top + 1)
    bench.coarsest(form, settings_at, size_at, qps, "one qp")


def _search_per_tensor(bench: Workbench, form: Form, options: _Options) -> int:
    """Bisect for the price that all tensors share; return the number of cost measurements."""
    curvature = fisher(form.model, options.calibration)
    probe = Probe(form.model, options.calibration)
    for dependent in _promising(bench, options):
        tools = _tools(options.settings, dependent)
        tensors = _basis(bench, form, tools)
        # An all-zero tensor decodes to zeros at any precision: it needs no parameter of its own.
        groups = [names for names in form.groups if tensors[names[0]].any()]
        sizes = _sizes(tensors, groups, tools)
        costs = _costs(
            form, sizes, curvature, probe, tools, None if bench.best is None else bench.best.bytes
        )
        _search_price(bench, form, tools, groups, sizes, costs)
    return probe.runs


def _promising(bench: Workbench, options: _Options) -> tuple[bool, ...]:
    """The kind of quantisation that was best with one parameter; all kinds if none passed."""
    best = bench.best_of("one qp")
    return options.dependent if best is None else (best.settings.dependent_quantisation,)


def _basis(bench: Workbench, form: Form, tools: CodecSettings) -> Mapping[str, Tensor]:
    """Approximation of the tensors to code, with biases corrected for the best single parameter."""
    best = bench.best_of("one qp")
    return form.decode(tools if best is None else replace(tools, qp=best.settings.qp))[0]


def _sizes(
    tensors: Mapping[str, Tensor], groups: Sequence[Sequence[str]], tools: CodecSettings
) -> dict[str, Table]:
    """Bytes of every group at its candidate parameters."""
    # Tied weights are coded under each of their names.
    return {
        names[0]: {
            qp: size * len(names) for qp, size in byte_table(tensors[names[0]], tools).items()
        }
        for names in groups
    }


def _costs(
    form: Form,
    sizes: Mapping[str, Table],
    curvature: Mapping[str, Tensor],
    probe: Probe,
    tools: CodecSettings,
    target: int | None,
) -> dict[str, Table]:
    """Costs of every group: estimated to second order, and measured for the largest groups.

    For coarse quantisation, costs grow much faster than the second-order estimate (for LeNet-5 by a
    factor of 25 instead of 4). Therefore the cost of each large tensor is measured by quantising it
    alone, with parameters around the second-order optimum and with the coarsest one. Tensors
    without a derivative are measured at every second octave.
    """
    costs: dict[str, Table] = {}
    for name, table in sizes.items():
        if name in curvature:
            costs[name] = curvature_costs(form.tensors[name], curvature[name], table)
        else:
            costs[name] = _probed(
                form, name, table, sorted(table)[-1 :: -2 * OCTAVE], probe, tools, {}
            )
    for name, qp in _sketch(sizes, costs, target).items():
        around = [q for q in (qp - OCTAVE, qp, qp + OCTAVE, max(sizes[name])) if q in sizes[name]]
        fine = (
            qp - 3 * OCTAVE
        )  # at fine steps the estimate is accurate, and a measurement is mostly noise
        known = {fine: costs[name][fine]} if name in curvature and fine in sizes[name] else {}
        costs[name] = _probed(form, name, sizes[name], around, probe, tools, known)
    return costs


def _sketch(
    sizes: Mapping[str, Table], costs: Mapping[str, Table], target: int | None
) -> dict[str, int]:
    """Second-order estimate of the large tensors' parameters, for a stream of the target size.

    The default target is a third of the finest stream, about four bits per weight.
    """
    limit = sum(max(table.values()) for table in sizes.values()) / 3 if target is None else target
    index = first_below(lambda i: _at_price(sizes, costs, i).bytes, limit, _PRICES)
    found = _at_price(sizes, costs, min(index, _PRICES[-1]))
    large = {name: sizes[name][qp] for name, qp in found.qp_of.items()}
    return {name: found.qp_of[name] for name, size in large.items() if size >= LARGE * found.bytes}


def _probed(
    form: Form,
    name: str,
    table: Table,
    qps: Sequence[int],
    probe: Probe,
    tools: CodecSettings,
    known: Table,
) -> dict[int, float]:
    """Costs of a group: those in `known`, and measurements at `qps` with only it quantised."""
    names = next(names for names in form.groups if names[0] == name)
    return probed_costs(
        {qp: probe.quantisation_cost(names, qp, tools) for qp in qps} | dict(known), table
    )


def _at_price(sizes: Mapping[str, Table], costs: Mapping[str, Table], index: int) -> Allocation:
    return allocate(sizes, costs, 2.0 ** (index / _FINENESS))


def _search_price(
    bench: Workbench,
    form: Form,
    tools: CodecSettings,
    groups: Sequence[Sequence[str]],
    sizes: Mapping[str, Table],
    costs: Mapping[str, Table],
) -> None:
    @cache
    def at(index: int) -> Allocation:
        return _at_price(sizes, costs, index)

    def settings_at(index: int) -> CodecSettings:
        chosen = at(index).qp_of
        return replace(tools, qp_of={name: chosen[names[0]] for names in groups for name in names})

    # Beyond this price every weight is zero.
    last = first_below(lambda i: at(i).bytes, at(_PRICES[-1]).bytes * (1 + 1e-9) + 1e-9, _PRICES)
    bench.coarsest(
        form, settings_at, lambda i: at(i).bytes, range(_PRICES[0], last + 1), "per tensor"
    )


def _result(bench: Workbench, before: float, bound: float, probes: int) -> RateSearch:
    best = bench.best
    if best is None:
        finest = max(bench.trail, key=lambda trial: trial.bytes)
        raise ConfigError(
            f"no quantisation is within the bound: evaluate returns {before:.6g} before coding, "
            f"{bound:.6g} is allowed, and the finest quantisation (qp {finest.settings.qp}, "
            f"{finest.bytes} bytes) has {finest.value:.6g}; raise max_drop, or lower "
            "settings.nonweight_qp"
        )
    form = bench.form_of(best)
    coded, _ = form.decode(best.settings)
    one_qp, per_tensor = bench.best_of("one qp"), bench.best_of("per tensor")
    return RateSearch(
        model=with_tensors(form.model, coded),
        settings=best.settings,
        bytes=best.bytes,
        before=before,
        after=best.value,
        bound=bound,
        method=best.method,
        folded=best.folded,
        one_qp=one_qp,
        per_tensor=per_tensor,
        trail=tuple(bench.trail),
        evaluations=1 + len(bench.trail),
        probes=probes,
    )
