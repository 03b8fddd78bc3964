"""Pass 7: make the plan, and the values of the constants in the lean model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, fx

from snello.simplification.bypasses import Skipped
from snello.simplification.ir.channels import Layout
from snello.simplification.ir.edits import Fill
from snello.simplification.ir.plan import LayerPlan, SimplificationPlan
from snello.simplification.ops.operation import Edit, Lowered, Placement, adapter

from .facts import Arrangement, Facts
from .refused import rule_of


@dataclass(frozen=True)
class Decision:
    """A plan with the values of the folded constants.

    Attributes:
        plan: the plan.
        values: key in the lean model's `state_dict` -> float64 value.
    """

    plan: SimplificationPlan
    values: Mapping[str, Tensor]


def lower(
    facts: Facts,
    arrangement: Arrangement,
    overwritable: frozenset[fx.Node],
    draft: SimplificationPlan,
) -> Decision:
    """Turn the arrangement into records.

    1. Operations are lowered in the order of the graph, then bypasses. An operand of a node without
       an operation gets an adapter to full width.
    2. A bypass adds its fold to the layer that skips channels.
    3. Equal adapters of several readers are merged.
    4. Inserted modules are named by kind and number, and by generation in a model that was lean
       before.
    5. If no neuron is removed, the plan changes nothing, not even the order of channels.

    Args:
        facts: facts about the model.
        arrangement: its layouts.
        overwritable: nodes whose memory sums may overwrite.
        draft: a plan with all other fields set.

    Requires:
        All attributes of `facts`; an arrangement of the same model.

    Ensures:
        A plan that `snello.simplification.rewrite.apply` can apply to the captured model,
        with edits in the order of their stages.
    """
    lowered = {node: _lower(facts, arrangement, overwritable, node) for node in facts.operations}
    if not _removes(facts, arrangement, lowered.values()):
        layers = {
            name: _untouched(x) for part in lowered.values() for name, x in part.layers.items()
        }
        return Decision(replace(draft, layers=layers), {})
    skipped = dict(_skipped(facts, arrangement))
    for node, records in skipped.items():
        lowered[node] = _lower(facts, arrangement, overwritable, node, records)
    edits = [edit for part in lowered.values() for edit in part.edits]
    edits += [edit for records in skipped.values() for edit in records.edits]
    named = list(_named([*edits, *_whole(facts, arrangement)], draft.generation - 1))
    values = {key: value for part in lowered.values() for key, value in part.values.items()}
    for edit in named:
        name = getattr(edit.record, "name", "")
        values.update({f"{name}.{buffer}": value for buffer, value in edit.values.items()})
    plan = replace(
        draft,
        layers={name: x for part in lowered.values() for name, x in part.layers.items()},
        attentions={name: x for part in lowered.values() for name, x in part.attentions.items()},
        norms={name: x for part in lowered.values() for name, x in part.norms.items()},
        parameters={name: x for part in lowered.values() for name, x in part.parameters.items()},
        edits=tuple(sorted((edit.record for edit in named), key=lambda record: record.stage)),
    )
    return Decision(plan, values)


_NOWHERE = Layout.whole(0)


def _lower(
    facts: Facts,
    arrangement: Arrangement,
    overwritable: frozenset[fx.Node],
    node: fx.Node,
    skipped: Skipped | None = None,
) -> Lowered:
    placement = Placement(
        received=arrangement.received[node],
        wanted=arrangement.wanted[node],
        produced=arrangement.layouts.get(node, _NOWHERE),
        overwritable=overwritable,
        folds=() if skipped is None else (skipped.fold,),
    )
    with rule_of(node):
        return facts.operations[node].lower(placement)


def _removes(facts: Facts, arrangement: Arrangement, lowered: Iterable[Lowered]) -> bool:
    """True if any neuron is removed."""
    if any(part.attentions for part in lowered):
        return True
    layouts = (
        arrangement.layouts[n] for n, operation in facts.operations.items() if operation.produces
    )
    return any(len(own.order) < own.width for own in layouts)


def _untouched(layer: LayerPlan) -> LayerPlan:
    return replace(
        layer, kept_outputs=tuple(range(layer.outputs)), kept_inputs=tuple(range(layer.inputs))
    )


def _skipped(facts: Facts, arrangement: Arrangement) -> Iterator[tuple[fx.Node, Skipped]]:
    for node, bypass in facts.bypasses.items():
        if (records := bypass.lower(arrangement.layouts)) is not None:
            yield node, records


def _whole(facts: Facts, arrangement: Arrangement) -> Iterator[Edit]:
    for reader, operand in facts.whole_reads():
        own = arrangement.layouts[operand]
        if not own.is_natural:
            yield adapter(operand, reader, facts.axes[operand], own, Layout.whole(own.width))


def _named(edits: list[Edit], generation: int) -> Iterator[Edit]:
    """The edits with equal adapters merged and with names for the inserted modules."""
    # Names must differ from those that an earlier simplification has put into the model.
    prefix = f"snello_{generation}" if generation else "snello"
    count: dict[str, int] = {}
    for edit in _merged(edits):
        kind = edit.record.inserts
        if not kind:
            yield edit
            continue
        number = count[kind] = count.get(kind, -1) + 1
        yield edit.named(f"{prefix}_{kind}_{number}")


def _merged(edits: list[Edit]) -> list[Edit]:
    """The edits, with adapters that differ only in their readers merged into the first."""
    found: list[Edit] = []
    places: dict[Fill, list[int]] = {}
    for edit in edits:
        if not isinstance(edit.record, Fill):
            found.append(edit)
            continue
        key = replace(edit.record, readers=())
        twin = next((i for i in places.get(key, ()) if _same_values(found[i], edit)), None)
        if twin is None:
            places.setdefault(key, []).append(len(found))
            found.append(edit)
            continue
        known = found[twin].record
        assert isinstance(known, Fill)
        readers = tuple(dict.fromkeys((*known.readers, *edit.record.readers)))
        found[twin] = found[twin].read_by(readers)
    return found


def _same_values(a: Edit, b: Edit) -> bool:
    return a.values.keys() == b.values.keys() and all(
        a.values[k].equal(b.values[k]) for k in a.values
    )
