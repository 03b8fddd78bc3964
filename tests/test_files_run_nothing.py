"""A file runs nothing: every command and every public loader, on records that name code."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import snello
from snello import ModelSpec, Record, load, save
from snello.cli import main
from snello.codec import compress, decompress
from snello.deploy import export, footprint
from snello.errors import ConfigError, MissingExtraError, ModelError
from snello.store import build, build_untrusted, from_dict, to_dict, trusted_names

SHADOW = """
from pathlib import Path
Path({canary!r}).write_text(__name__)
from torch import nn
def make(**_):
    Path({canary!r}).write_text("called")
    return nn.Linear(2, 2)
class Net(nn.Linear):
    def __init__(self, **_):
        Path({canary!r}).write_text("built")
        super().__init__(2, 2)
def list_models(**_):
    return ["resnet18"]
def is_model(name):
    return True
get_model_builder = create_model = lambda *_, **__: make
PreTrainedModel, ViTModel, __all__ = Net, Net, ["ViTModel"]
"""

# Modules that lie in the working folder: own names, and those of libraries and of the standard
# library.
HERE = ("evil", "timm", "os", "snello_plugins", "onnx_extra")

WRITE = {"command": "echo x > {canary}"}
HOSTILE: dict[str, tuple[str, dict[str, Any]]] = {
    "shell": ("os:system", WRITE),
    "posix": ("posix:system", WRITE),
    "nt": ("nt:system", WRITE),
    "popen": ("os:popen", {"cmd": "echo x > {canary}"}),
    "subprocess": ("subprocess:run", {"args": ["touch", "{canary}"]}),
    "class with side effects": ("subprocess:Popen", {"args": ["touch", "{canary}"]}),
    "exec": ("builtins:exec", {"source": "open('{canary}', 'w')"}),
    "eval": ("builtins:eval", {"source": "open('{canary}', 'w')"}),
    "open": ("builtins:open", {"file": "{canary}", "mode": "w"}),
    "io": ("io:open", {"file": "{canary}", "mode": "w"}),
    "pathlib": ("pathlib:Path.touch", {"self": "{canary}"}),
    "makedirs": ("os:makedirs", {"name": "{canary}"}),
    "rmtree": ("shutil:rmtree", {"path": "{kept}"}),
    "pdb": ("pdb:run", {"statement": "open('{canary}', 'w')"}),
    "runpy": ("runpy:run_path", {"path_name": "evil.py"}),
    "importlib": ("importlib:import_module", {"name": "evil"}),
    "torch.load": ("torch:load", {"f": "pickle.pt", "weights_only": False}),
    "torch.hub": ("torch:hub.load", {"repo_or_dir": ".", "source": "local", "model": "make"}),
    "a module of torch": ("torch.nn:Linear", {"in_features": 2, "out_features": 2}),
    "own factory": ("evil:make", {}),
    "own class": ("evil:Net", {}),
    "dotted module": ("snello_plugins.evil:make", {}),
    "relative module": (".evil:make", {}),
    "snello's function": ("snello.files:write_file", {"path": "{canary}", "write": "x"}),
    "snello's class by path": ("snello.lab.models:LeNet5", {}),
    "chain behind a library": ("torchvision:models.resnet.os.system", WRITE),
    "chain behind a model": ("torchvision.models:resnet18.__globals__", {}),
    "chain to a builtin": ("torchvision.models:resnet18.__class__", {}),
    "function of torchvision": ("torchvision.models:get_weight", {"name": "ResNet18_Weights.DEFAULT"}),
    "factory of torchvision": ("torchvision.models:get_model", {"name": "resnet18", "weights": "DEFAULT"}),
    "module of torchvision": ("torchvision.models.resnet:resnet18", {"weights": "DEFAULT"}),
    "weights of torchvision": ("resnet18", {"weights": "DEFAULT"}),
    "backbone of torchvision": ("deeplabv3_resnet50", {"weights_backbone": "DEFAULT"}),
    "pretrained of torchvision": ("torchvision:resnet18", {"pretrained": True}),
    "function of timm": ("timm:create_model", {"model_name": "resnet18", "pretrained": True}),
    "hub name of timm": ("timm:hf-hub:someone/net", {}),
    "pretrained of timm": ("timm:resnet18", {"pretrained": True}),
    "checkpoint of timm": ("timm:resnet18", {"checkpoint_path": "pickle.pt"}),
    "pipeline": ("transformers:pipeline", {"task": "text-generation", "trust_remote_code": True}),
    "auto class": ("transformers:AutoModel", {"config": {}}),
    "loader of a class": ("transformers:ViTModel.from_pretrained", {"config": {}}),
    "chain in transformers": ("transformers:models.auto.AutoModel", {}),
    "no model of transformers": ("transformers:Trainer", {}),
    "remote code": ("transformers:ViTModel", {"config": {"auto_map": {"AutoModel": "a/b--c.D"}}}),
    "kernels of a hub": ("transformers:ViTModel", {"config": {"attn_implementation": "a/b"}}),
    "backbone of a hub": ("transformers:DetrForObjectDetection", {"config": {"backbone": "a/b"}}),
    "shadowed library": ("onnx_extra:make", {}),
    "no name": ("", {}),
    "no module": (":system", WRITE),
    "no attribute": ("os:", {}),
    "terminal codes": ("os:system\x1b[2J\n\r", WRITE),
    "spaces": (" os:system", WRITE),
    "other letters": ("оs:system", WRITE),  # a Cyrillic o
    "zero byte": ("os\x00:system", WRITE),
    "a path": ("../evil:make", {}),
    "long": (f"{'a.' * 50_000}b:c", {}),
    "bare shadow": ("evil", {}),
    "bare with odd letters": ("resnet18\u202e", {}),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder full of bait; at the end nothing of it was touched, and no module of it
    imported.
    """
    work = tmp_path / "work"
    (work / "kept").mkdir(parents=True)
    (work / "kept" / "letter").write_text("dear")
    (work / "hubconf.py").write_text(SHADOW.format(canary=str(work / "canary")))
    (work / "snello_plugins").mkdir()
    (work / "snello_plugins" / "evil.py").write_text(SHADOW.format(canary=str(work / "canary")))
    for name in HERE:
        (work / f"{name}.py").write_text(SHADOW.format(canary=str(work / "canary")))
    monkeypatch.chdir(work)
    return work


