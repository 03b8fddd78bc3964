"""``snello compress --max-drop``: the options, and the search that they describe."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seams.cli import add_rate_arguments, search, search_images
from seams.search import coded_tensors
from snello.cli import main
from snello.codec import encode
from snello.errors import ConfigError, ModelError
from snello.search.rate import RateSearch
from snello.store import ModelSpec, Record, build, save

pytest.importorskip("nncodec", reason="the extra nnc is not installed")
pytest.importorskip("sklearn", reason="the extra train is not installed")
pytest.importorskip("lightning", reason="the extra train is not installed")

RECORD = Record(ModelSpec("lenet-300-100", {"in_features": 64}), (1, 8, 8))


def parse(*words: str) -> argparse.Namespace:
    """As ``snello compress`` parses them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nonweight-qp", type=int, default=-75)
    parser.add_argument("--uniform", action="store_true")
    parser.add_argument("--codebook", action="store_true")
    add_rate_arguments(parser)
    return parser.parse_args(words)


def searched(words: list[str] | tuple[str, ...], model: nn.Module, record: Record) -> RateSearch:
    arguments = parse(*words)
    return search(arguments, model, record, search_images(arguments, model, record))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    from snello.lab.datasets import load_dataset, loader

    torch.manual_seed(0)
    splits = load_dataset("digits")
    model = build(RECORD.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        for images, labels in loader(splits.train, splits, 50):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def test_search_keeps_the_bound_on_validation_images(trained: nn.Module) -> None:
    found = searched(("--max-drop=0.02", "--data=digits", "--one-qp"), trained, RECORD)
    assert found.before > 0.8
    assert found.before - 0.02 <= found.after
    assert found.method == "one qp"
    assert found.bytes == len(encode(coded_tensors(found.model), found.settings))
    assert (
        found.bytes < sum(p.numel() for p in trained.parameters()) / 2
    )  # less than four bits a weight
    finer = searched(("--max-drop=0.02", "--data=digits", "--one-qp", "--uniform"), trained, RECORD)
    assert not any(trial.settings.dependent_quantisation for trial in finer.trail)


def test_a_loss_is_kept_too(trained: nn.Module) -> None:
    words = ("--max-drop=0.05", "--metric=loss", "--data=digits", "--uniform")
    found = searched(words, trained, RECORD)
    assert found.after <= found.bound == pytest.approx(found.before + 0.05)
    assert found.probes > 0  # one parameter per tensor was looked for
    assert found.one_qp is not None
    assert found.bytes <= found.one_qp.bytes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-drop=0.1"], "--data"),
        (["--max-drop=-1", "--data=digits"], r"max_drop=-1\.0"),
        (["--max-drop=0.1", "--data=digits", "--validation-images=0"], "--validation-images=0"),
        (["--max-drop=0.1", "--data=digits", "--calibration-images=-3"], "--calibration-images=-3"),
    ],
)
def test_impossible_options(words: list[str], message: str, trained: nn.Module) -> None:
    with pytest.raises(ConfigError, match=message):
        searched(words, trained, RECORD)


def test_images_of_another_shape() -> None:
    record = Record(ModelSpec("resnet-20"), (3, 8, 8))
    with pytest.raises(ModelError, match=r"\(1, 8, 8\).*\(3, 8, 8\)"):
        searched(("--max-drop=0.1", "--data=digits"), build(record.model), record)


def test_compress_writes_what_the_search_found(
    trained: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, plain, small = (
        str(tmp_path / name) for name in ("m.pt", "plain.snello", "small.snello")
    )
    save(source, trained, RECORD)
    assert main(["compress", source, f"--out={plain}"]) == 0
    assert (
        main(["compress", source, f"--out={small}", "--max-drop=0.02", "--data=digits", "--one-qp"])
        == 0
    )
    said = capsys.readouterr()
    assert "one qp: accuracy" in " ".join(said.out.split())
    assert "143 samples are few for a drop of 0.02" in said.err
    assert Path(small).stat().st_size < 0.5 * Path(plain).stat().st_size
    written = json.loads(Path(f"{small}.json").read_text())
    assert written["after"] >= written["bound"] == pytest.approx(written["before"] - 0.02)
    assert written["bitstream_bytes"] == Path(small).stat().st_size
    for wrong, message in (
        (["--max-drop=0.1", "--data=digits", "--qp=-20"], "exclude each other"),
        (["--data=digits"], "--max-drop"),
    ):
        assert main(["compress", source, f"--out={tmp_path / 'no.snello'}", *wrong]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no.snello").exists()
