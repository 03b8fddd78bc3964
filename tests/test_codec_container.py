"""The .snello container: everything comes back, and no damage goes unnoticed."""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seams.codec import DTYPES, FIXED, MAGIC
from seams.codec import manifest as manifest_module
from snello.codec import (
    CodecSettings,
    Limits,
    compress,
    decode,
    decompress,
    encode,
    quantised,
    read_header,
    stream_of,
)
from snello.errors import BitstreamError, ConfigError, MissingExtraError
from test_codec_stream import choices, names, shapes

pytest.importorskip("nncodec", reason="the extra nnc is not installed")

GOLDEN_1 = bytes.fromhex(
    "89534e4c0d0a1a0a01000000e10000004d0000000000000017294357ee0a06588836c6cfd516247103f03b9d8cf8c888"
    "3acbbfb6efbaf6be78da458edd8e83201085df65aed90d0c6ad55731c6a03358b2162c607ad1f4dd17db6cf672ce777e"
    "e60991971009fa27dc02f1063dac6123f6f012903867e7d774d2fb0efd9746013ef807bbf59aa7b774a90510efec4ba6"
    "4887f1d925935df0d0e778b080181e53fa71fb5eaa3eda599d239bdb94ae06eba68cce48b65d5a594e4964906aad1499"
    "4637daaab9239c157674e14a6bb42dd57651aa2655496db1b3c82020b34f2196678701ecf2fd7912c480024701760b26"
    "6b04e18f6d1bc5db323b938ae18f36d53f4d99f7939d51e7b36aca8054525ab616c6f1f50b6562640900040201000806"
    "810040008000060e0000000024160966632e77656967687400d041c120a082a080dff7a000e701d80002b0001638bc00"
    "17160966632e6269617300d0c1c3810a80b4d80018f8"
)

GOLDEN = bytes.fromhex(
    "89534e4c0d0a1a0a02000000ff0000004600000000000000918d9ad879377cfc1c625bc1319cd4743fb224260cc472ee"
    "e1013bff297ce51a78da4d8fd18e83201444ffe53ed3061104fd15630ccac5925ab082e943e3bf2f74d3cdbece9c3b73"
    "e70d3bce6137d0bde1110caed0c11256831e4e021153727e89c57d6ed05d6a46c007ff42b7dcd2f891a4206070439f6f"
    "b274689f5cd4c9050f9dd56b44027b788df1eeb62d674197f6236b732e9b42b8ff41cf6d0cb614d9f9fa9b9fc3d559be"
    "483beac7186f9a8926ff476b51d3c632ae98a6424c0c5bcbd9ac34375248c328e55c2955cb9a4a3db74d6338b56d3551"
    "29662adb060824f431ec7957dfffeb233d236c2060d7a053cd805c14f1c7ba0ee4434d4ec7cc7c81866720afff1231e1"
    "56fc92e07caa724fb108d08a528bd6c2309c3fc1d073e200040201000806810040008000060e000000001d160966632e"
    "77656967687400d040c120a082a080f7dfa00300eae00017160966632e6269617300d0c0c3810a80b4d8004320"
)
GOLDEN_SETTINGS = CodecSettings(dependent_quantisation=False, qp_of={"fc.weight": -8})

PREFIX = 56
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
records = st.dictionaries(
    texts, st.none() | texts | numbers | st.lists(numbers, max_size=3), max_size=3
)


@st.composite
def any_tensors(draw: st.DrawFn) -> Tensor:
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(
        shapes | st.sampled_from([[0], [3, 0], [0, 2, 1], [1] * 32, [3000], [60, 70], [0, 2**40]])
    )
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
def test_round_trip(
    tensors: dict[str, Tensor], options: CodecSettings, record: dict[str, Any]
) -> None:
    data = compress(tensors, options, record)
    content = decompress(data, isolated=False)
    assert content.settings == options
    assert content.record == record
    assert list(content.tensors) == list(tensors)
    for name, tensor in tensors.items():
        found = content.tensors[name]
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        if tensor.is_floating_point() and tensor.numel():
            values = quantised({name: tensor}, options)[name].reshape(tensor.shape)
            expected = values.double().clamp(
                torch.finfo(tensor.dtype).min, torch.finfo(tensor.dtype).max
            )
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
    assert (header.version, header.record, header.settings.qp) == (2, {"model": "toy"}, -20)
    assert [e.name for e in header.tensors] == list(sample())
    assert [e.coded for e in header.tensors] == [True, False, True, False, False]
    assert [e.qp for e in header.tensors] == [-20, None, -75, None, None]
    assert [e.step_size for e in header.tensors] == [2.0**-5, None, 5 * 2.0**-21, None, None]
    assert PREFIX + header.manifest_bytes + header.stream_bytes == len(data)
    stream = data[PREFIX + header.manifest_bytes :]
    assert stream == stream_of(data)
    assert hashlib.sha256(stream).hexdigest() == header.stream_sha256
    assert data[24:56].hex() == header.manifest_sha256
    assert list(decode(stream, isolated=False)) == [
        "fc.weight",
        "scale",
    ]  # it is a plain NNC stream