def _filled(value: Any, work: Path) -> Any:
    if isinstance(value, str):
        return value.replace("{canary}", str(work / "canary")).replace("{kept}", str(work / "kept"))
    if isinstance(value, dict):
        return {key: _filled(inner, work) for key, inner in value.items()}
    return [_filled(inner, work) for inner in value] if isinstance(value, list) else value


def _record(name: str, arguments: dict[str, Any], work: Path) -> dict[str, Any]:
    model = {"name": name, "arguments": _filled(arguments, work)}
    return {"model": model, "input_shape": [3, 32, 32], "plan": None, "folded_batchnorms": {}}


def _model_file(work: Path, record: dict[str, Any]) -> Path:
    path = work / "stranger.pt"
    content = {
        "format": "snello model 1",
        "record": json.dumps(record),
        "state_dict": {"n": torch.ones(1)},
    }
    torch.save(content, path)
    return path


def _bitstream(work: Path, record: dict[str, Any]) -> Path:
    pytest.importorskip("nncodec", reason="the extra nnc is not installed")
    path = work / "stranger.snello"
    path.write_bytes(compress({"n": torch.arange(2)}, record=record))
    return path


WRITERS: dict[str, Callable[[Path, dict[str, Any]], Path]] = {
    ".pt": _model_file,
    ".snello": _bitstream,
}

COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "measure": lambda f: ["measure", f, "--out=m.json", "--repeats=1", "--warmup=0"],
    "measure a folder": lambda f: ["measure", str(Path(f).parent), "--out=m.json"],
    "simplify": lambda f: ["simplify", f, "--out=out.pt"],
    "export": lambda f: ["export", f, "--out=out.onnx"],
    "compress": lambda f: ["compress", f, "--out=out.snello"],
    "sweep": lambda f: ["sweep", f, "--data=digits", "--out=sweep.json"],
    "prune": lambda f: ["prune", f, "--data=digits", "--macs=0.5", "--out=out.pt"],
    "shrink": lambda f: ["shrink", f, "--data=digits", "--out=out.pt"],
    "evaluate": lambda f: ["evaluate", f, "--data=digits", "--out=evaluate.json"],
    "bench-device": lambda f: ["bench-device", "kit", f, "--no-int8"],
    "decompress": lambda f: ["decompress", f, "--out=out.pt"],
}


def _modules_of(work: Path) -> list[str]:
    """Modules that were imported from the working folder."""
    origins = {
        name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())
    }
    return [
        name for name, origin in origins.items() if origin and Path(origin).is_relative_to(work)
    ]


def _nothing_happened(work: Path) -> None:
    assert not (work / "canary").exists(), (work / "canary").read_text()
    assert (work / "kept" / "letter").read_text() == "dear"
    assert not _modules_of(work)


