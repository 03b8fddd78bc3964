"""Images at the command line: preprocessing that is saved, validation folders, several inputs, sweep."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dataset_files import write_classes, write_image, write_masks
from seams.cli import load_images, shared_images, subjects, use_recipe_beside
from snello.cli import main
from snello.deploy import Subject
from snello.errors import ConfigError, DataError, ModelError
from snello.lab.datasets import load_dataset
from snello.lab.recipes import load_recipe
from snello.neurons import count_parameters
from snello.store import (
    ImageInput,
    InputSpec,
    ModelSpec,
    Record,
    build,
    images_of,
    inspect,
    load,
    save,
)

for module in ("lightning", "rich", "PIL", "sklearn", "matplotlib"):
    pytest.importorskip(module)

from snello.lab.training import image_input, load_data  # noqa: E402

PIXELS = ModelSpec("lenet-300-100", {"in_features": 3 * 6 * 6, "classes": 2})
DIGITS = ModelSpec("lenet-300-100", {"in_features": 64})
GIVEN = ["--mean=0.5,0.4,0.3", "--std=0.2,0.3,0.4", "--channel-order=bgr", "--class-names=cat, dog"]
IMAGES = ImageInput((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bgr", ("cat", "dog"))


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save(tmp_path / "m.pt", build(PIXELS), Record(PIXELS, (3, 6, 6)))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    write_classes(tmp_path / "pets", ("cat", "dog"), 10)
    return tmp_path / "pets"


# Preprocessing of the command line is saved


def test_what_is_given_is_saved_by_every_command(model_file: Path, tmp_path: Path) -> None:
    lean, stream = tmp_path / "lean.pt", tmp_path / "lean.snello"
    assert main(["simplify", str(model_file), *GIVEN, f"--out={lean}"]) == 0
    assert load(lean)[1].images == IMAGES
    pytest.importorskip("nncodec")
    assert main(["compress", str(model_file), *GIVEN, f"--out={stream}"]) == 0
    assert load(stream)[1].images == IMAGES
    assert main(["decompress", str(stream), f"--out={lean}"]) == 0
    assert load(lean)[1].images == IMAGES
    assert main(["simplify", str(lean), "--channel-order=rgb", f"--out={lean}"]) == 0
    assert load(lean)[1].images == ImageInput(IMAGES.mean, IMAGES.std, "rgb", IMAGES.classes)


def test_names_of_classes_may_be_lines_of_a_file(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n\ndog\n")
    words = [*GIVEN[:2], f"--class-names={tmp_path / 'names.txt'}", f"--out={tmp_path / 'o.pt'}"]
    assert main(["simplify", str(model_file), *words]) == 0
    assert load(tmp_path / "o.pt")[1].images == ImageInput(
        IMAGES.mean, IMAGES.std, classes=("cat", "dog")
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mean=0.5"], "belong together"),
        (["--mean=0.5", "--std=a"], "--std='a' must be numbers"),
        (["--mean=0.5,0.5", "--std=1,1"], "one number per channel, 3 for 'rgb'"),
        (["--mean=0.5", "--std=0"], "deviations positive"),
        (["--class-names=a,b"], "--mean and --std too"),
        (["--mean=0.5", "--std=1", "--class-names=a"], "neither a file nor names"),
    ],
)
def test_preprocessing_that_cannot_be(
    words: list[str],
    said: str,
    model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["simplify", str(model_file), *words, f"--out={tmp_path / 'o.pt'}"]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o.pt").exists()


def test_a_recipe_sets_the_normalisation_of_its_images(pets: Path) -> None:
    data = [
        "--data.name=imagefolder",
        f"--data.path={pets}",
        "--data.mean=[0.5]",
        "--data.std=[0.2]",
    ]
    splits = load_data(load_recipe("digits", [*data, "--data.order=bgr"]))
    assert image_input(splits) == ImageInput((0.5,) * 3, (0.2,) * 3, "bgr", ("cat", "dog"))
    with pytest.raises(ConfigError, match="belong together"):
        load_recipe("digits", data[:3])


# The images of other libraries' models


def test_timm_and_torchvision_say_how_images_are_preprocessed() -> None:
    weights = pytest.importorskip("torchvision.models").ResNet18_Weights.IMAGENET1K_V1
    found = images_of(nn.Identity(), ModelSpec("resnet18", {"weights": "IMAGENET1K_V1"}))
    assert found is not None
    assert (list(found.mean), list(found.std)) == (weights.transforms().mean, weights.transforms().std)  # fmt: skip
    assert found.classes == tuple(weights.meta["categories"])
    for name, arguments in (("resnet18", {}), ("resnet18", {"weights": "NONE"}), ("lenet-5", {})):
        assert images_of(nn.Identity(), ModelSpec(name, arguments)) is None
    pytest.importorskip("timm")
    model = build("timm:vit_tiny_patch16_224", img_size=32, num_classes=2)
    config: Any = model.pretrained_cfg
    found = images_of(model, ModelSpec("timm:vit_tiny_patch16_224"))
    assert found == ImageInput(tuple(config["mean"]), tuple(config["std"]))
    model.pretrained_cfg = {**config, "label_names": ["cat", "dog"]}  # type: ignore[assignment]
    found = images_of(model, ModelSpec("timm:vit_tiny_patch16_224"))
    assert found is not None
    assert found.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "rescale_factor": 1 / 255}, (0.5, 0.25)),
        ({"do_normalize": False}, (0.0, 1.0)),
        # pixels / 127.5 - 1, as some models take them
        ({"image_mean": [1.0], "image_std": [1.0], "rescale_factor": 1 / 127.5}, (0.5, 0.5)),
        ({"image_mean": [51.0], "image_std": [255.0], "do_rescale": False}, (0.2, 1.0)),
        ({"do_flip_channel_order": True, "do_normalize": False}, (0.0, 1.0)),
        ({}, None),
        ({"image_mean": "x", "image_std": [1]}, None),
    ],
)  # fmt: skip
def test_an_image_processor_of_transformers_becomes_a_record(
    processor: dict[str, Any], expected: tuple[float, float] | None, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    model: Any = nn.Identity()
    model.config = argparse.Namespace(id2label={1: "dog", 0: "cat"})
    found = images_of(model, ModelSpec("transformers:Any"), tmp_path)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.mean == pytest.approx([expected[0]] * 3)
    assert found.std == pytest.approx([expected[1]] * 3)
    assert found.classes == ("cat", "dog")
    assert found.colours == ("bgr" if "do_flip_channel_order" in processor else "rgb")
    assert images_of(model, ModelSpec("transformers:Any"), tmp_path / "elsewhere") is None


def test_a_folder_of_transformers_is_loaded_with_its_preprocessing(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16,
        patch_size=8, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    _, record = load(tmp_path / "vit")
    assert record.input_shape == (3, 16, 16)
    assert record.images == ImageInput((0.1, 0.2, 0.3), (0.5,) * 3, "rgb", ("cat", "dog"))


# Validation images


def test_validation_images_of_a_folder(pets: Path, tmp_path: Path) -> None:
    write_classes(tmp_path / "val", ("cat", "dog"), 3, first=100)
    for name in ("imagefolder", "imagefolder-stream"):
        cut = load_dataset(name, path=pets)
        splits = load_dataset(name, path=pets, validation_path=tmp_path / "val")
        assert (cut.apart, splits.apart) == (False, True)
        assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [16, 6, 4]
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "cow")
    with pytest.raises(DataError, match="differ in class 'cat'"):
        load_dataset("imagefolder", path=pets, validation_path=tmp_path / "val")
    with pytest.raises(DataError, match="no folder of validation images"):
        load_dataset("imagefolder", path=pets, validation_path=tmp_path / "none")


def test_validation_images_take_the_channels_and_size_of_a_dataset(tmp_path: Path) -> None:
    for digit in range(10):
        write_image(tmp_path / str(digit) / "a.png", 100, size=(20, 16))
    splits = load_dataset("digits", validation_path=tmp_path)
    assert splits.validation.pixels.shape == (10, 1, 8, 8)  # type: ignore[union-attr]
    grey = round(0.299 * 100 + 0.114 * 155)
    assert splits.validation.pixels.unique().tolist() == [grey]  # type: ignore[union-attr]


def test_masks_of_a_validation_folder(tmp_path: Path) -> None:
    write_masks(tmp_path / "a")
    write_masks(tmp_path / "b", ("val",), count=2)
    splits = load_dataset("maskfolder", path=tmp_path / "a", validation_path=tmp_path / "b" / "val")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [4, 2, 4]
    (tmp_path / "a" / "test").rename(tmp_path / "a" / "val")
    splits = load_dataset("maskfolder", path=tmp_path / "a")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [4, 2, 2]


def test_suffixes_that_are_not_read_are_listed(pets: Path) -> None:
    (pets / "cat" / "0.gif").write_bytes(b"GIF89a")
    (pets / "dog" / "notes.txt").write_text("")
    with pytest.warns(UserWarning, match=r"not read: \.gif \(1\); convert them"):
        load_dataset("imagefolder", path=pets)
    for file in (pets / "cat").glob("*.png"):
        file.rename(file.with_suffix(".gif"))
    with pytest.raises(
        DataError, match=r"no images: its files end in \.gif \(11\), and only \.bmp"
    ):
        load_dataset("imagefolder", path=pets)


# Sweep, and the recipe beside a model


def _digits(folder: Path) -> Path:
    torch.manual_seed(0)
    folder.mkdir()
    return save(folder / "model.pt", build(DIGITS), Record(DIGITS, (1, 8, 8)))


def test_the_recipe_beside_a_model_says_which_images_were_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _digits(tmp_path / "run")
    recipe = {"seed": 3, "data": {"name": "digits", "validation": 0.2}}
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe))
    words = ["sweep", str(path), "--importances=l1", "--ratios=0", f"--out={tmp_path / 's.json'}"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "note: data as in" in said
    assert "cut from the training images" not in said
    held_out = load_dataset("digits", validation=0.2, seed=3).validation
    assert json.loads((tmp_path / "s.json").read_text())["images"] == len(held_out)
    arguments = argparse.Namespace(
        data=None, data_root=None, data_path=None, image_size=None, mean=None, std=None,
        channel_order=None, class_names=None,
    )  # fmt: skip
    use_recipe_beside(arguments, path)
    assert torch.equal(load_images(arguments, None, (1, 8, 8)).validation.labels, held_out.labels)
    (tmp_path / "run" / "recipe.json").write_text("{")
    assert main([*words, "--force"]) == 1
    assert "sweep needs data" in capsys.readouterr().err


def test_sweep_keeps_files_and_saves_a_pruned_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = _digits(tmp_path / "run"), tmp_path / "pruned.pt"
    words = [
        "sweep", str(path), "--data=digits", "--importances=l1,random", "--ratios=0", "--mean=0.3",
        "--std=0.4", "--apply=0.75", f"--out={out}",
    ]  # fmt: skip
    assert main(words) == 0
    assert "cut from the training images of digits" in capsys.readouterr().err
    pruned, record = load(out)
    assert record.images == ImageInput((0.3,), (0.4,), "grey", tuple("0123456789"))
    total, nonzero = count_parameters(pruned)
    assert nonzero / total == pytest.approx(0.25, abs=0.03)
    result = json.loads(Path(f"{out}.json").read_text())
    assert {p["ratio"] for p in result["points"]} == {0, 0.75}
    assert result["applied"]["method"] == "l1"
    before = out.read_bytes()
    assert main(words) == 1
    assert "replace it with --force" in capsys.readouterr().err
    assert out.read_bytes() == before
    for wrong in ("--apply=1", f"--out={tmp_path / 'x.onnx'}"):
        assert main([*words, "--force", wrong]) == 1


def test_a_share_of_the_training_images_may_have_been_seen(
    model_file: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "val", ("cat", "dog"), 3, first=100)
    words = [
        "prune", str(model_file), "--data=imagefolder", f"--data-path={pets}", "--macs=0.9", "--max-drop=1", *GIVEN,
        f"--out={tmp_path / 'lean.pt'}",
    ]  # fmt: skip
    assert main(words) == 0
    assert "give labelled images that it was not trained on" in capsys.readouterr().err
    assert load(tmp_path / "lean.pt")[1].images == IMAGES
    assert main([*words, f"--validation-path={tmp_path / 'val'}"]) == 0
    said = capsys.readouterr()
    assert "warning" not in said.err
    assert "Accuracy on 6 validation images" in " ".join(said.out.split())


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({"in_channels": 2, "classes": 2}, (2, 16, 16), "the model takes (2, 16, 16)"),
        ({"classes": 1}, (3, 16, 16), "a score for each class, not one for both"),
    ],
)
def test_models_that_folders_of_images_do_not_fit(
    arguments: dict[str, int], shape: tuple[int, ...], message: str, pets: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spec = ModelSpec("resnet-20", arguments)
    path = save(tmp_path / "m.pt", build(spec), Record(spec, shape))
    words = ["evaluate", str(path), "--data=imagefolder", f"--data-path={pets}"]
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_models_of_one_kit_share_the_calibration_images() -> None:
    arguments = argparse.Namespace(data="digits", mean=None)
    x = (torch.zeros(1, 3, 6, 6),)
    other = ImageInput(IMAGES.mean, IMAGES.std, "rgb")
    a, b, c = (Subject(name, nn.Identity(), x) for name in "abc")
    named = ImageInput(IMAGES.mean, IMAGES.std, IMAGES.colours)
    assert shared_images([(a, None), (b, IMAGES), (c, named)], arguments) == IMAGES
    assert shared_images([(a, None)], arguments) is None
    with pytest.raises(ConfigError, match="b and c normalise images differently"):
        shared_images([(a, None), (b, IMAGES), (c, other)], arguments)
    arguments.mean = "0.5"
    assert shared_images([(b, IMAGES), (c, other)], arguments) is None


# Several inputs


class TwoInputs(nn.Module):
    """A network of an image and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.ids = nn.Linear(12, 6), nn.Embedding(9, 6)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.image(x.flatten(1)).relu() + self.ids(ids).mean(1)


