"""Static scores and selections: their definitions, and the labels that they suspect."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from snello.curation import (
    Kept,
    Recorder,
    Recording,
    aum,
    dual,
    el2n,
    forgetting,
    keep_covering,
    keep_dual,
    keep_highest,
    keep_random,
    noise,
)
from snello.errors import ConfigError, DataError, OutputError
from snello.lab.datasets import load_dataset

EPOCHS, SAMPLES, CLASSES = 12, 300, 4


@pytest.fixture(scope="module")
def logits() -> Tensor:
    """Outputs of epochs that learn samples of different difficulty, (T, N, C)."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(SAMPLES) % CLASSES
    ease = torch.linspace(-0.5, 2, SAMPLES)[:, None] * one_hot(labels, CLASSES)
    time = torch.linspace(0.1, 2, EPOCHS)[:, None, None]
    return time * ease + 0.7 * torch.randn(EPOCHS, SAMPLES, CLASSES, generator=random)


@pytest.fixture(scope="module")
def recording(logits: Tensor) -> Recording:
    return _recorded(logits)


def _recorded(logits: Tensor) -> Recording:
    recorder, labels = Recorder(SAMPLES), torch.arange(SAMPLES) % CLASSES
    for epoch, outputs in enumerate(logits):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        for index in order.split(64):
            recorder.record(outputs[index], labels[index], index)
        recorder.step()
    return recorder.recording()


def test_scores_are_those_of_their_definitions(logits: Tensor, recording: Recording) -> None:
    labels = recording.labels
    assert torch.equal(labels, torch.arange(SAMPLES) % CLASSES)
    p = logits.double().softmax(-1)
    target = one_hot(labels, CLASSES)
    own = (p * target).sum(-1)
    margin = own - (p - 2 * target).amax(-1)
    close = {"rtol": 1e-5, "atol": 1e-6, "check_dtype": False}
    errors = (p - target).norm(dim=-1)
    torch.testing.assert_close(el2n(recording, 4), errors[:4].mean(0), **close)
    torch.testing.assert_close(aum(recording), margin.mean(0), **close)
    torch.testing.assert_close(noise(recording), -margin.mean(0), **close)
    windows = own.unfold(0, 10, 1)
    expected = (windows.std(-1) * (1 - windows.mean(-1))).mean(0)
    torch.testing.assert_close(dual(recording), expected, **close)
    right = logits.argmax(-1) == labels
    lost = (right[:-1] & ~right[1:]).sum(0)
    assert torch.equal(forgetting(recording), torch.where(right.any(0), lost, EPOCHS).float())
    assert recording.presentations == EPOCHS * SAMPLES
    assert recording.seconds > 0


def test_a_sample_not_seen_has_no_score() -> None:
    recorder = Recorder(3)
    for index in (torch.tensor([0, 1]), torch.tensor([0])):
        recorder.record(torch.eye(2)[index], index, index)
        recorder.step()
    found = recorder.recording()
    for score in (el2n(found), aum(found), forgetting(found)):
        assert score.isfinite().tolist() == [True, True, False]
    assert found.labels.tolist() == [0, 1, -1]
    with pytest.raises(DataError, match="2 samples were not seen in every epoch"):
        dual(found, 2)
    with pytest.raises(DataError, match="1 of 3 samples have no score"):
        keep_covering(found, 0.5)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9])
def test_every_selection_keeps_its_number(recording: Recording, ratio: float) -> None:
    chosen = [
        keep_highest(el2n(recording), ratio),
        keep_random(recording.labels, ratio),
        keep_covering(recording, ratio),
        keep_covering(recording, ratio, hard=ratio / 2),
        keep_dual(recording, ratio),
    ]
    for kept in chosen:
        assert len(kept) == len(set(kept.indices.tolist())) == round((1 - ratio) * SAMPLES)
    assert chosen[2].presentations == recording.presentations