def _one_line(error: str) -> None:
    # What torch logs when transformers first imports the libraries behind it is not ours.
    error = re.sub(r"^W\d{4} .*\n", "", error, flags=re.MULTILINE)
    assert error.startswith("snello: error: "), error
    assert error.count("\n") == 1
    assert error.strip().isprintable()
    assert len(error) < 1200


@pytest.mark.sampled(57)  # no divisor of the product: other cases for every command
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_model_file_names(
    command: str, case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich", reason="the extra report is not installed")
    if command == "sweep":
        pytest.importorskip("lightning", reason="the extra train is not installed")
    # decompress reads bitstreams alone; the other commands take both.
    write = WRITERS[".snello" if command == "decompress" else ".pt"]
    path, known = write(folder, _record(*HOSTILE[case], folder)), set(sys.path)
    assert main(COMMANDS[command](str(path))) == 1
    _one_line(capsys.readouterr().err)
    _nothing_happened(folder)
    assert set(sys.path) == known


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_bitstream_names(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich", reason="the extra report is not installed")
    for case in ("shell", "own factory", "chain behind a library", "function of torchvision"):
        path = _bitstream(folder, _record(*HOSTILE[case], folder))
        assert main(COMMANDS[command](str(path))) == 1
        error = capsys.readouterr().err
        _one_line(error)
        assert "stranger.snello" in error
        assert "--own-code" in error
        _nothing_happened(folder)


@pytest.mark.sampled(47)
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("loader", ["load", "load a bitstream", "from_dict", "build_untrusted"])
def test_no_loader_runs_what_a_record_names(loader: str, case: str, folder: Path) -> None:
    record = _record(*HOSTILE[case], folder)
    calls: dict[str, Callable[[], object]] = {
        "load": lambda: load(_model_file(folder, record)),
        "load a bitstream": lambda: load(_bitstream(folder, record)),
        "from_dict": lambda: from_dict(record, {}, "stranger"),
        "build_untrusted": lambda: build_untrusted(
            ModelSpec.from_dict(record["model"]), where="stranger"
        ),
    }
    with pytest.raises((ModelError, MissingExtraError)) as caught:
        calls[loader]()
    assert "stranger" in str(caught.value)
    _nothing_happened(folder)


def test_a_bitstream_is_read_for_what_is_in_it_without_building(folder: Path) -> None:
    path = _bitstream(folder, _record(*HOSTILE["own factory"], folder))
    assert decompress(path.read_bytes()).record["model"]["name"] == "evil:make"
    assert main(["inspect", str(path)]) == 0
    assert main(["inspect", str(_model_file(folder, _record(*HOSTILE["shell"], folder)))]) == 0
    _nothing_happened(folder)


def test_the_message_says_what_where_and_what_to_do(folder: Path) -> None:
    path = _model_file(folder, _record(*HOSTILE["shell"], folder))
    with pytest.raises(
        ModelError, match=r"stranger\.pt: its model is built by 'os:system', which is neither"
    ):
        load(path)
    with pytest.raises(ModelError, match=r"--own-code os:system \(trust='os:system' in Python\)"):
        load(path)


@pytest.mark.parametrize("value", [print, {1}, b"x", nn.ReLU(), {"a": [torch.ones(1)]}])
def test_arguments_are_plain_data(value: object) -> None:
    with pytest.raises(
        ModelError, match=r"here: the arguments of its model contain a \w+, which is not plain"
    ):
        build_untrusted(ModelSpec("lenet-5", {"classes": value}), where="here")


def test_arguments_have_a_bounded_depth(folder: Path) -> None:
    nested: Any = []
    for _ in range(50):
        nested = [nested]
    with pytest.raises(ModelError, match="more than 16 deep"):
        build_untrusted(ModelSpec("lenet-5", {"classes": nested}))
    text = (
        '{"model": {"name": "lenet-5", "arguments": {"classes": '
        + "[" * 10**6
        + "]" * 10**6
        + "}}}"
    )
    torch.save({"format": "snello model 1", "record": text, "state_dict": {}}, folder / "deep.pt")
    with pytest.raises(ModelError, match=r"deep\.pt: the record of the model is damaged"):
        load(folder / "deep.pt")


# Shadows of libraries


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("torchvision", "resnet18"),
        ("timm", "timm:resnet18"),
        ("transformers", "transformers:ViTModel"),
    ],
)
@pytest.mark.parametrize("module", [True, False], ids=["python -m snello", "snello"])
def test_a_file_in_the_working_folder_is_no_library(
    library: str, name: str, module: bool, tmp_path: Path
) -> None:
    """In a process of its own: here the library may have been imported before."""
    canary = tmp_path / "canary"
    (tmp_path / f"{library}.py").write_text(SHADOW.format(canary=str(canary)))
    _model_file(tmp_path, _record(name, {}, tmp_path))
    found = _process(tmp_path, module, "measure", "stranger.pt", "--out=m.json")
    assert found.returncode == 1
    # Either the installed library made the model, whose weights these are not, or there is none.
    assert "belong to another model" in found.stderr or f"package '{library}'" in found.stderr, (
        found.stderr
    )
    _one_line(found.stderr)
    assert not canary.exists()