TWO = ["--model=test_images_cli:TwoInputs", "--input-shape=3,2,2", "--input-shape=5:int64"]
OWN = "--own-code=test_images_cli:TwoInputs"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_record_of_several_inputs_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    spec = ModelSpec("test_images_cli:TwoInputs")
    record = Record(spec, (3, 2, 2), further=(InputSpec((5,), torch.int64), InputSpec((2,))))
    path = save(tmp_path / "m.pt", TwoInputs().to(dtype), record, trust=spec.name)
    found = load(path, trust=spec.name)[1]
    assert found == record
    assert [x.dtype for x in found.inputs(4)] == [dtype, torch.int64, dtype]
    assert [tuple(x.shape) for x in found.inputs(4)] == [(4, 3, 2, 2), (4, 5), (4, 2)]
    with pytest.raises(ModelError, match="takes 3 inputs"):
        found.example_inputs()
    assert inspect(path)["record"]["further_inputs"][0] == {"shape": [5], "dtype": "int64"}


def test_several_inputs_at_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lean = tmp_path / "lean.pt"
    assert main(["simplify", *TWO, f"--out={lean}"]) == 0
    model, record = load(lean, trust="test_images_cli:TwoInputs")
    assert model(*record.inputs(3)).shape == (3, 6)
    arguments = argparse.Namespace(
        files=[lean], model=None, own_code=[OWN.partition("=")[2]], device=None, seed=None
    )
    assert [tuple(x.shape) for x in subjects(arguments, batch=2)[0].inputs] == [
        (2, 3, 2, 2),
        (2, 5),
    ]
    capsys.readouterr()
    assert main(["evaluate", str(lean), OWN, "--data=digits", f"--out={tmp_path / 'e.json'}"]) == 1
    assert "takes 2 inputs" in capsys.readouterr().err
    assert main(["simplify", *TWO[:2], "--input-shape=5:float", f"--out={lean}"]) == 1
    assert "int64 or int32" in capsys.readouterr().err


def test_a_sweep_without_data_is_refused(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(model_file), f"--out={tmp_path / 's.json'}"]) == 1
    assert "sweep needs data to measure on" in capsys.readouterr().err
    arguments = argparse.Namespace(data="imagefolder", data_path=None)
    with pytest.raises(ConfigError, match="--data-path=FOLDER"):
        load_images(arguments, None, (3, 6, 6))