def test_header_needs_no_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncodec", None)
    for name in [name for name in sys.modules if name.startswith("nncodec.")]:
        monkeypatch.delitem(sys.modules, name)
    assert read_header(GOLDEN).record == {"model": "golden"}
    assert stream_of(GOLDEN)
    for isolated in (True, False):
        with pytest.raises(MissingExtraError, match=r"snello\[nnc\]"):
            decompress(GOLDEN, isolated=isolated)


def golden_tensors() -> dict[str, Tensor]:
    return {
        "fc.weight": torch.tensor([[0.5, -0.25], [0.0, 1.0]]),
        "fc.bias": torch.tensor(0.0, dtype=torch.float64),
        "steps": torch.tensor([1, -2], dtype=torch.int16),
    }


@pytest.mark.parametrize(
    ("golden", "options", "version"), [(GOLDEN_1, CodecSettings(), 1), (GOLDEN, GOLDEN_SETTINGS, 2)]
)
def test_golden_files_can_be_read(golden: bytes, options: CodecSettings, version: int) -> None:
    content = decompress(golden)
    assert read_header(golden).version == version
    assert (content.record, content.settings) == ({"model": "golden"}, options)
    assert list(content.tensors) == list(golden_tensors())
    for name, tensor in golden_tensors().items():
        assert torch.equal(content.tensors[name], tensor)
        assert content.tensors[name].dtype == tensor.dtype


def test_golden_file_is_written() -> None:
    written = compress(golden_tensors(), GOLDEN_SETTINGS, {"model": "golden"})
    sizes = [int.from_bytes(data[12:16], "little") for data in (written, GOLDEN)]
    manifests = [
        data[PREFIX : PREFIX + size] for data, size in zip((written, GOLDEN), sizes, strict=True)
    ]
    text = zlib.decompress(manifests[1])
    assert zlib.decompress(manifests[0]) == text
    assert (
        stream_of(written)
        == stream_of(GOLDEN)
        == encode(
            {name: tensor for name, tensor in golden_tensors().items() if name != "steps"},
            GOLDEN_SETTINGS,
        )
    )
    if zlib.compress(text, 9) == manifests[1]:  # zlib-ng deflates the same text to other bytes
        assert written == GOLDEN


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


def signed(content: object, version: int = 2, stream: bytes = b"") -> bytes:
    """A container with digests that fit, whatever its manifest says."""
    packed = zlib.compress(content if isinstance(content, bytes) else json.dumps(content).encode())
    fixed = FIXED.pack(MAGIC, version, 0, len(packed), len(stream))
    return fixed + hashlib.sha256(fixed + packed).digest() + packed + stream


OLD = {"qp": -32, "nonweight_qp": -75, "dependent_quantisation": True, "row_skipping": True}
GOOD: dict[str, Any] = {
    "record": {},
    "settings": {**OLD, "codebook": False, "qp_of": {}},
    "stream_sha256": hashlib.sha256(b"").hexdigest(),
    "tensors": [["n", [2], "int8", None, "0001"]],
}


