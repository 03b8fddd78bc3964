"""The table of additions in CONTRIBUTING.md: each is made in a copy of the sources and then used.

An addition is a set of new files and edits. The tests count the source files that it touches, and
use it through the public path: a recipe, the command line, ``Pruner``, ``simplify``. A further file
format, with its exporter and runner, is added in ``test_deploy_own_format.py``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import snello

SOURCE = Path(snello.__file__).parent
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Addition:
    """New files and edits (path -> text before which, and text that is inserted), and their use.

    Attributes:
        limit: most source files that it may touch.
        files: path below ``src/snello`` -> text of a new file.
        inserted: path -> pairs of an anchor and the text put in front of it.
        use: Python code that uses the addition; it ends with ``result = ...``.
        expected: the result, as JSON.
    """

    limit: int
    use: str
    expected: Any
    files: dict[str, str] = field(default_factory=dict)
    inserted: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


ADDITIONS = {
    "operation rule": Addition(
        limit=1,
        files={
            "simplification/ops/halve.py": '''
"""Half of a tensor."""
import torch
from torch import Tensor, nn
from .call import Call
from .channelwise import PerChannel
from .operation import Operation
from .registry import rule_for


class Halve(nn.Module):
    """x / 2, opaque to the tracer."""

    snello_leaf = True

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@rule_for(Halve)
def halve(call: Call) -> Operation | None:
    """A channel that is constant stays so, at half its value."""
    moving = call.moving_operand()
    return None if moving is None else PerChannel.of(call, moving[0], function=lambda v: v / 2)
'''
        },
        use="""
from torch import nn
from snello.simplification.ops.halve import Halve
model = nn.Sequential(nn.Linear(4, 6), Halve(), nn.Linear(6, 2)).double()
with torch.no_grad():
    model[0].weight[:4] = 0
x = torch.randn(3, 4).double()
lean = snello.simplify(model, x)
result = [lean.get_submodule("0").out_features, bool((lean(x) - model(x)).abs().max() < 1e-12)]
""",
        expected=[2, True],
    ),
    "importance": Addition(
        limit=1,
        inserted={
            "pruning/_importance.py": [
                (
                    "IMPORTANCES: dict",
                    '''def largest(model: nn.Module, granularity: Granularity) -> dict[str, Tensor]:
    """Take the largest weights first."""
    return {name: 1 / (1 + score) for name, score in l1(model, granularity).items()}


''',
                ),
                ('    "l1": l1,', '    "largest": largest,\n'),
            ],
        },
        use="""
from torch import nn
from snello.pruning import Pruner, Ratio
layer = nn.Linear(4, 1, bias=False)
with torch.no_grad():
    layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
Pruner(nn.Sequential(layer), None, importance="largest", amount=Ratio(0.5), exclude=()).prune()
from snello.cli import sweep
import argparse
parser = argparse.ArgumentParser()
sweep.add_arguments(parser)
result = [layer.weight[0].tolist(), "largest" in parser.format_help()]
""",
        expected=[[1.0, 2.0, 0.0, 0.0], True],
    ),
    "tuning space": Addition(
        limit=1,
        inserted={
            "lab/methods/_spaces.py": [('"mu": [0.0, 0.9]', '"probe": [10, 100], ')],
        },
        use="""
from snello.lab.recipes import load_recipe
from snello.lab.training.tuning import space_of
added = [one for one in space_of(load_recipe("digits"), "neq") if one.name == "neq.probe"]
result = [(one.low, one.high, one.whole) for one in added]
""",
        expected=[[10, 100, True]],
    ),
    "selection": Addition(
        limit=2,
        files={
            "equilibrium/_first.py": '''
"""Freeze the first neurons of every layer."""
from collections.abc import Mapping
from typing import Any
import torch
from torch import Tensor
from ._selection import WatchedLayer


class First:
    """Freezes the first ``count`` neurons."""

    observes = False

    def __init__(self, count: int) -> None:
        self.count = count

    def select(
        self, layers: Mapping[str, WatchedLayer], similarities: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {name: torch.arange(l.neurons) < self.count for name, l in layers.items()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
'''
        },
        inserted={
            "equilibrium/__init__.py": [
                (
                    "from ._flops import BackwardFlops",
                    "from ._first import First as First\n",
                )
            ]
        },
        use="""
