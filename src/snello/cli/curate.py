"""`snello curate`: the samples of a dataset, by what a short training shows of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snello.errors import ConfigError

from ._data import add_data_arguments
from ._inputs import check_json_file, check_output, device, finish, json_object, refuse_without
from ._names import complete_with, datasets, models

if TYPE_CHECKING:
    from snello.lab.reporting import Table

HELP = "find hard, easy, mislabelled and duplicate images of a dataset; choose those to train on"
EPILOG = "example: snello curate digits --epochs=10 --keep=ccs --ratio=0.5 --kept=kept.json --out=digits.json"
KEEPS = ("ccs", "dual", "el2n", "forgetting", "random")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    complete_with(parser.add_argument("data", help=f"one of: {', '.join(datasets())}"), datasets())
    add_data_arguments(parser, trained=False)  # its network learns on the dataset's own
    parser.add_argument("--validation", type=float, default=0.1,
                        help="share of the training images that is not looked at, as in recipes")  # fmt: skip
    parser.add_argument("--limit", type=int, help="look at the first so many training images")
    parser.add_argument(
        "--model",
        choices=models(),
        help="default: resnet-20, for images below 16 pixels lenet-300-100",
    )
    parser.add_argument("--arguments", default="{}", help="arguments of the network, as JSON")
    parser.add_argument("--epochs", type=int, default=12, help="of the training that is recorded")
    parser.add_argument("--lr", type=float, default=0.05, help="learning rate at its start")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--augment", choices=("none", "crop-flip"), default="none")
    parser.add_argument(
        "--count", type=int, default=32, help="images on a sheet, and pairs of duplicates"
    )
    parser.add_argument("--keep", choices=KEEPS, default="ccs", help="selection for --kept")
    parser.add_argument(
        "--ratio", type=float, default=0.5, help="share of the images that it leaves out"
    )
    parser.add_argument("--kept", help="index file to write, for data.kept of a recipe")
    parser.add_argument(
        "--out",
        default="curate.json",
        help="the JSON file to write; plots and sheets lie beside it",
    )


def run(arguments: argparse.Namespace) -> None:
    """Train, record, show, write."""
    out = check_json_file(arguments, arguments.out)
    if not arguments.kept:
        refuse_without(arguments, "--kept=FILE", "--keep", "--ratio")
    arguments.seed = arguments.seed or 0
    if arguments.count < 1:
        raise ConfigError(f"--count={arguments.count} must be at least 1")
    if arguments.epochs < 1:
        raise ConfigError(f"--epochs={arguments.epochs}: at least 1 is recorded")
    if not 0 <= arguments.ratio < 1:
        raise ConfigError(f"--ratio={arguments.ratio} is the share left out, in [0, 1)")
    if arguments.keep == "dual" and arguments.epochs < 10:
        raise ConfigError("--keep=dual looks at windows of 10 epochs: use --epochs=10 or more")
    if arguments.kept and arguments.limit:
        raise ConfigError("--kept is for the whole training part: leave out --limit")
    if arguments.kept:
        if Path(arguments.kept).suffix in (".png", ".html"):
            raise ConfigError(
                f"--kept={arguments.kept}: the plot, the sheets and the page of --out have this suffix, and one "
                "might replace it: choose a name such as kept.json"
            )
        check_output(arguments, arguments.kept)
        if Path(arguments.kept).resolve() == Path(out).resolve():
            raise ConfigError(
                f"--out and --kept are the same file, {out}: choose another for one of them"
            )
    _report(arguments, Path(out))


def _report(arguments: argparse.Namespace, out: Path) -> None:
    from snello.curation import aum, el2n, forgetting, near_duplicates, noise
    from snello.lab.datasets import load_dataset
    from snello.lab.reporting import busy, pages, plot_scores

    pages.check_libraries()
    splits = load_dataset(
        arguments.data, arguments.data_root, validation=arguments.validation, seed=arguments.seed,
        image_size=arguments.image_size, path=arguments.data_path,
    )  # fmt: skip
    with busy(f"training on {splits.name}"):
        seen = _recorded(arguments, splits)
    recording, labels = seen.recording, seen.recording.labels
    scores = {"AUM": aum(recording), "EL2N": el2n(recording), "forgetting": forgetting(recording)}
    order = noise(recording).argsort(descending=True, stable=True)
    # The network believes another class in most epochs.
    suspects = order[: int((scores["AUM"] < 0).sum())][: arguments.count]
    pairs, likeness = near_duplicates(seen.features, arguments.count)
    indices = {
        "hardest": el2n(recording).argsort(descending=True, stable=True)[: arguments.count],
        "easiest": order.flip(0)[: arguments.count],
        "suspects": suspects,
        "duplicates": pairs.flatten()[: 2 * arguments.count],  # none of a single image
    }
    sheets = {name: chosen for name, chosen in indices.items() if len(chosen)}
    close = f"{int((likeness > 0.999).sum())} of the {len(pairs)} closest"
    table = _table(splits.name, recording, scores, close)
    result = {
        "data": splits.name, "source": splits.source, "epochs": recording.epochs,
        "seconds": recording.seconds, "presentations": recording.presentations,
        "suspects": [{"index": int(i), **_files(splits, i), "label": splits.classes[int(labels[i])],
                      "aum": float(scores["AUM"][i])} for i in suspects],
        "duplicates": [{"indices": pair.tolist(), **_files(splits, pair), "likeness": float(value)}
                       for pair, value in zip(pairs, likeness, strict=True)],
        "scores": {name: [round(float(v), 6) for v in values] for name, values in scores.items()},
    }  # fmt: skip
    page = pages.curation_page(f"{splits.name}: training images", scores, table, result)
    finish(table, result, out)
    if arguments.kept:
        print(f"written: {_selected(arguments, recording, scores).save(arguments.kept)}")
    title = f"{splits.name}: {len(labels)} training images"
    print(f"written: {plot_scores(scores, Path(f'{out}.png'), title)}")
    for path in _drawn(splits, labels, sheets, out):
        print(f"written: {path}")
    print(f"written: {pages.write_page(page, f'{out}.html')}")


def _drawn(splits: Any, labels: Any, sheets: dict[str, Any], out: Path) -> Iterator[Path]:
    """Draw the images of each sheet; the files, as they are written."""
    from snello.lab.reporting import contact_sheet

    for name, indices in sheets.items():
        captions = [f"{int(i)}: {splits.classes[int(labels[i])]}"[:22] for i in indices]
        path, title = Path(f"{out}.{name}.png"), f"{splits.name}: {name}"
        yield contact_sheet(splits, indices.tolist(), captions, path, title)


def _table(name: str, recording: Any, scores: dict[str, Any], close: str) -> Table:
    """Table of counts; `close` is the number of pairs that are nearly the same, in words."""
    from snello.lab.reporting import Table

    never = (recording.margin <= 0).all(0)  # their number of forgettings is that of the epochs
    right = float((recording.margin[-1] > 0).float().mean())
    rows = (
        ("training images", str(len(recording.labels))),
        ("right in the last epoch", f"{right:.1%}"),
        ("never right", str(int(never.sum()))),
        ("AUM below 0: label suspects", str(int((scores["AUM"] < 0).sum()))),
        ("forgotten at least once", str(int(((scores["forgetting"] > 0) & ~never).sum()))),
        ("pairs above 0.999 likeness", close),
        (
            "cost of recording",
            f"{recording.seconds:.1f} s, {recording.presentations} presentations",
        ),
    )
    note = "Indices count the training part, after the validation images were set aside."
    return Table(f"{name}: samples", ("Fact", "Value"), rows, note)


def _files(splits: Any, indices: Any) -> dict[str, Any]:
    """Paths of images of the training part; nothing for datasets without a file for each image."""
    files = splits.train.files
    if files is None:
        return {}
    return (
        {"file": files[int(indices)]}
        if indices.dim() == 0
        else {"files": [files[int(i)] for i in indices]}
    )


def _recorded(arguments: argparse.Namespace, splits: Any) -> Any:
    from snello.lab.training import FineTuning, check_fits, record_training
    from snello.store import ModelSpec, build

    channels, height, width = splits.input_shape
    small = min(height, width) < 16
    name = arguments.model or ("lenet-300-100" if small else "resnet-20")
    fitting = {"classes": len(splits.classes)}
    if name == "lenet-300-100":
        fitting["in_features"] = channels * height * width
    else:
        fitting["in_channels"] = channels
    if name == "lenet-5":
        fitting["image_size"] = height
    given = json_object(arguments.arguments)
    spec = ModelSpec(f"snello.lab.models:{name.replace('-', '_')}", {**fitting, **given})
    import torch

    torch.manual_seed(arguments.seed)
    model = build(spec).to(device(arguments, unless_given="auto"))
    check_fits(name, model.eval(), splits)
    settings = FineTuning(
        epochs=arguments.epochs, lr=arguments.lr, batch_size=arguments.batch_size,
        augment=arguments.augment, limit=arguments.limit, seed=arguments.seed,
    )  # fmt: skip
    return record_training(model, splits, settings)


def _selected(arguments: argparse.Namespace, recording: Any, scores: Any) -> Any:
    from snello.curation import keep_covering, keep_dual, keep_highest, keep_random

    ratio, seed = arguments.ratio, arguments.seed
    if arguments.keep == "random":
        return keep_random(recording.labels, ratio, seed=seed)
    if arguments.keep == "ccs":
        return keep_covering(recording, ratio, seed=seed)
    if arguments.keep == "dual":
        return keep_dual(recording, ratio, seed=seed)
    values = scores["EL2N" if arguments.keep == "el2n" else "forgetting"]
    cost = {"seconds": recording.seconds, "presentations": recording.presentations}
    return keep_highest(values, ratio, arguments.keep, seed=seed, labels=recording.labels, **cost)
