"""Two processes: equal batches, no common sample, the same scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from curation_samples import METHODS, SAMPLES, dataset
from pair import in_two_processes
from snello.curation import DynamicSubset, RandomSubset, Recorder
from snello.errors import ConfigError

EPOCHS = 4


def _everything(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: _trained(name) for name in METHODS}
    found["own sampler"] = _trained("infobatch", DistributedSampler(dataset(), seed=7))
    found["resumed"] = all(_resumed(name) for name in ("infobatch", "infobatch by batch"))
    found["recorded"] = _recorded(rank)
    torch.manual_seed(rank)  # ranks that are offered different orders
    with pytest.raises(ConfigError, match="the ranks do not do the same"):
        list(RandomSubset(dataset(), 0.3).sampler(RandomSampler(dataset())))
    return found


def _made(name: str, inner: Any = None) -> tuple[DynamicSubset, DataLoader[Any]]:
    keep = METHODS[name](dataset())
    return keep, DataLoader(keep, 8, sampler=keep.sampler(inner))


def _epoch(keep: DynamicSubset, loader: DataLoader[Any], stop: int | None = None) -> list[Tensor]:
    """Weigh other losses on every rank, as models that have drifted apart would give."""
    seen = []
    for (inputs, _), index in loader:
        keep.weigh(inputs.pow(2).sum(1) / (1 + distributed.get_rank() + keep.moment), index)
        seen.append(index)
        if len(seen) == stop:
            break
    return seen


def _trained(name: str, inner: Any = None) -> dict[str, Any]:
    keep, loader = _made(name, inner)
    batches = [_epoch(keep, loader) for _ in range(EPOCHS)]
    keep.state_dict()  # exchanges the last losses
    return {"batches": batches, "scores": keep.scores}


def _resumed(name: str) -> bool:
    """From the first rank's state, taken within an epoch, in which a window of batches is open."""
    keep, loader = _made(name)
    whole = [_epoch(keep, loader) for _ in range(4)][1:]
    keep, loader = _made(name)
    _epoch(keep, loader)
    begun = _epoch(keep, loader, 3)
    states = [keep.state_dict()]
    distributed.broadcast_object_list(states)
    keep, loader = _made(name)
    keep.load_state_dict(states[0])
    rest = [_epoch(keep, loader) for _ in range(3)]
    found, expected = ([i for epoch in epochs for i in epoch] for epochs in ([begun, *rest], whole))
    return torch.equal(torch.cat(found), torch.cat(expected))


def _recorded(rank: int) -> Any:
    recorder = Recorder(4)
    for epoch in range(2):
        index = torch.tensor([0, 1]) + 2 * ((rank + epoch) % 2)
        recorder.record(torch.eye(2)[index % 2] * (index[:, None] + epoch), index % 2, index)
        recorder.step()
    found = recorder.recording()
    return found.probability, found.labels, found.presentations


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return in_two_processes(_everything)


@pytest.mark.parametrize("name", [*METHODS, "own sampler"])
def test_two_ranks_get_equal_batches_without_a_common_sample(
    ranks: list[dict[str, Any]], name: str
) -> None:
    first, second = (found[name] for found in ranks)
    for ours, theirs in zip(first["batches"], second["batches"], strict=True):
        assert [len(batch) for batch in ours] == [len(batch) for batch in theirs]
        together = torch.cat([*ours, *theirs])
        assert len(torch.unique(together)) == len(together)
    assert torch.equal(first["scores"].nan_to_num(), second["scores"].nan_to_num())


def test_the_remainder_comes_first_in_the_next_epoch(ranks: list[dict[str, Any]]) -> None:
    """The first epoch of InfoBatch has all 103 samples, of which one is left."""
    batches = [found["infobatch"]["batches"] for found in ranks]
    (missing,) = set(range(SAMPLES)) - set(torch.cat([*batches[0][0], *batches[1][0]]).tolist())
    assert int(batches[0][1][0][0]) == missing


def test_a_state_of_one_rank_resumes_all(ranks: list[dict[str, Any]]) -> None:
    assert all(found["resumed"] for found in ranks)


def test_recorders_share_what_each_has_seen(ranks: list[dict[str, Any]]) -> None:
    reference = Recorder(4)
    index = torch.arange(4)
    for epoch in range(2):
        reference.record(torch.eye(2)[index % 2] * (index[:, None] + epoch), index % 2, index)
        reference.step()
    expected = reference.recording()
    for found in ranks:
        probability, labels, presentations = found["recorded"]
        assert torch.equal(probability, expected.probability)
        assert torch.equal(labels, expected.labels)
        assert presentations == 8