from torch import nn
from snello.equilibrium import First, SelectiveUpdate
model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
method = SelectiveUpdate(model, optimizer, torch.randn(5, 3), First(2))
method.step()
result = method.frozen["0"].tolist()
""",
        expected=[True, True, False, False],
    ),
    "sensitivity": Addition(
        limit=3,
        files={
            "sensitivity/_uniform.py": '''
"""A sensitivity that is the same everywhere."""
import torch
from torch import Tensor, nn
from ._decay import Sensitivity, insensitivity


class Uniform(Sensitivity):
    """Decays every parameter alike."""

    def __init__(self, model: nn.Module, lmbda: float) -> None:
        super().__init__(lmbda)
        self._parameters = dict(model.named_parameters())

    def sensitivity(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p) for name, p in self._parameters.items()}

    def _weights_and_insensitivities(self) -> tuple[list[Tensor], list[Tensor]]:
        weights = list(self._parameters.values())
        return weights, insensitivity([torch.zeros_like(w) for w in weights])
'''
        },
        inserted={
            "sensitivity/__init__.py": [
                ("from ._serene import", "from ._uniform import Uniform as Uniform\n")
            ],
            "lab/methods/_table.py": [
                (
                    "METHOD_SPECS: Mapping",
                    """def _uniform(setting: Setting) -> Sensitivity:
    from snello.sensitivity import Uniform

    return Uniform(setting.model, setting.options.lmbda)


""",
                ),
                (
                    '        MethodSpec("neq"',
                    """        MethodSpec(
            "uniform", "Uniform decay", "sensitivity", _uniform, "uniform", "tab:red",
        ),
""",
                ),
            ],
        },
        use="""
from snello.errors import ConfigError
from snello.lab.methods import label_of
from snello.lab.methods import METHOD_SPECS
from snello.lab.training import load_recipe, train
small = ["--methods=[uniform]", "--epochs=5", "--uniform.finetune=1", "--device=cpu"]
small += ["--data.limit=100", "--data.test_limit=40"]
recipe = load_recipe("digits", [*small, "--uniform.lmbda=0.01", "--uniform.twt=0.5"])
run = train(recipe, "uniform", "run")
try:
    load_recipe("digits", ["--unifrom.lmbda=0.01"])
except ConfigError as error:
    hint = "did you mean 'uniform.lmbda'?" in str(error)
result = [run.method, run.epochs[-1].pruned > 0, label_of("uniform+neq"), METHOD_SPECS["uniform"].colour, hint]
""",
        expected=["uniform", True, "Uniform decay + NEq", "tab:red", True],
    ),
    "dataset": Addition(
        limit=2,
        files={
            "lab/datasets/_stripes.py": '''
"""Images of one shade, whose class is the shade."""
import torch
from ._places import Request
from ._types import Images, RawData


def read_stripes(request: Request) -> RawData:
    """Forty images for training, ten for testing."""
    labels = torch.arange(50) % 2
    pixels = (labels * 200).to(torch.uint8)[:, None, None, None].expand(50, 1, 4, 4).clone()
    train, test = Images(pixels[:40], labels[:40]), Images(pixels[40:], labels[40:])
    return RawData(train, test, ("dark", "bright"), "made here")
'''
        },
        inserted={
            "lab/datasets/_load.py": [
                (
                    "from ._torchvision",
                    "from ._stripes import read_stripes\n",
                ),
                ('    "digits": _digits', '    "stripes": read_stripes,\n'),
            ]
        },
        use="""
