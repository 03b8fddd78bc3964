"""The words of a command line arrive as they were typed, and unknown ones are answered with the
nearest.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from seams.cli import COMMANDS, UsageError, arguments, divided
from snello.cli import main
from snello.errors import ConfigError

pytest.importorskip("lightning")
pytest.importorskip("sklearn")
pytest.importorskip("jsonargparse")

from snello.lab.training import load_recipe

VALUES = (
    "sp ace", " two  spaces ", "a=b", "=", "a=b c=d", "ünï çödé ✓", "日本", "-x", "--x", "--x=3", "--out=other", "-",
    "# no comment", "a: b", "{a: b}", "[1, 2]", "'quoted'", '"double"', "*", "!tag", "%d", "a,b", "back\\slash",
    "new\nline", "@file", "$HOME", "",
)  # fmt: skip
NAMES = tuple(command.__name__.rpartition(".")[2].replace("_", "-") for command in COMMANDS)
RECIPE_COMMANDS = ("journey", "train", "reproduce", "recipes")
POSITIONAL = {
    "reproduce": ["table1"],
    "recipes": ["validate", "digits"],
    "bench-device": ["kit", "model.pt"],
}
FIRST = {name: POSITIONAL.get(name, ["given"]) for name in NAMES}


def by_turns(commands: Sequence[str]) -> pytest.MarkDecorator:
    """Every command with every value; outside of the marker each command with a fifth of them."""
    pairs = itertools.product(enumerate(commands), enumerate(VALUES))
    return pytest.mark.parametrize(
        ("command", "value"),
        [
            pytest.param(c, v, marks=() if (i + j) % 5 == 0 else pytest.mark.exhaustive)
            for (i, c), (j, v) in pairs
        ],
    )


@by_turns(sorted({*NAMES} - {"completion", "inspect", "install-codec", "recipes", "view"}))
def test_every_option_of_every_command_takes_any_value(command: str, value: str) -> None:
    """Before and behind the positional arguments, and none of them is lost."""
    option = next(o for o in ("--out", "--data-root", "--own-code") if _has(command, o))
    name = option.removeprefix("--").replace("-", "_")
    orders = [[f"{option}={value}", *FIRST[command]], [*FIRST[command], f"{option}={value}"]]
    if not value.startswith("--"):
        orders += [[option, value, *FIRST[command]], [*FIRST[command], option, value]]
    plain = vars(arguments([command, *FIRST[command]]))
    for words in orders:
        found = vars(arguments([command, *words]))
        assert found.pop("given") == {option}
        given = found.pop(name)
        assert given == ([value] if option == "--own-code" else value)
        assert found == {key: there for key, there in plain.items() if key not in (name, "given")}


def _has(command: str, option: str) -> bool:
    return option in arguments([command, *FIRST[command]]).options


@by_turns(RECIPE_COMMANDS)
def test_every_override_takes_any_value(command: str, value: str) -> None:
    orders = [[f"--data.path={value}", *FIRST[command]], [*FIRST[command], f"--data.path={value}"]]
    if not value.startswith("--"):
        orders += [["--data.path", value, *FIRST[command]], [*FIRST[command], "--data.path", value]]
    plain = vars(arguments([command, *FIRST[command]]))
    for words in orders:
        found = vars(arguments([command, *words]))
        assert found.pop("overrides") == [f"--data.path={value}"]
        assert found == {key: there for key, there in plain.items() if key != "overrides"}


@pytest.mark.parametrize("value", VALUES)
def test_a_recipe_gets_the_value_as_it_is_or_refuses_it(value: str) -> None:
    if value.startswith("#"):
        with pytest.raises(ConfigError, match=r"comment; write a path as '\./# no comment'"):
            load_recipe("digits", [f"--data.path={value}"])
        value = f"./{value}"
    assert load_recipe("digits", [f"--data.path={value}"]).data.path == value


def test_an_override_with_a_space_is_what_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: digits\ndata: {{name: imagefolder, path: {tmp_path}}}\n")
    assert main(["recipes", "validate", str(mine), "--data.path=sp ace"]) == 1
    assert "sp ace" in capsys.readouterr().err


def test_words_behind_two_dashes_are_no_options() -> None:
    assert arguments(["simplify", "--out=a", "--", "--odd.pt"]).file == "--odd.pt"
    assert divided(["--x", "--", "--y"], {}) == (["--", "--y"], ["--x"])


def test_the_value_of_two_dashes_is_refused() -> None:
    for words in (["simplify", "--out=--"], ["train", "--data.path=--"]):
        with pytest.raises(UsageError, match="cannot have the value '--'"):
            arguments(words)


# Unknown words


UNKNOWN: dict[str, tuple[list[str], str]] = {
    "command": (["simplfy", "m.pt"], "'simplfy' (did you mean 'simplify'?)"),
    "command with hyphen": (["bench_device"], "'bench_device' (did you mean 'bench-device'?)"),
    "option": (["simplify", "m.pt", "--ot=x"], "'--ot=x' (did you mean '--out'?)"),
    "option with a space": (["simplify", "--ot=x y"], "unknown option '--ot=x y'"),
    "option's value": (["simplify", "m.pt", "--speed", "3"], "unknown option '--speed=3'"),
    "argument": (["simplify", "m.pt", "n.pt"], "unknown argument 'n.pt'"),
    "argument of a recipe's command": (["train", "digits", "cifar"], "unknown argument 'cifar'"),
    "choice": (["export", "m.pt", "--format=onx"], "'onx' (did you mean 'onnx'?)"),
    "field": (["train", "digits", "--epoch=3"], "'epoch' (did you mean 'epochs'?)"),
    "field of a group": (["train", "digits", "--data.bathc_size=3"], "(did you mean 'data.batch_size'?)"),
    "option of a recipe's command": (["journey", "digits", "--resum"], "'resum' (did you mean 'resume'?)"),
    "recipe": (["train", "digts"], "'digts' (did you mean 'digits'?)"),
    "method": (["train", "digits", "--method=serenee"], "'serenee' (did you mean 'serene'?)"),
    "action": (["recipes", "validat"], "'validat' (did you mean 'validate'?)"),
    "missing value": (["simplify", "m.pt", "--out"], "a value that begins with dashes is given as --out=VALUE"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNKNOWN)
def test_unknown_words_suggest_the_nearest(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = UNKNOWN[what]
    with contextlib.suppress(SystemExit):
        assert main(words) != 0
    said = capsys.readouterr().err
    assert said.startswith("snello: error: ")
    assert said.count("\n") == 1
    assert expected in said


def test_a_usage_error_is_no_exit() -> None:
    with pytest.raises(UsageError, match="there is no command 'x'"):
        arguments(["x"])


def test_layer_names_suggest_the_nearest() -> None:
    from snello import SeReNe
    from snello.store import build

    with pytest.raises(ConfigError, match=r"'fc2x' \(did you mean '"):
        SeReNe(build("lenet-5"), exclude=["fc2x"])


# Recipes


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (
            "extends: digits\nepochs: 3\nseed: 1\nepochs: 4\n",
            "'epochs' is given twice, in lines 2 and 4",
        ),
        ("extends: digits\ndata: {limit: 3, batch_size: 4, limit: 5}\n", "'limit' is given twice"),
        (
            "extends: digits\nmodel:\n  name: lenet-5\n  arguments: {a: 1, a: 1}\n",
            "'a' is given twice",
        ),
    ],
)
def test_equal_keys_are_refused(text: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=key):
        load_recipe(str(path))


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: digits\nlobster: &one {pwe: 3, twt: 0.1}\nserene: {<<: *one, twt: 0.2}\n"
    )
    recipe: Any = load_recipe(str(path))
    assert (recipe.lobster.twt, recipe.serene.twt, recipe.serene.pwe) == (0.1, 0.2, 3)


def test_unknown_keys_suggest_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: digits\noptimizer: {learning_rate: 3, momentm: 0.9}\n")
    with pytest.raises(
        ConfigError, match=r"mine\.yaml: a recipe has no option 'optimizer\.learning_rate'"
    ):
        load_recipe(str(path))
    path.write_text("extends: digits\noptimizer: {momentm: 0.9}\n")
    with pytest.raises(ConfigError, match=r"did you mean 'optimizer\.momentum'"):
        load_recipe(str(path))
