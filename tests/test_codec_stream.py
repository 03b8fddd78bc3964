"""The plain NNC stream: exact after quantisation, quiet, deterministic."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seams.codec import escape, unescape
from snello.codec import CodecSettings, decode, encode, quantised, step_size, step_sizes
from snello.errors import BitstreamError, ConfigError

pytest.importorskip("nncodec", reason="the extra nnc is not installed")

QUICK = settings(max_examples=25, deadline=None)
UNIFORM = CodecSettings(dependent_quantisation=False)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
awkward = st.sampled_from(
    ["", "a_G", "b_H.weight", "x%5FG", "%", "\0", "a", "a.b", "a.b.c", "ünï.重み", "n" * 40_000]
)
names = texts | awkward
shapes = st.lists(st.integers(1, 5), max_size=4)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(shapes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-6, 6))
    return values * (
        torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    )


quantisers = st.sampled_from([(True, False), (False, False), (False, True)])
choices = st.builds(
    lambda quantiser, **rest: CodecSettings(
        dependent_quantisation=quantiser[0], codebook=quantiser[1], **rest
    ),
    quantisers,
    qp=st.integers(-60, 0),
    nonweight_qp=st.integers(-90, 0),
    row_skipping=st.booleans(),
)


@QUICK
@given(st.dictionaries(names, tensors(), min_size=1, max_size=4), choices)
def test_decode_of_encode_is_quantised(sample: dict[str, Tensor], options: CodecSettings) -> None:
    stream = encode(sample, options)
    decoded, expected = decode(stream, isolated=False), quantised(sample, options)
    assert list(decoded) == list(expected) == list(sample)
    for name, tensor in sample.items():
        assert decoded[name].dtype == torch.float32
        assert decoded[name].shape == (tensor.shape or (1,))
        assert torch.equal(decoded[name], expected[name])
    assert encode(sample, options) == stream


@QUICK
@given(tensors(), choices)
def test_values_are_multiples_of_the_step_and_near(tensor: Tensor, options: CodecSettings) -> None:
    step = step_sizes({"t": tensor}, options)["t"]
    values = quantised({"t": tensor}, options)["t"].reshape(tensor.shape).double()
    bound = 2 * step if options.dependent_quantisation else step / 2
    slack = tensor.double().abs() * 2.0**-22  # scaling and levels are float32 inside the coder
    assert ((values - tensor.double()).abs() <= bound * (1 + 1e-6) + slack).all()
    levels = values / step
    exact = (
        levels.abs() < 2**21
    )  # a step has three significant bits: beyond, the product has no float32
    assert torch.equal(levels[exact], levels[exact].round())
    if not options.dependent_quantisation:
        assert (values[tensor == 0] == 0).all()


def test_uniform_quantisation_is_rounding() -> None:
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    step = step_size(UNIFORM.qp)
    expected = (weight * (1 / step)).round() * step  # no value falls on a tie
    assert torch.equal(quantised({"w": weight}, UNIFORM)["w"], expected)


@given(st.integers(-128, 123))
def test_step_size_doubles_every_four(qp: int) -> None:
    assert step_size(qp + 4) == 2 * step_size(qp)
    assert step_size(qp) < step_size(qp + 1)


def test_step_size_of_the_defaults() -> None:
    assert (step_size(-32), step_size(-75)) == (2.0**-8, 5 * 2.0**-21)


def test_vectors_and_matrices_have_their_own_step() -> None:
    sample = {"bn.weight": torch.ones(3), "scale": torch.tensor(1.0), "w": torch.ones(3, 1)}
    options = CodecSettings(
        qp=-20, nonweight_qp=0, dependent_quantisation=False
    )  # 0 is a value, not "absent"
    assert step_sizes(sample, options) == {"bn.weight": 1.0, "scale": 1.0, "w": 2.0**-5}
    assert torch.equal(decode(encode({"b": torch.tensor([0.7])}, options))["b"], torch.ones(1))


def test_large_values_raise_the_step_instead_of_overflowing() -> None:
    tensor = torch.tensor([1e9, -3.2e8, 0.0])
    step = step_sizes({"v": tensor})["v"]
    assert step > step_size(-75)
    assert torch.allclose(decode(encode({"v": tensor}))["v"], tensor, rtol=2**-23, atol=step)


def test_the_stream_is_that_of_nncodec() -> None:
    from nncodec import nnc

    generator = torch.Generator().manual_seed(1)
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "dead": (5, 7), "fc.weight": (2, 4)}
    sample = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    sample["dead"].zero_()
    whole = nnc.compress(
        {name: tensor.numpy() for name, tensor in sample.items()},
        bitstream_path=None,
        return_bitstream=True,
        qp=-32,
        nonweight_qp=-75,
        use_dq=True,
        row_skipping=True,
    )
    assert encode(sample) == bytes(whole)


def test_nothing_is_printed_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sample = {"w": torch.full((3, 3), 1e12), "b": torch.ones(3)}
    decode(encode(sample))
    quantised(sample)
    assert capfd.readouterr() == ("", "")
    assert os.listdir(tmp_path) == []


def test_input_is_not_changed_and_layout_does_not_matter() -> None:
    base = torch.randn(6, 4, 3, 3)
    for tensor in (base.transpose(0, 1), base.to(memory_format=torch.channels_last), base[::2]):
        before = tensor.clone()
        assert encode({"w": tensor.requires_grad_(False)}) == encode({"w": tensor.contiguous()})
        assert torch.equal(tensor, before)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"layer.weight": torch.tensor([1.0, float("nan")])}, ["layer.weight", "1 of 2", "NaN"]),
        ({"a": torch.tensor([float("-inf")])}, ["'a'", "infinite"]),
        ({"d": torch.tensor([1e300], dtype=torch.float64)}, ["'d'", "infinite"]),
        ({"h": torch.tensor([[1e30]])}, ["'h'", "1e+30"]),
        ({"n": torch.tensor([3])}, ["'n'", "int64", "compress"]),
        ({"e": torch.zeros(0, 3)}, ["'e'", "(0, 3)"]),
        ({"\ud800": torch.ones(1)}, ["UTF-8"]),
        ({7: torch.ones(1)}, ["7", "int"]),
        ({"l": [1.0]}, ["'l'", "list"]),
        ({"s": torch.ones(2, 2).to_sparse()}, ["'s'", "sparse"]),
        ({"deep": torch.ones([1] * 33)}, ["'deep'", "33 dimensions"]),
        ({}, ["no tensor"]),
    ],
)
def test_what_cannot_be_coded_is_named(sample: dict[str, Tensor], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        encode(sample)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "options",
    [
        {"qp": 128}, {"qp": -129}, {"nonweight_qp": 0.5}, {"qp": True}, {"row_skipping": 1},
        {"qp_of": {"a": 128}}, {"qp_of": {"a": True}}, {"qp_of": {3: 1}}, {"qp_of": [("a", 1)]},
        {"codebook": 1}, {"codebook": True, "dependent_quantisation": True},
    ],
)  # fmt: skip
def test_settings_are_validated(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        CodecSettings(**options)  # type: ignore[arg-type]


def test_settings_are_values() -> None:
    table = {"a": -20, "b": -30}
    one, two = CodecSettings(qp_of=table), CodecSettings(qp_of=dict(reversed(table.items())))
    assert one == two
    assert hash(one) == hash(two)
    table["a"] = 0
    assert one.qp_of == {"a": -20, "b": -30}  # a copy, and one that cannot change
    with pytest.raises(TypeError):
        one.qp_of["a"] = 0  # type: ignore[index]
    assert CodecSettings(**one.to_dict()) == one != CodecSettings()
    assert pickle.loads(pickle.dumps(copy.deepcopy(one))) == one


def test_a_part_can_be_quantised_with_the_settings_of_the_whole() -> None:
    options = CodecSettings(qp_of={"a": -20, "elsewhere": -20})
    assert step_sizes({"a": torch.ones(2, 2)}, options) == {"a": 2.0**-5}
    assert torch.equal(quantised({"a": torch.ones(2, 2)}, options)["a"], torch.ones(2, 2))
    with pytest.raises(ConfigError, match="'elsewhere'"):
        encode({"a": torch.ones(2, 2)}, options)


def test_a_codebook_saves_bytes_where_weights_are_clustered_and_changes_no_value() -> None:
    centres = torch.tensor([-0.7, -0.31, 0.0, 0.23, 0.9])
    sample = {
        "w": centres[torch.randint(0, 5, (64, 60), generator=torch.Generator().manual_seed(0))]
    }
    sample["gaussian"] = torch.randn(64, 60, generator=torch.Generator().manual_seed(0))
    with_codebook = dataclasses.replace(UNIFORM, codebook=True)
    streams = encode(sample, UNIFORM), encode(sample, with_codebook)
    assert len(streams[1]) < 0.7 * len(streams[0])
    plain, listed = (decode(stream, isolated=False) for stream in streams)
    for name, values in quantised(sample, UNIFORM).items():
        assert torch.equal(plain[name], values)
        assert torch.equal(listed[name], values)
    # Never larger: where a codebook does not pay there is none.
    gaussian = {"g": sample["gaussian"]}
    assert len(encode(gaussian, with_codebook)) <= len(encode(gaussian, UNIFORM))


def test_large_tensors_in_both_ways() -> None:
    sample = {"w": torch.zeros(1500, 1000), "v": torch.arange(100_000) / 100_000}
    sample["w"][::50] = torch.randn(30, 1000, generator=torch.Generator().manual_seed(0))
    stream, expected = encode(sample, UNIFORM), quantised(sample, UNIFORM)
    for isolated in (True, False):
        decoded = decode(stream, isolated=isolated)
        assert all(torch.equal(decoded[name], expected[name]) for name in sample)


@given(texts | st.text(st.sampled_from("%5F_GH2\0")))
def test_escape_is_invertible_and_safe(name: str) -> None:
    escaped = escape(name)
    assert unescape(escaped) == name
    assert not any(forbidden in escaped for forbidden in ("\0", "_G", "_H"))


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\0",
        b"\0\0\0\0",
        b"hello, world",
        b"\x80\0\0\x01",
        struct.pack(">H", 6) + b"\x80\x01\x02\x03",
    ],
)
def test_another_kind_of_data_is_a_bitstream_error(stream: bytes) -> None:
    for isolated in (True, False):
        with pytest.raises(BitstreamError):
            decode(stream, isolated=isolated)


def test_every_cut_inside_a_unit_is_a_bitstream_error() -> None:
    stream = encode({"w": torch.randn(4, 4), "b": torch.randn(4)})
    ends = {4, 12, 18}  # start, model parameter set, topology; and the first tensor
    ends.add(18 + int.from_bytes(stream[18:20], "big"))
    for length in set(range(len(stream))) - ends:
        with pytest.raises(BitstreamError, match="truncated"):
            decode(stream[:length])