def test_selections_follow_their_rules(recording: Recording) -> None:
    scores = el2n(recording)
    kept = keep_highest(scores, 0.6).indices
    dropped = torch.ones(SAMPLES, dtype=torch.bool)
    dropped[kept] = False
    assert scores[kept].min() >= scores[dropped].max()
    counts = torch.bincount(recording.labels[keep_random(recording.labels, 0.5).indices])
    assert counts.max() - counts.min() <= 1
    # The hardest are left out, and small strata are kept whole.
    order = torch.argsort(aum(recording))
    covering = set(keep_covering(recording, 0.5, hard=0.2, strata=10).indices.tolist())
    assert not covering & set(order[: int(0.2 * SAMPLES)].tolist())
    rest = aum(recording)[order[int(0.2 * SAMPLES) :]].double()
    stratum = ((rest - rest.min()) / (rest.max() - rest.min()) * 10).long().clamp(max=9)
    sizes = torch.bincount(stratum, minlength=10)
    members = order[int(0.2 * SAMPLES) :]
    taken = torch.tensor(
        [sum(int(i) in covering for i in members[stratum == k]) for k in range(10)]
    )
    level = taken.max()
    assert ((taken == sizes) | (taken >= level - 1)).all()
    # Different seeds draw different samples, the same seed the same.
    first, again, other = (keep_dual(recording, 0.5, seed=s).indices for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_equal_scores_are_decided_at_random() -> None:
    """In the order of a sorted dataset, the last classes would be left out."""
    scores = torch.cat([torch.ones(10), torch.zeros(1000)])
    first, other = (keep_highest(scores, 0.5, seed=seed).indices for seed in (0, 1))
    assert set(range(10)) <= set(first.tolist())
    assert len(first) == 505
    assert 200 < int((first >= 505).sum()) < 300
    assert not torch.equal(first, other)
    assert torch.equal(first, keep_highest(scores, 0.5).indices)
    assert keep_highest(torch.tensor([3, 0, 2, 1], dtype=torch.uint8), 0.5).indices.tolist() == [
        0,
        2,
    ]


def test_a_file_is_told_from_that_of_other_labels(tmp_path: Path, recording: Recording) -> None:
    labels = recording.labels
    for kept in (
        keep_random(labels, 0.5),
        keep_covering(recording, 0.5),
        keep_dual(recording, 0.5),
        keep_highest(el2n(recording), 0.5, labels=labels),
    ):
        again = Kept.load(kept.save(tmp_path / "kept.json"))
        again.check(SAMPLES, labels)
        with pytest.raises(DataError, match="other labels"):
            again.check(SAMPLES, labels.flip(0))
    path = keep_highest(el2n(recording), 0.5).save(tmp_path / "kept.json")
    fields = json.loads(path.read_text())
    del fields["labels"]  # as written before
    path.write_text(json.dumps(fields))
    Kept.load(path).check(SAMPLES, labels)


def test_a_recorder_keeps_what_buffers_held(recording: Recording) -> None:
    recorder, index, labels = Recorder(3), torch.zeros(1).int(), torch.zeros(1).int()
    for sample in range(3):
        recorder.record(
            torch.eye(3)[sample : sample + 1] * 9, labels.fill_(sample), index.fill_(sample)
        )
    recorder.step()
    found = recorder.recording()
    assert found.labels.tolist() == [0, 1, 2]
    assert (found.margin > 0.9).all()


def test_dual_moves_to_easier_samples_as_the_ratio_grows(recording: Recording) -> None:
    mean = recording.probability.mean(0)
    means = [
        sum(float(mean[keep_dual(recording, ratio, seed=s).indices].mean()) for s in range(8)) / 8
        for ratio in (0.5, 0.7, 0.9)
    ]
    assert means == sorted(means)


def test_a_file_of_kept_samples_round_trips(tmp_path: Path, recording: Recording) -> None:
    kept = keep_covering(recording, 0.3)
    path = kept.save(tmp_path / "kept.json")
    again = Kept.load(path)
    assert torch.equal(again.indices, kept.indices)
    assert {**vars(again), "indices": 0} == {**vars(kept), "indices": 0}
    data = torch.utils.data.TensorDataset(torch.arange(SAMPLES))
    assert [int(x) for (x,) in again.of(data)] == kept.indices.tolist()
    with pytest.raises(DataError, match="chosen from 300 samples, the dataset has 5"):
        again.of(torch.utils.data.TensorDataset(torch.arange(5)))
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        kept.save(tmp_path / "folder")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no file of kept samples"),
        ({"version": 2}, "version 2"),
        ({"indices": [0, 0]}, "given twice"),
        ({"indices": [0, 4]}, "do not fit"),
        ({"indices": [-1]}, "do not fit"),
        ({"indices": []}, "K ≥ 1"),
        ({"indices": [0.5]}, "integers"),
        ({"indices": [True]}, "integers"),
        ({"indices": [10**30]}, "integers"),
        ({"samples": "4"}, "samples"),
        ({"method": None}, "method"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = Kept(torch.tensor([1, 3]), 4, "random", 0.5).save(tmp_path / "kept.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        Kept.load(path)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        Kept.load(tmp_path / "none.json")
    for broken in (b"\xff{", b"[]", b"[" * 100_000):
        (tmp_path / "broken.json").write_bytes(broken)
        with pytest.raises(DataError, match=r"broken\.json is .*write the file again"):
            Kept.load(tmp_path / "broken.json")


def test_mistakes_are_named(recording: Recording) -> None:
    for wrong in (
        lambda: Recorder(0),
        lambda: el2n(recording, 0),
        lambda: dual(recording, 13),
        lambda: keep_covering(recording, 0.3, hard=0.4),
        lambda: keep_covering(recording, 0.3, strata=0),
        lambda: keep_dual(recording, 0.3, c=0),
        lambda: keep_highest(torch.ones(3), 1.0),
        lambda: keep_highest(torch.ones(3, 1), 0.5),
        lambda: keep_random(torch.zeros(3, 1).long(), 0.5),
        lambda: Recorder(3).record(torch.ones(2, 2), torch.zeros(2), torch.zeros(2).long()),
        lambda: Recorder(3).record(torch.ones(2, 2), torch.zeros(2).long(), torch.zeros(2)),
        lambda: Recorder(3).record(torch.ones(2, 1), torch.zeros(2), torch.zeros(2)),
    ):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(DataError, match=r"step\(\)"):
        Recorder(3).recording()
    with pytest.raises(DataError, match="no batch"):
        Recorder(3).step()
    recorder = Recorder(1)
    recorder.record(torch.eye(2), torch.arange(2), torch.arange(2))
    with pytest.raises(DataError, match="made for 1 samples"):
        recorder.step()
    for label in (-1, 2):
        recorder = Recorder(1)
        recorder.record(torch.eye(2)[:1], torch.tensor([label]), torch.tensor([0]))
        with pytest.raises(DataError, match="none of the classes"):
            recorder.step()


def _suspected(images: Tensor, labels: Tensor, classes: int, epochs: int) -> float:
    """Share of the 10 % flipped labels that lie in the top decile of the noise score."""
    random = torch.Generator().manual_seed(0)
    flipped = torch.randperm(len(labels), generator=random)[: len(labels) // 10]
    shown = labels.clone()
    shown[flipped] += torch.randint(1, classes, (len(flipped),), generator=random)
    shown %= classes
    torch.manual_seed(0)
    inputs = images.flatten(1).float() / 255
    model = nn.Sequential(nn.Linear(inputs.shape[1], 128), nn.ReLU(), nn.Linear(128, classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recorder = Recorder(len(labels))
    for _ in range(epochs):
        for index in torch.randperm(len(labels), generator=random).split(128):
            outputs = model(inputs[index])
            recorder.record(outputs, shown[index], index)
            optimizer.zero_grad()
            cross_entropy(outputs, shown[index]).backward()
            optimizer.step()
        recorder.step()
    suspects = torch.topk(noise(recorder.recording()), math.ceil(len(labels) / 10)).indices
    return len(set(suspects.tolist()) & set(flipped.tolist())) / len(flipped)


def test_flipped_digits_are_suspected() -> None:
    train = load_dataset("digits").train
    assert _suspected(train.pixels, train.labels, 10, 15) >= 0.8


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.skipif("SNELLO_DATA" not in os.environ, reason="needs MNIST in $SNELLO_DATA")
def test_flipped_labels_of_mnist_are_suspected() -> None:
    train = load_dataset("mnist").train
    assert _suspected(train.pixels, train.labels, 10, 5) >= 0.8