from snello.lab.datasets import dataset_names, load_dataset
from snello.lab.training import load_recipe, load_data
splits = load_dataset("stripes", validation=0.25)
recipe = load_recipe("digits", ["--data.name=stripes"])
parts = [len(splits.train), len(splits.validation), len(splits.test), list(splits.classes)]
result = [parts, "stripes" in dataset_names(), load_data(recipe).name]
""",
        expected=[[30, 10, 10, ["dark", "bright"]], True, "stripes"],
    ),
    "command": Addition(
        limit=2,
        files={
            "cli/greet.py": '''
"""``snello greet``: a line."""
import argparse

HELP = "print a line"
EPILOG = "example: snello greet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--name", default="reader")


def run(arguments: argparse.Namespace) -> None:
    """Print."""
    print(f"hello {arguments.name}")
'''
        },
        inserted={
            "cli/_main.py": [
                ("    inspect,\n", "    greet,\n"),
                ("    journey, train, reproduce", "    greet,\n"),
            ]
        },
        use="""
import contextlib, io
from snello.cli import main
said, complaint = io.StringIO(), io.StringIO()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
    status = [main(["greet", "--name=you"]), main(["gret"])]
result = [status, said.getvalue(), "did you mean 'greet'?" in complaint.getvalue()]
""",
        expected=[[0, 2], "hello you\n", True],
    ),
}


def _touched(addition: Addition) -> set[str]:
    return {*addition.files, *addition.inserted}


def _add(addition: Addition, package: Path) -> None:
    for path, text in addition.files.items():
        assert not (package / path).exists()
        (package / path).write_text(text.lstrip())
    for path, edits in addition.inserted.items():
        for anchor, text in edits:
            before = (package / path).read_text()
            assert before.count(anchor) == 1, f"{path}: {anchor!r}"
            (package / path).write_text(before.replace(anchor, text + anchor))


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of all additions, in one copy of the sources and one process."""
    for module in ("lightning", "jsonargparse", "sklearn", "matplotlib"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("additions")
    package = folder / "source" / "snello"
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
    script = ["import json, torch, snello", "results = {}"]
    for name, addition in ADDITIONS.items():
        _add(addition, package)
        script += [addition.use, f"results[{name!r}] = result"]
    script.append("print(json.dumps(results))")
    (folder / "use.py").write_text("\n".join(script))
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("kind", ADDITIONS)
def test_addition_works_through_the_public_path(kind: str, results: dict[str, Any]) -> None:
    assert results[kind] == ADDITIONS[kind].expected


@pytest.mark.parametrize("kind", ADDITIONS)
def test_addition_touches_few_source_files(kind: str) -> None:
    assert len(_touched(ADDITIONS[kind])) <= ADDITIONS[kind].limit


def test_a_graph_edit_lives_in_four_source_files() -> None:
    """Indexed sums came in one commit; nothing else has learned of them since."""
    words = re.compile(r"\b(IndexedSum|ChannelSum|indexed_sum)\b")
    files = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if words.search(path.read_text())
    }
    assert files == {
        "simplification/ir/edits.py",
        "simplification/ops/add.py",
        "simplification/rewrite/appliers.py",
        "simplification/runtime/indexed_sum.py",
    }


def test_a_device_runner_is_one_function() -> None:
    """Timing takes any function without arguments, so that a runner registers nowhere."""
    from snello.deploy import latencies

    calls: list[int] = []
    found = latencies({"mine": lambda: calls.append(1)}, repeats=3, warmup=1)
    assert found["mine"].repeats == 3
    assert len(calls) == 4


def test_contributing_gives_the_same_numbers() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (\d) \|", text, re.MULTILINE))
    assert {kind: int(rows[kind]) for kind in ADDITIONS} == {
        kind: addition.limit for kind, addition in ADDITIONS.items()
    }
