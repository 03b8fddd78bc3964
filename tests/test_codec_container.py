"""The .snello container: everything comes back, and no damage goes unnoticed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snello.codec import CodecSettings, compress, decode, decompress, quantised, read_header
from snello.codec import _manifest as manifest_module
from snello.codec._manifest import DTYPES
from snello.errors import BitstreamError, ConfigError
from test_codec_stream import choices, names, shapes

pytest.importorskip("nncodec", reason="the extra nnc is not installed")

GOLDEN = bytes.fromhex(
    "89534e4c0d0a1a0a01000000e10000004d0000000000000017294357ee0a06588836c6cfd516247103f03b9d8cf8c888"
    "3acbbfb6efbaf6be78da458edd8e83201085df65aed90d0c6ad55731c6a03358b2162c607ad1f4dd17db6cf672ce777e"
    "e60991971009fa27dc02f1063dac6123f6f012903867e7d774d2fb0efd9746013ef807bbf59aa7b774a90510efec4ba6"
    "4887f1d925935df0d0e778b080181e53fa71fb5eaa3eda599d239bdb94ae06eba68cce48b65d5a594e4964906aad1499"
    "4637daaab9239c157674e14a6bb42dd57651aa2655496db1b3c82020b34f2196678701ecf2fd7912c480024701760b26"
    "6b04e18f6d1bc5db323b938ae18f36d53f4d99f7939d51e7b36aca8054525ab616c6f1f50b6562640900040201000806"
    "810040008000060e0000000024160966632e77656967687400d041c120a082a080dff7a000e701d80002b0001638bc00"
    "17160966632e6269617300d0c1c3810a80b4d80018f8"
)

PREFIX = 56
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
records = st.dictionaries(texts, st.none() | texts | numbers | st.lists(numbers, max_size=3), max_size=3)


@st.composite
def any_tensors(draw: st.DrawFn) -> Tensor:
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(shapes | st.sampled_from([[0], [3, 0], [0, 2, 1]]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return (torch.randn(shape, generator=generator) * 50).abs().to(dtype)


def sample() -> dict[str, Tensor]:
    return {
        "fc.weight": torch.linspace(-1, 1, 12).reshape(3, 4),
        "bn.num_batches_tracked": torch.tensor(42),
        "scale": torch.tensor(0.5, dtype=torch.float16),
        "mask": torch.tensor([True, False, True]),
        "none": torch.empty(0, 2, dtype=torch.bfloat16),
    }


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(names, any_tensors(), max_size=4), choices, records)
def test_round_trip(tensors: dict[str, Tensor], options: CodecSettings, record: dict[str, Any]) -> None:
    data = compress(tensors, options, record)
    content = decompress(data)
    assert content.settings == options
    assert content.record == record
    assert list(content.tensors) == list(tensors)
    for name, tensor in tensors.items():
        found = content.tensors[name]
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        if tensor.is_floating_point() and tensor.numel():
            values = quantised({name: tensor}, options)[name].reshape(tensor.shape)
            expected = values.double().clamp(torch.finfo(tensor.dtype).min, torch.finfo(tensor.dtype).max)
            expected = expected.to(tensor.dtype)
        else:
            expected = tensor
        # Not torch.equal: it lacks the narrowest dtypes. The bytes say it all.
        assert torch.equal(as_bytes(found), as_bytes(expected))
    assert compress(tensors, options, record) == data


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0)


def test_every_flipped_bit_is_noticed() -> None:
    data = compress(sample(), record={"structure": [1, 2, 3]})
    for position in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(BitstreamError) as caught:
            decompress(bytes(damaged))
        assert len(str(caught.value).splitlines()) == 1


def test_every_truncation_and_any_appended_byte_is_noticed() -> None:
    data = compress(sample())
    for damaged in [data[:length] for length in range(len(data))] + [data + b"\0", data + data]:
        with pytest.raises(BitstreamError):
            decompress(damaged)
        with pytest.raises(BitstreamError):
            read_header(damaged)


def test_header_tells_what_is_inside() -> None:
    data = compress(sample(), CodecSettings(qp=-20), record={"model": "toy"})
    header = read_header(data)
    assert (header.version, header.record, header.settings.qp) == (1, {"model": "toy"}, -20)
    assert [e.name for e in header.tensors] == list(sample())
    assert [e.exact is None for e in header.tensors] == [True, False, True, False, False]
    assert PREFIX + header.manifest_bytes + header.stream_bytes == len(data)
    stream = data[PREFIX + header.manifest_bytes :]
    assert list(decode(stream)) == ["fc.weight", "scale"]  # it is a plain NNC stream


def test_header_needs_no_codec() -> None:
    code = (
        "import sys; sys.modules['nncodec'] = None\n"
        "from snello.codec import read_header, decompress\n"
        "from snello.errors import MissingExtraError\n"
        f"data = bytes.fromhex('{GOLDEN.hex()}')\n"
        "assert read_header(data).record == {'model': 'golden'}\n"
        "try: decompress(data)\n"
        "except MissingExtraError as error: assert 'snello[nnc]' in str(error)\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_golden_file_of_version_1_can_be_read() -> None:
    content = decompress(GOLDEN)
    assert (content.record, content.settings) == ({"model": "golden"}, CodecSettings())
    expected = {
        "fc.weight": torch.tensor([[0.5, -0.25], [0.0, 1.0]]),
        "fc.bias": torch.tensor(0.0, dtype=torch.float64),
        "steps": torch.tensor([1, -2], dtype=torch.int16),
    }
    assert list(content.tensors) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(content.tensors[name], tensor)
        assert content.tensors[name].dtype == tensor.dtype


def test_without_floating_tensors_there_is_no_stream() -> None:
    data = compress({"n": torch.tensor(3)})
    assert read_header(data).stream_bytes == 0
    assert torch.equal(decompress(data).tensors["n"], torch.tensor(3))
    assert decompress(compress({})).tensors == {}


def test_narrow_dtypes_stay_finite() -> None:
    largest = torch.tensor([[65504.0]], dtype=torch.float16)
    found = decompress(compress({"h": largest}, CodecSettings(qp=39, dependent_quantisation=False)))
    assert torch.isfinite(found.tensors["h"]).all()


@pytest.mark.parametrize(
    ("tensors", "record", "words"),
    [
        ({"fc.weight": torch.tensor([float("nan")])}, {}, ["fc.weight"]),
        ({"c": torch.ones(2, dtype=torch.complex64)}, {}, ["'c'", "complex64"]),
        ({"m": torch.ones(2, device="meta")}, {}, ["'m'", "meta"]),
        ({"x": 3}, {}, ["'x'", "int"]),
        ({}, {"a": {1, 2}}, ["JSON"]),
        ({}, {"a": float("nan")}, ["JSON"]),
        ({}, [1], ["list"]),
    ],
)
def test_what_cannot_be_packed_is_named(tensors: Any, record: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compress(tensors, record=record)
    assert all(word in str(caught.value) for word in words)


def test_manifest_is_capped_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    data = compress({}, record={"text": "x" * 5000})
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST", 4000)
    with pytest.raises(ConfigError, match="4000"):
        compress({}, record={"text": "x" * 5000})
    with pytest.raises(BitstreamError, match="4000"):  # a bomb: small deflated, large inflated
        decompress(data)


def test_a_foreign_manifest_is_refused() -> None:
    import hashlib
    import zlib

    from snello.codec._container import _FIXED, MAGIC

    good = {
        "record": {},
        "settings": {},
        "stream_sha256": hashlib.sha256(b"").hexdigest(),
        "tensors": [],
    }
    broken: list[object] = [
        {**good, "record": []},
        {**good, "settings": {"qp": 1000}},
        {**good, "settings": {"unknown": 1}},
        {**good, "tensors": [["a", [2], "int8", "00"]]},
        {**good, "tensors": [["a", [-1], "int8", ""]]},
        {**good, "tensors": [["a", [1], "complex64", None]]},
        {**good, "tensors": [["a", [1], "float32", None]]},
        {**good, "tensors": [["a"]]},
        {"record": {}},
        [],
    ]
    for content in [good, *broken]:
        packed = zlib.compress(json.dumps(content).encode())
        fixed = _FIXED.pack(MAGIC, 1, 0, len(packed), 0)
        data = fixed + hashlib.sha256(fixed + packed).digest() + packed
        if content is good:
            assert decompress(data).tensors == {}
        else:
            with pytest.raises(BitstreamError):
                decompress(data)