def test_a_shadow_that_was_imported_before_is_refused(tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("def is_model(name): return True\ncreate_model = print\n")
    code = (
        "import timm\nfrom snello import ModelSpec\nfrom snello.store import build_untrusted\n"
        "build_untrusted(ModelSpec('timm:resnet18'))"
    )
    found = _python(tmp_path, "-c", code)
    assert "timm was imported from the working folder" in found.stderr


def _process(folder: Path, module: bool, *arguments: str) -> subprocess.CompletedProcess[str]:
    start = ["-m", "snello"] if module else ["-P", "-m", "snello"]
    return _python(folder, *start, *arguments)


def _python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(snello.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, "PYTHONPATH": source},
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


# Trust by name


NETS = """
from torch import nn
def {name}(width=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two factories of the user's in the working folder, and a model file that names the first."""
    for name in ("first", "second"):
        (tmp_path / f"own_{name}_nets.py").write_text(NETS.format(name=name))
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        spec = ModelSpec("own_first_nets:first", {"width": 3})
        save("own.pt", build(spec), Record(spec, (3, 2, 2)))
    for name in _modules_of(tmp_path):
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_a_factory_that_is_named_is_run(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="the extra report is not installed")
    known, measure = (
        list(sys.path),
        ["measure", "own.pt", "--out=m.json", "--repeats=1", "--warmup=0"],
    )
    assert main(measure) == 1
    assert not _modules_of(own)
    assert main([*measure, "--own-code=own_second_nets:second"]) == 1, "another name is no trust"
    assert "own_first_nets" not in sys.modules
    assert "--own-code own_first_nets:first" in capsys.readouterr().err
    assert main([*measure, "--own-code=own_first_nets:other"]) == 1, (
        "another function is none either"
    )
    assert main([*measure, "--own-code=own_first_nets:first"]) == 0
    assert (
        main([*measure, "--own-code=own_second_nets:second", "--own-code", "own_first_nets:first"])
        == 0
    )
    assert main(["simplify", "own.pt", "--own-code=own_first_nets:first", "--out=lean.pt"]) == 0
    assert list(sys.path) == known


def test_a_model_that_is_named_is_run(own: Path) -> None:
    pytest.importorskip("rich", reason="the extra report is not installed")
    argv = ["--model=own_first_nets:first", "--input-shape=3,2,2", "--out=lean.pt"]
    assert main(["simplify", *argv]) == 0
    assert main(["simplify", "lean.pt", "--out=again.pt"]) == 1
    assert main(["simplify", "lean.pt", "--out=again.pt", "--own-code=own_first_nets:first"]) == 0


def test_trust_in_python(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(own)
    for refused in (
        (),
        "own_second_nets:second",
        ["own_first_nets", "own_first_nets:*", "own_first_nets:firs"],
    ):
        with pytest.raises(ModelError, match="own_first_nets:first"):
            load("own.pt", trust=refused)
    assert not _modules_of(own)
    for trusted in (
        "own_first_nets:first",
        ["a:b", "own_first_nets:first"],
        {"own_first_nets:first"},
    ):
        model, record = load("own.pt", trust=trusted)
        assert record.model.arguments == {"width": 3}
    data = to_dict(model, record)
    assert from_dict(data, model.state_dict(), "here", trust="own_first_nets:first")
    assert trusted_names("a:b") == {"a:b"}


@pytest.mark.parametrize("trust", [True, False, None, 3, [True], ["a:b", 1], "", [""]])
def test_trust_is_a_name(trust: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"trust=.*pass the name of a factory that a file may call"
    ):
        load("nowhere.pt", trust=trust)


def test_trust_reaches_arguments_that_load_something(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    asked: list[object] = []

    def fetch(url: str, *_: object, **__: object) -> None:
        asked.append(url)
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    spec = ModelSpec("resnet18", {"weights": "DEFAULT"})
    with pytest.raises(ModelError, match="'weights', which would load or download"):
        build_untrusted(spec)
    assert not asked
    with pytest.raises(ModelError, match="no route"):
        build_untrusted(spec, "resnet18")
    assert asked


# Names of libraries


VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lenet-5", {"classes": 3}),
        ("resnet18", {"num_classes": 3, "weights": None}),
        ("torchvision:resnet18", {}),
        ("torchvision.models:mobilenet_v3_small", {"num_classes": 3}),
        ("lraspp_mobilenet_v3_large", {}),
        ("ssdlite320_mobilenet_v3_large", {}),
        ("timm:resnet18", {"num_classes": 3}),
        ("timm:resnet18.a1_in1k", {"pretrained": False}),
        (
            "transformers:ViTForImageClassification",
            {"config": {**VIT, "image_size": 32, "num_labels": 3}},
        ),
    ],
)
def test_registered_models_are_built_without_trust(
    name: str, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = name.partition(":")[0].partition(".")[0] if ":" in name else "torchvision"
    pytest.importorskip(library, reason=f"{library} is not installed")
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", pytest.fail)
    monkeypatch.setattr(
        "torchvision._internally_replaced_utils.load_state_dict_from_url",
        pytest.fail,
        raising=False,
    )
    spec = ModelSpec(name, arguments)
    record = Record(spec, (3, 32, 32))
    saved = build(spec)
    loaded, again = load(save(tmp_path / "model.pt", saved, record))
    assert again == record
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in saved.state_dict().items())


def test_a_config_of_transformers_is_taken_as_it_is_written() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    model: Any = build("transformers:ViTModel", config={**VIT, "image_size": 32})
    config = json.loads(json.dumps({**model.config.to_dict(), "_name_or_path": "someone/net"}))
    again: Any = build_untrusted(ModelSpec("transformers:ViTModel", {"config": config}))
    assert again.config.hidden_size == 16
    assert again.config.name_or_path == ""


# Programs of torch.export, which torch unpickles and evaluates


class _Runs:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def _changed(path: Path, part: str, change: Callable[[bytes], bytes]) -> None:
    """Rewrite the parts of an archive whose names hold ``part``."""
    with zipfile.ZipFile(path) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    assert any(part in name for name in content)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, change(data) if part in name else data)


