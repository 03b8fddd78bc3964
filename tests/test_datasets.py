"""load(): parts that are disjoint, complete and reproducible; and what it says when something is
missing.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_files import colours, same, write_cifar100, write_classes, write_mnist
from seams.datasets import MNIST_FILES, channel_statistics, cifar, stratified
from snello.errors import ConfigError, DataError
from snello.lab.datasets import DataSplits, Images, load_dataset

pytest.importorskip("torchvision", reason="MNIST and CIFAR-10 need the extra 'train'")
pytest.importorskip("sklearn", reason="digits need the extra 'train'")


@pytest.fixture(autouse=True)
def own_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("SNELLO_CACHE", str(tmp_path / "cache"))
    if "real_data" not in request.fixturenames:
        monkeypatch.delenv("SNELLO_DATA", raising=False)


# The cut ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=80),
    st.floats(0.01, 0.99),
    st.integers(-(2**40), 2**40),
)
def test_a_cut_is_disjoint_complete_stratified_and_repeatable(
    labels: list[int], share: float, seed: int
) -> None:
    tensor = torch.tensor(labels)
    if max(Counter(labels).values()) < 2:
        with pytest.raises(DataError, match="no class has two"):
            stratified(tensor, share, seed, "test")
        return
    stay, cut = stratified(tensor, share, seed, "test")
    assert sorted(stay.tolist() + cut.tolist()) == list(range(len(labels)))
    for label, count in Counter(labels).items():
        taken = int((tensor[cut] == label).sum())
        assert taken <= count - 1
        assert count == 1 or abs(taken - share * count) <= max(
            0.5, 1 - share * count, share * count - count + 1
        )
    again = stratified(tensor, share, seed, "test")
    assert torch.equal(again[0], stay)
    assert torch.equal(again[1], cut)


def test_digits_are_whole_scaled_and_labelled() -> None:
    from sklearn.datasets import load_digits

    splits, original = load_dataset("digits"), load_digits()
    parts = (splits.train, splits.validation, splits.test)
    assert splits.input_shape == (1, 8, 8)
    assert len(splits.test) == 359
    assert len(splits.validation) == 143

    def pairs(pixels: torch.Tensor, labels: torch.Tensor) -> Counter[tuple[bytes, int]]:
        return Counter((p.numpy().tobytes(), int(y)) for p, y in zip(pixels, labels, strict=True))

    expected = torch.from_numpy(np.rint(original.images * 255 / 16).astype(np.uint8))
    assert sum((pairs(p.pixels, p.labels) for p in parts), Counter()) == pairs(
        expected, torch.from_numpy(original.target)
    )


def test_the_test_part_depends_on_nothing_and_validation_on_the_seed() -> None:
    a, b, again = (
        load_dataset("digits", seed=1),
        load_dataset("digits", seed=2, validation=0.3),
        load_dataset("digits", seed=1),
    )
    assert same(a.test, b.test)
    assert same(a.validation, again.validation)
    assert same(a.train, again.train)
    assert a.mean == again.mean
    assert not same(a.validation, load_dataset("digits", seed=2).validation)


def test_loading_does_not_touch_the_global_random_state() -> None:
    before = torch.get_rng_state()
    load_dataset("digits")
    assert torch.equal(before, torch.get_rng_state())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 7), st.integers(1, 4), st.integers(1, 256))
def test_channel_statistics_are_those_of_float64(
    seed: int, n: int, channels: int, levels: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, levels, (n, channels, 5, 3), generator=random).to(torch.uint8)
    mean, std = channel_statistics(pixels)
    scaled = pixels.double() / 255
    expected = scaled.std((0, 2, 3), unbiased=False)
    expected[pixels.amax((0, 2, 3)) == pixels.amin((0, 2, 3))] = 1
    torch.testing.assert_close(
        torch.tensor(mean).double(), scaled.mean((0, 2, 3)), rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(torch.tensor(std).double(), expected, rtol=1e-6, atol=1e-7)


def test_statistics_come_from_the_training_part_alone() -> None:
    splits = load_dataset("digits")
    assert (splits.mean, splits.std) == channel_statistics(splits.train.pixels)
    assert splits.mean != channel_statistics(splits.test.pixels)[0]


def test_image_size_resizes_every_part() -> None:
    splits = load_dataset("digits", image_size=12)
    assert {tuple(p.pixels.shape[1:]) for p in (splits.train, splits.validation, splits.test)} == {
        (1, 12, 12)
    }
    assert splits.mean == pytest.approx(load_dataset("digits").mean, abs=0.02)


@pytest.mark.parametrize("bad", [0, 1, -0.1, 1.5, float("nan")])
def test_validation_outside_0_1(bad: float) -> None:
    with pytest.raises(ConfigError, match=f"validation={bad}"):
        load_dataset("digits", validation=bad)


def test_impossible_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'digit'; did you mean 'digits'"):
        load_dataset("digit")
    with pytest.raises(ConfigError, match="image_size=0"):
        load_dataset("digits", image_size=0)
    with pytest.raises(ConfigError, match="imagefolder needs the folder of its images"):
        load_dataset("imagefolder")
    with pytest.raises(ConfigError, match="digits takes no folder of images"):
        load_dataset("digits", path=tmp_path)


def test_images_check_themselves() -> None:
    with pytest.raises(DataError, match=r"uint8 of shape \(N, C, H, W\), got torch.float32"):
        Images(torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(
        DataError, match=r"shape \(2,\), one per image, got torch.int64 of shape \(3,\)"
    ):
        Images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


# MNIST -----------------------------------------------------------------------------------------------------


def test_mnist_is_found_in_any_of_the_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "two")
    monkeypatch.setenv(
        "SNELLO_DATA", os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")])
    )
    splits = load_dataset("mnist")
    assert sorted(colours(splits.train) + colours(splits.validation)) == list(range(40))
    assert colours(splits.test) == list(range(10))
    assert splits.train.labels.tolist() == [c % 10 for c in colours(splits.train)]
    assert splits.source == str(tmp_path / "two" / "MNIST")


def test_missing_data_says_where_it_looked_and_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    monkeypatch.setenv("SNELLO_DATA", os.pathsep.join(map(str, folders)))
    for name, places in {
        "mnist": ["MNIST/raw"],
        "cifar10": ["cifar-10-batches-py", "cifar10-jpeg", "cifar10", "cifar10-jpeg.tar.gz"],
        "cifar100": ["cifar-100-python"],
    }.items():
        with pytest.raises(DataError) as caught:
            load_dataset(name)
        said = str(caught.value)
        looked = said.partition("Looked for: ")[2].partition(". ")[0]
        assert looked.split(", ") == [str(f / p) for f in folders for p in places]
        assert "SNELLO_DATA=/" in said
        assert "--data-root=/that/folder (in a recipe --data.root, in Python root=)" in said
        assert f"fetch it into {folders[0]}, run a recipe with --data.download=true" in said


def test_root_argument_wins_and_the_default_is_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset("mnist").test) == 10
    monkeypatch.setenv("SNELLO_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError, match="elsewhere"):
        load_dataset("mnist", root=tmp_path / "elsewhere")


@pytest.mark.parametrize("part", MNIST_FILES)
def test_truncated_mnist(tmp_path: Path, part: str) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / part
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"MNIST cannot be read from .*--data.download=true"):
        load_dataset("mnist", root=tmp_path)


def test_download_goes_to_the_first_root_and_only_when_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fetch(root: Path, train: bool, download: bool) -> SimpleNamespace:
        calls.append((root, train, download))
        if root.name == "offline":
            raise OSError("no route to host")
        labels = torch.arange(40) % 10
        return SimpleNamespace(data=torch.zeros(40, 28, 28, dtype=torch.uint8), targets=labels)

    monkeypatch.setattr("torchvision.datasets.MNIST", fetch)
    load_dataset("mnist", root=tmp_path, download=True)
    assert calls == [(tmp_path, True, True), (tmp_path, False, True)]
    write_mnist(tmp_path)
    load_dataset("mnist", root=tmp_path, download=True)
    assert calls[2:] == [(tmp_path, True, False), (tmp_path, False, False)]
    with pytest.raises(
        DataError, match=r"MNIST cannot be fetched into .*offline: no route to host"
    ):
        load_dataset("mnist", root=tmp_path / "offline", download=True)


# CIFAR-10 --------------------------------------------------------------------------------------------------


def write_cifar(folder: Path) -> None:
    write_classes(folder / "train", cifar.CIFAR10, 4)
    write_classes(folder / "test", cifar.CIFAR10, 2, first=100)


def pack(folder: Path, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        for part in sorted(folder.iterdir()):
            tar.add(part, part.name)


def check_cifar(splits: DataSplits) -> None:
    assert sorted(colours(splits.train) + colours(splits.validation)) == list(range(40))
    assert sorted(colours(splits.test)) == list(range(100, 120))
    assert splits.train.labels.tolist() == [c // 4 for c in colours(splits.train)]
    assert splits.classes == cifar.CIFAR10


@pytest.fixture
def tiny_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "CIFAR10_COUNTS", (40, 20))


@pytest.mark.parametrize("name", ["cifar10", "cifar10-jpeg"])
@pytest.mark.usefixtures("tiny_counts")
def test_cifar_from_folders(tmp_path: Path, name: str) -> None:
    write_cifar(tmp_path / name)
    check_cifar(load_dataset("cifar10", root=tmp_path))


@pytest.mark.usefixtures("tiny_counts")
def test_cifar_archive_is_unpacked_and_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path / "made")
    pack(tmp_path / "made", tmp_path / "root" / "cifar10-jpeg.tar.gz")
    first = load_dataset("cifar10", root=tmp_path / "root")
    check_cifar(first)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert len(before) == 2
    monkeypatch.setattr(cifar, "read_parts", lambda *_: pytest.fail("decoded again"))
    again = load_dataset("cifar10", root=tmp_path / "root")
    check_cifar(again)
    assert same(again.train, first.train)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()} == before
    (file,) = (tmp_path / "cache").glob("*-decoded.pt")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"-decoded\.pt is damaged .*remove it"):
        load_dataset("cifar10", root=tmp_path / "root")


def test_cifar_archive_that_is_damaged_or_climbs_out_leaves_nothing(tmp_path: Path) -> None:
    write_cifar(tmp_path / "made")
    archive = tmp_path / "root" / "cifar10-jpeg.tar.gz"
    pack(tmp_path / "made", archive)
    archive.write_bytes(archive.read_bytes()[:-500])
    with pytest.raises(
        DataError, match=r"cifar10-jpeg.tar.gz cannot be unpacked.*copy or download it again"
    ):
        load_dataset("cifar10", root=archive.parent)
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("../../climbed")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"out"))
    with pytest.raises(DataError, match="cannot be unpacked"):
        load_dataset("cifar10", root=archive.parent)
    assert list((tmp_path / "cache").iterdir()) == []
    assert not list(tmp_path.rglob("climbed"))


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    write_cifar(tmp_path / "made")
    pack(tmp_path / "made", tmp_path / "root" / "cifar10-jpeg.tar.gz")
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="set SNELLO_CACHE to another folder"):
        load_dataset("cifar10", root=tmp_path / "root")


def test_incomplete_cifar_is_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar10")
    with pytest.raises(
        DataError, match=r"40 training and 20 test images instead of 50000 and 10000"
    ):
        load_dataset("cifar10", root=tmp_path)
    (tmp_path / "cifar10/train/truck").rename(tmp_path / "cifar10/train/lorry")
    with pytest.raises(DataError, match="is not CIFAR-10: class 'lorry'"):
        load_dataset("cifar10", root=tmp_path)


def test_cifar_batches_win_over_jpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(root: Path, train: bool, download: bool) -> SimpleNamespace:
        data = np.zeros((20, 32, 32, 3), np.uint8)
        data[..., 0], data[:, 0, :, 1] = np.arange(20)[:, None, None], 7
        return SimpleNamespace(
            data=data, targets=[i % 10 for i in range(20)], classes=list(cifar.CIFAR10)
        )

    monkeypatch.setattr("torchvision.datasets.CIFAR10", batches)
    write_cifar(tmp_path / "cifar10")
    (tmp_path / "cifar-10-batches-py").mkdir()
    splits = load_dataset("cifar10", root=tmp_path)
    assert splits.input_shape == (3, 32, 32)
    assert colours(splits.test) == list(range(20))
    assert splits.test.pixels[:, 1, 0].eq(7).all()
    assert not splits.test.pixels[:, 1, 1:].any()


# CIFAR-100
# -------------------------------------------------------------------------------------------------


def test_cifar100_in_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path, monkeypatch)
    splits = load_dataset("cifar100", root=tmp_path)
    assert isinstance(splits, DataSplits)
    assert splits.input_shape == (3, 32, 32)
    assert splits.classes == tuple(f"class {i}" for i in range(100))
    assert sorted(colours(splits.train) + colours(splits.validation)) == list(range(200))
    assert splits.train.labels.tolist() == [c // 2 for c in colours(splits.train)]
    assert colours(splits.test) == list(range(100))
    # Red is constant; green counts columns, blue counts rows: neither axes nor channels are mixed
    # up.
    assert torch.equal(splits.test.pixels[:, 1, 5], torch.arange(32).expand(100, 32))
    assert torch.equal(splits.test.pixels[:, 2, :, 5], torch.arange(32).expand(100, 32))
    assert splits.source == str(tmp_path / "cifar-100-python")


def test_damaged_cifar100_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path, monkeypatch)
    file = tmp_path / "cifar-100-python" / "train"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"CIFAR100 cannot be read from .*--data.download=true"):
        load_dataset("cifar100", root=tmp_path)


# The real files
# --------------------------------------------------------------------------------------------


@pytest.fixture
def real_data() -> None:
    if not os.environ.get("SNELLO_DATA"):
        pytest.skip("SNELLO_DATA is not set: it names the folder that holds MNIST")


@pytest.mark.usefixtures("real_data")
def test_real_mnist() -> None:
    splits = load_dataset("mnist")
    assert len(splits.train) + len(splits.validation) == 60_000
    assert len(splits.test) == 10_000
    assert splits.mean == pytest.approx((0.1307,), abs=5e-4)
    assert splits.std == pytest.approx((0.3081,), abs=5e-4)