def test_the_good_manifest_is_good() -> None:
    assert torch.equal(
        decompress(signed(GOOD)).tensors["n"], torch.tensor([0, 1], dtype=torch.int8)
    )
    old = {**GOOD, "settings": OLD, "tensors": [["n", [2], "int8", "0001"]]}
    assert torch.equal(
        decompress(signed(old, version=1)).tensors["n"], torch.tensor([0, 1], dtype=torch.int8)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"record": []}, "dict"),
        ({"settings": {**GOOD["settings"], "qp": 1000}}, "qp=1000"),
        ({"settings": OLD}, "codebook"),
        ({"settings": {**GOOD["settings"], "unknown": 1}}, "unknown"),
        ({"settings": {**GOOD["settings"], "qp_of": {"a": True}}}, "qp_of"),
        ({"extra": 1}, "extra"),
        ({"tensors": {}}, "list"),
        ({"tensors": [["a"]]}, "_entry"),
        ({"tensors": [["a", [2], "int8", None, "00"]]}, "1 bytes do not fill"),
        ({"tensors": [["a", [-1], "int8", None, ""]]}, "shape"),
        ({"tensors": [["a", [True], "int8", None, "00"]]}, "shape"),
        ({"tensors": [["a", [1.0], "int8", None, "00"]]}, "shape"),
        ({"tensors": [["a", [2**62, 2**62], "int8", None, ""]]}, "shape"),
        ({"tensors": [["a", [0, 2**62, 2**62], "int8", None, ""]]}, "shape"),
        ({"tensors": [["a", [1] * 33, "int8", None, "00"]]}, "shape"),
        ({"tensors": [["a", [1], "complex64", None, None]]}, "complex64"),
        ({"tensors": [["a", [1], "int8", None, None]]}, "coded"),
        ({"tensors": [["a", [1], "int8", 3, "00"]]}, "quantisation parameter"),
        ({"tensors": [["a", [1], "int8", {}, "00"]]}, "quantisation parameter"),
        ({"tensors": [["a", [1], "int8", [1, "2"], "00"]]}, "quantisation parameter"),
        ({"tensors": [["a", [1], "float32", [], None]]}, "quantisation parameter"),
        ({"tensors": [["a", [1], "float32", True, None]]}, "quantisation parameter"),
        ({"tensors": [["a", [1], "float32", None, "00000000"]]}, "coded"),
        ({"tensors": [["a", [0], "float32", -32, None]]}, "coded"),
        ({"tensors": [["a", [1], "float32", None, None]]}, "quantisation parameter"),
        ({"tensors": [["a", [1], "float32", 200, None]]}, "quantisation parameter"),
        ({"tensors": [["a", [1], "float32", -32, None]]}, "NNC stream"),
        ({"tensors": [["a", [1], "bool", None, "02"]]}, "bool"),
        ({"tensors": [["a", [1], "int8", None, "zz"]]}, "hex"),
        ({"tensors": [["a", [0], "int8", None, ""]] * 2}, "names"),
        ({"tensors": [["\ud800", [0], "int8", None, ""]]}, "UTF-8"),
    ],
)
def test_a_foreign_manifest_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BitstreamError, match=words):
        decompress(signed({**GOOD, **change}))


@pytest.mark.parametrize(
    "text", [b"[]", b"{", b"\xff", b"NaN", b"[" * 100_000, b'{"record": 1}', b""]
)
def test_what_is_no_manifest_is_refused(text: bytes) -> None:
    with pytest.raises(BitstreamError, match="manifest cannot be read"):
        read_header(signed(text))


def test_the_number_of_values_of_a_manifest_is_capped_both_ways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = compress({}, record={"numbers": list(range(1000))})
    monkeypatch.setattr(manifest_module, "MAX_VALUES", 900)
    with pytest.raises(ConfigError, match="900"):
        compress({}, record={"numbers": list(range(1000))})
    with pytest.raises(BitstreamError, match="more than 900 values"):
        read_header(data)


def test_claims_beyond_the_limits_are_refused_before_they_cost_anything() -> None:
    data = compress({"a": torch.ones(100, 10), "n": torch.arange(8)}, record={"text": "x" * 5000})
    for limits, words in [
        (Limits(decoded_bytes=4063), r"4064 bytes of tensors \('a' has the shape \(100, 10\)\)"),
        (Limits(tensors=1), "2 tensors, more than the limit of 1"),
        (Limits(manifest_bytes=4000), "exceeds 4000 bytes"),
    ]:
        with pytest.raises(BitstreamError, match=words):
            decompress(data, limits, isolated=False)
    assert len(decompress(data, Limits(decoded_bytes=4064, tensors=2), isolated=False).tensors) == 2


