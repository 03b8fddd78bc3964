"""Decoding in a child process: whatever becomes of the child, here there is one error, or the right
tensors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from seams.codec import child, worker
from snello.codec import (
    CodecSettings,
    Limits,
    compress,
    decode,
    decompress,
    encode,
)
from snello.errors import BitstreamError, ConfigError

pytest.importorskip("nncodec", reason="the extra nnc is not installed")

TENSORS = {"w": torch.linspace(-1, 1, 12).reshape(3, 4), "b": torch.ones(3)}
ZEROS = {"w": torch.zeros(2000, 1000)}
linux = pytest.mark.skipif(
    "memory_bytes" not in Limits.enforced(), reason="memory is limited on Linux only"
)


@pytest.fixture(scope="module")
def stream() -> bytes:
    return encode(TENSORS)


@pytest.fixture(scope="module")
def zeros() -> bytes:
    return encode(ZEROS, CodecSettings(dependent_quantisation=False))


def test_a_child_decodes_to_the_same(stream: bytes) -> None:
    here, there = decode(stream, isolated=False), decode(stream)
    assert list(here) == list(there) == list(TENSORS)
    for name, values in here.items():
        assert torch.equal(values, there[name])
        there[name] += 1  # the result can be written to


def test_the_decoder_loads_neither_torch_nor_snello(stream: bytes) -> None:
    request = {"paths": child._paths(), "stream_bytes": len(stream), "decoded_bytes": 2**20}
    text = json.dumps(request | {"memory_bytes": None, "seconds": None}).encode()
    script = (
        "import io, runpy, sys\n"
        f"worker = runpy.run_path({worker.__file__!r})\n"
        "replies = io.BytesIO()\n"
        "worker['serve'](sys.stdin.buffer, replies)\n"
        'assert replies.getvalue().endswith(b\'{"kind": "done"}\'), replies.getvalue()\n'
        "assert 'numpy' in sys.modules\n"
        "print([name for name in ('torch', 'snello', 'pickle5', 'pandas') if name in sys.modules])\n"
    )
    sent = len(text).to_bytes(4, "little") + text + stream
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], input=sent, capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == "[]"


@linux
def test_memory_beyond_the_limit_is_an_error(zeros: bytes) -> None:
    assert torch.equal(
        decode(zeros)["w"], ZEROS["w"]
    )  # 8 MB of levels, 8 MB of values: within what is derived
    with pytest.raises(BitstreamError, match="more memory"):
        decode(zeros, Limits(memory_bytes=2**20))


def test_claims_beyond_the_limit_are_an_error(zeros: bytes) -> None:
    for isolated in (True, False):
        with pytest.raises(BitstreamError, match=r"claims 8000000 bytes .*'w': 2000000 values"):
            decode(zeros, Limits(decoded_bytes=7_999_999), isolated=isolated)
        with pytest.raises(BitstreamError, match="2 tensors, more than the limit of 1"):
            decode(encode(TENSORS), Limits(tensors=1), isolated=isolated)


def test_a_tensor_that_comes_twice_is_an_error(stream: bytes) -> None:
    units = list(worker.split_units(stream))
    for isolated in (True, False):
        with pytest.raises(BitstreamError, match="'b' twice"):
            decode(b"".join([*units, units[-1]]), isolated=isolated)


def test_nothing_is_left_behind(stream: bytes) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("open files cannot be counted here")
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    others = children.read_text()  # such as multiprocessing's tracker, of a test before
    decode(stream)
    before = sorted(os.listdir("/proc/self/fd"))
    decode(stream)
    with pytest.raises(BitstreamError):
        decode(stream[:-8] + bytes(8))
    given_up = child.decode_isolated(stream, Limits())
    next(given_up)
    given_up.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert children.read_text() == others


def frames(*replies: object) -> str:
    """A child that answers so, whatever it is asked."""
    parts = []
    for reply in replies:
        body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        parts.append(body if isinstance(reply, bytes) else len(body).to_bytes(4, "little") + body)
    return f"import sys\nsys.stdin.buffer.read()\nsys.stdout.buffer.write({b''.join(parts)!r})\nsys.stdout.flush()\n"


CLAIMS = {"kind": "claims", "units": [[["w"], [2], 2]]}
TENSOR = {"kind": "tensor", "name": "w", "shape": [2], "qp": -32}
DONE = {"kind": "done"}

CHILDREN = {
    "segmentation fault": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV"),
    "abort": ("import os; os.abort()", "died of SIGABRT"),
    "exit": ("raise SystemExit(3)", "status 3"),
    "no answer at all": ("import sys; sys.stdin.buffer.read()", "status 0"),
    "closes its ears": ("import os, time; os.close(0); time.sleep(0.1)", "status 0"),
    "words": ("import sys; sys.stdin.buffer.read(); print('hello, world' * 99)", "invalid reply"),
    "half a reply": (frames((99).to_bytes(4, "little"), b"{"), "without an answer"),
    "an endless reply": (frames((2**31).to_bytes(4, "little")), "invalid reply"),
    "no JSON": (frames((4).to_bytes(4, "little"), b"{{{{"), "invalid reply"),
    "deep JSON": (frames((60_000).to_bytes(4, "little"), b"[" * 60_000), "invalid reply"),
    "another kind": (frames({"kind": "tensor"}), "invalid reply"),
    "no kind": (frames([1, 2]), "invalid reply"),
    "claims without form": (frames({"kind": "claims", "units": [[["w"], [2]]]}), "invalid reply"),
    "claims of nothing": (frames({"kind": "claims", "units": [[["w"], [0], 0]]}), "invalid reply"),
    "claims beyond the limit": (frames({"kind": "claims", "units": [[["w"], [2**40], 2**40]]}), "limit"),
    "more than was claimed": (frames(CLAIMS, {**TENSOR, "shape": [2**40]}), "more values than were claimed"),
    "a negative shape": (frames(CLAIMS, {**TENSOR, "shape": [-2]}), "without a shape"),
    "a name that is none": (frames(CLAIMS, {**TENSOR, "name": 7}), "invalid reply"),
    "half a tensor": (frames(CLAIMS, TENSOR, b"1234"), "without an answer"),
    "no end": (frames(CLAIMS, TENSOR, b"12345678"), "without an answer"),
    "its own error": (frames({"kind": "error", "error": "KeyError", "message": "'x'"}), r"nncodec \(KeyError\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHILDREN)
def test_whatever_the_child_does_is_one_error(
    case: str, stream: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, words = CHILDREN[case]
    (tmp_path / "child.py").write_text(script)
    monkeypatch.setattr(child, "_SCRIPT", tmp_path / "child.py")
    with pytest.raises(BitstreamError, match=words) as caught:
        decode(stream)
    assert len(str(caught.value).splitlines()) == 1


def test_the_fake_child_can_also_do_it_right(
    stream: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lest the test above passes because every fake fails."""
    (tmp_path / "child.py").write_text(frames(CLAIMS, TENSOR, b"\0\0\x80\x3f\0\0\0\x40", DONE))
    monkeypatch.setattr(child, "_SCRIPT", tmp_path / "child.py")
    assert torch.equal(decode(stream)["w"], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    "script", ["import time; time.sleep(60)", frames(CLAIMS) + "import time; time.sleep(60)"]
)
def test_a_child_that_hangs_is_ended(
    script: str, stream: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.py").write_text(script)
    monkeypatch.setattr(child, "_SCRIPT", tmp_path / "child.py")
    monkeypatch.setattr(child, "_START_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(BitstreamError, match="took longer than"):
        decode(stream, Limits(seconds=0.2))
    assert time.monotonic() - start < 10


@linux
def test_processor_time_is_limited_by_the_system(
    stream: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the parent, which keeps the clock, is gone."""
    (tmp_path / "child.py").write_text(
        f"import runpy\nrunpy.run_path({worker.__file__!r})['_limit'](2**30, 0.1)\nwhile True: pass\n"
    )
    monkeypatch.setattr(child, "_SCRIPT", tmp_path / "child.py")
    with pytest.raises(BitstreamError, match="processor time"):
        decode(stream)


def test_without_an_interpreter_there_is_an_error(
    stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for executable in ("", "/nowhere/python"):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(ConfigError, match="isolated=False"):
            decode(stream)
    assert list(decode(stream, isolated=False)) == list(TENSORS)


def test_a_container_without_coded_tensors_starts_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    assert torch.equal(decompress(compress({"n": torch.arange(3)})).tensors["n"], torch.arange(3))


def test_streams_of_other_encoders_with_blocks_are_decoded() -> None:
    """A weight and its bias in one unit, as nncodec writes them when it knows that they belong
    together.
    """
    nnc = pytest.importorskip("nncodec.nnc")
    arrays = {"l.weight": TENSORS["w"].numpy(), "l.bias": TENSORS["b"].numpy()}
    blocks = {
        "parameter_type": {"l.weight": "weight", "l.bias": "bias"},
        "block_identifier": {"l.weight": "b", "l.bias": "b"},
        "parameter_index": {"l.weight": 0, "l.bias": 1},
        "parameter_dimensions": {name: array.shape for name, array in arrays.items()},
    }
    stream = bytes(
        nnc.compress(
            arrays,
            bitstream_path=None,
            return_bitstream=True,
            block_id_and_param_type=blocks,
            use_dq=False,
        )
    )
    assert len(list(worker.split_units(stream))) == 4  # one unit for the two tensors
    expected = nnc.decompress(bytearray(stream))
    for isolated in (True, False):
        decoded = decode(stream, isolated=isolated)
        assert decoded.keys() == expected.keys()
        assert all(
            torch.equal(decoded[name], torch.from_numpy(expected[name])) for name in expected
        )