def _pickled(canary: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(_Runs(canary), buffer)
    return buffer.getvalue()


def _expression(data: bytes, text: str) -> bytes:
    found = re.sub(rb'("expr_str": )"[^"]*"', lambda m: m[1] + json.dumps(text).encode(), data)
    assert found != data
    return found


PROGRAMS: dict[str, tuple[str, Callable[[bytes, Path], bytes]]] = {
    "pickled inputs": ("sample_inputs", lambda _, canary: _pickled(canary)),
    "pickled weight": (
        "weights_config", lambda data, _: data.replace(b'"use_pickle": false', b'"use_pickle": true')
    ),
    "call": (
        "models/", lambda data, _: data.replace(b'"torch.ops.aten.linear.default"', b'"torch.os.system"')
    ),
    "dunder": (
        "models/",
        lambda data, _: data.replace(b'"torch.ops.aten.linear.default"', b'"torch.ops.aten.__init__"'),
    ),
    "expression": ("models/", lambda data, canary: _expression(data, f"open('{canary}', 'w')")),
    "expression without quotes": ("models/", lambda data, _: _expression(data, "exec(chr(49))")),
    "attribute": ("models/", lambda data, _: _expression(data, "Symbol.__class__")),
    "guards": (
        "models/", lambda data, _: data.replace(b'"guards_code": []', b'"guards_code": ["print(1)"]')
    ),
    "name": ("models/", lambda data, _: data.replace(b'"name": "linear"', b'"name": "a=print(1)"')),
}  # fmt: skip


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_program_with_code_is_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich", reason="the extra report is not installed")
    path = export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "net.pt2")
    part, change = PROGRAMS[case]
    before = path.read_bytes()
    _changed(path, part, lambda data: change(data, tmp_path / "canary"))
    assert path.read_bytes() != before
    assert main(["measure", str(path), f"--out={tmp_path / 'm.json'}"]) == 1
    error = capsys.readouterr().err
    _one_line(error)
    assert "could run code" in error
    assert not (tmp_path / "canary").exists()


def test_a_rewritten_program_without_code_is_read(tmp_path: Path) -> None:
    path = export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "net.pt2")
    assert footprint(path).parameters == 8


def test_a_pickled_file_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(_pickled(tmp_path / "canary"))
    with pytest.raises(ModelError, match=r"net\.pt2 (contains a part of another kind|is damaged)"):
        footprint(tmp_path / "net.pt2")
    assert not (tmp_path / "canary").exists()