@pytest.mark.parametrize(
    "options", [{"tensors": 0}, {"seconds": -1}, {"memory_bytes": 1.5}, {"decoded_bytes": True}]
)
def test_limits_are_validated(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Limits(**options)


def rewritten(data: bytes, **changes: Any) -> bytes:
    """The container with another stream or table, and digests that fit."""
    header, stream = read_header(data), changes.pop("stream", stream_of(data))
    content = json.loads(zlib.decompress(data[PREFIX : PREFIX + header.manifest_bytes]))
    content |= changes | {"stream_sha256": hashlib.sha256(stream).hexdigest()}
    return signed(content, stream=stream)


def test_stream_and_table_have_to_agree() -> None:
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(4)}
    data = compress(tensors)
    rows = [["a", [2, 3], "float32", -32, None], ["b", [4], "float32", -75, None]]
    assert rewritten(data, tensors=rows)[PREFIX:] == rewritten(data)[PREFIX:]
    reversed_stream = encode(dict(reversed(tensors.items())))
    for damaged, words in [
        (rewritten(data, tensors=rows[::-1]), "'a': its name, or its place"),
        (rewritten(data, stream=reversed_stream), "'b': its name, or its place"),
        (rewritten(data, tensors=rows[:1]), "'b': its name, or its place"),
        (
            rewritten(data, tensors=[*rows, ["c", [1], "float32", -75, None]]),
            "'c': whether it is there",
        ),
        (rewritten(data, tensors=[["a", [3, 2], "float32", -32, None], rows[1]]), "'a': its shape"),
        (
            rewritten(data, tensors=[["a", [2, 3], "float32", -31, None], rows[1]]),
            "quantisation parameter, -32",
        ),
        (rewritten(data, tensors=[]), "there is an NNC stream"),
        (rewritten(data, stream=b""), "NNC stream of 0 bytes"),
    ]:
        with pytest.raises(BitstreamError, match=words):
            decompress(damaged, isolated=False)


def test_qp_of_is_honoured_and_recorded() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(6, 5, generator=generator) for name in ("a", "b")} | {
        "v": torch.randn(9)
    }
    options = CodecSettings(qp_of={"a": -20, "v": -40})
    data = compress(tensors, options)
    assert {e.name: e.qp for e in read_header(data).tensors} == {"a": -20, "b": -32, "v": -40}
    content = decompress(data, isolated=False)
    assert content.settings == options
    for name, qp in {"a": -20, "b": -32}.items():
        assert torch.equal(content.tensors[name], quantised(tensors, CodecSettings(qp=qp))[name])
    assert torch.equal(
        content.tensors["v"], quantised(tensors, CodecSettings(nonweight_qp=-40))["v"]
    )


def test_qp_of_of_a_tensor_that_is_not_coded_is_refused() -> None:
    tensors = {"a": torch.ones(2), "n": torch.tensor(3)}
    for odd in ("n", "typo"):
        with pytest.raises(ConfigError, match=rf"'{odd}' \(1 such of 2\)"):
            compress(tensors, CodecSettings(qp_of={"a": -20, odd: -20}))


@pytest.mark.parametrize("call", [decompress, decode, read_header])
@pytest.mark.parametrize("data", ["model.snello", None, 5, [1, 2]])
def test_what_is_no_bytes_is_refused(call: Any, data: Any) -> None:
    with pytest.raises(ConfigError, match="read_bytes"):
        call(data)


@pytest.mark.parametrize("call", [compress, encode, quantised])
@pytest.mark.parametrize("settings", [-26, {"qp": -26}, None])
def test_what_is_no_settings_is_refused(call: Any, settings: Any) -> None:
    with pytest.raises(ConfigError, match="pass a CodecSettings"):
        call({"w": torch.ones(2, 2)}, settings)


@pytest.mark.parametrize("call", [compress, encode, quantised])
def test_a_module_holds_no_tensors_by_name(call: Any) -> None:
    with pytest.raises(ConfigError, match=r"pass model\.state_dict"):
        call(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("call", [decompress, decode])
def test_what_is_no_limits_is_refused(call: Any) -> None:
    with pytest.raises(ConfigError, match="pass Limits"):
        call(b"", 5)


def test_views_in_any_layout_are_coded_alike() -> None:
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    views = {
        "channels last": x.to(memory_format=torch.channels_last),
        "transposed": x.mT.contiguous().mT,
        "negated": torch._neg_view(-x),
    }
    for name, view in views.items():
        assert compress({"w": view}) == compress({"w": x}), name
