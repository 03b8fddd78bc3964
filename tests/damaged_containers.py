"""Damage to containers and streams, and what becomes of it.

    python tests/damaged_containers.py --count 10000 --seed 0 --out damaged_containers.json

Every damaged file is decoded as a stranger's file would be: ``decompress(data, LIMITS)``, in a
child process wherever there is a stream to decode. It has to end in a ``snello`` error, within its
time and memory.

* *Plain* damage is what happens to files: it must always be an error.
* *Re-signed* damage comes with recomputed digests, so that it reaches what lies behind them. Where
  it claims more than there is or may be, it must be an error. Elsewhere (``EITHER``) a change can
  amount to another valid file, for instance another value of a weight inside the arithmetic code,
  which no decoder can tell from the intended one: then the result must have exactly the names,
      shapes and dtypes that the file declares.

Anything else is a *violation*: another exception, a result with other names or shapes, plain damage
decoded to anything at all, more time than ``MAX_SECONDS`` or more memory than ``MAX_MEGABYTES``
(added to this process, or in a child; read from /proc, so the script needs Linux). The script ends
with status 1 if there is one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from snello.codec import CodecSettings, Limits, compress, decompress, read_header
from snello.errors import BitstreamError

LIMITS = Limits(decoded_bytes=64 * 2**20)
MAX_SECONDS = 90.0  # a child may compute for 20 s and a little, on a processor that others use, too
MAX_MEGABYTES = (
    512  # added to this process, or the whole of a child, interpreter and libraries included
)

FIXED = struct.Struct("<8sHHIQ")
PREFIX = FIXED.size + 32
ERROR, EITHER = "error", "either"


@dataclass(frozen=True)
class Parts:
    """A container in pieces."""

    fixed: bytes
    digest: bytes
    manifest: bytes
    stream: bytes

    @staticmethod
    def of(data: bytes) -> Parts:
        manifest_bytes = FIXED.unpack_from(data)[3]
        end = PREFIX + manifest_bytes
        return Parts(data[: FIXED.size], data[FIXED.size : PREFIX], data[PREFIX:end], data[end:])

    def joined(self) -> bytes:
        return self.fixed + self.digest + self.manifest + self.stream

    def content(self) -> dict[str, Any]:
        return json.loads(zlib.decompress(self.manifest))


def signed(manifest: bytes, stream: bytes, sizes: tuple[int, int] | None = None) -> bytes:
    """A container around a deflated manifest and a stream, with a digest that fits."""
    fixed = FIXED.pack(b"\x89SNL\r\n\x1a\n", 2, 0, *(sizes or (len(manifest), len(stream))))
    return fixed + hashlib.sha256(fixed + manifest).digest() + manifest + stream


def resigned(content: dict[str, Any], stream: bytes) -> bytes:
    """The same around a manifest that is not yet deflated; the stream's digest is made to fit,
    too.
    """
    content = content | {"stream_sha256": hashlib.sha256(stream).hexdigest()}
    return signed(zlib.compress(json.dumps(content, ensure_ascii=False).encode(), 6), stream)


def samples() -> list[bytes]:
    """Small containers of every kind: dtypes, scalars, empty tensors, each quantiser, codebook,
    zero rows.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 3, 3, 3, generator=generator) * 0.1
    pruned = weight.reshape(24, 27).clone()
    pruned[::3] = 0
    clustered = torch.tensor([-0.7, -0.3, 0.0, 0.2, 0.9])[
        torch.randint(0, 5, (30, 20), generator=generator)
    ]
    mixed = {
        "conv.weight": weight,
        "conv.bias": weight[:, 0, 0, 0].clone(),
        "bn.num_batches_tracked": torch.tensor(7),
        "scale": torch.tensor(0.5, dtype=torch.float16),
        "mask": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
        "fc.weight": pruned,
        "ünï.重み": clustered.to(torch.float64),
    }
    record = {"model": {"name": "toy", "arguments": {"classes": 10}}, "plan": list(range(40))}
    uniform = CodecSettings(
        dependent_quantisation=False, codebook=True, qp=-20, qp_of={"fc.weight": -28}
    )
    return [
        compress(mixed, record=record),
        compress(mixed, uniform, record),
        compress({"w": clustered}, CodecSettings(dependent_quantisation=False, codebook=True)),
        compress({"w": pruned}, CodecSettings(row_skipping=False)),
        compress({"n": torch.arange(5)}, record={"a": [1, 2]}),
    ]


# Plain damage: what happens to files.


def flip(rng: random.Random, data: bytes) -> bytes:
    return _flipped(rng, data, 1)


def flips(rng: random.Random, data: bytes) -> bytes:
    return _flipped(rng, data, rng.randint(2, 64))


def _flipped(rng: random.Random, data: bytes, count: int) -> bytes:
    damaged = bytearray(data)
    for position in rng.sample(range(8 * len(data)), min(count, 8 * len(data))):
        damaged[position // 8] ^= 1 << position % 8
    return bytes(damaged)


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def insert_or_delete(rng: random.Random, data: bytes) -> bytes:
    place, count = rng.randrange(len(data) + 1), rng.randint(1, 40)
    if rng.random() < 0.5 and place < len(data):
        return data[:place] + data[place + count :]
    return data[:place] + rng.randbytes(count) + data[place:]


def overwrite(rng: random.Random, data: bytes) -> bytes:
    place, count = rng.randrange(len(data)), rng.randint(1, 64)
    filler = rng.choice([bytes(count), b"\xff" * count, rng.randbytes(count)])
    return data[:place] + filler[: len(data) - place] + data[place + count :]


def lie(rng: random.Random, data: bytes) -> bytes:
    magic, version, reserved, manifest_bytes, stream_bytes = FIXED.unpack_from(data)
    sizes = _lies(rng, manifest_bytes, stream_bytes)
    return FIXED.pack(magic, version, reserved, *sizes) + data[FIXED.size :]


def _lies(rng: random.Random, manifest_bytes: int, stream_bytes: int) -> tuple[int, int]:
    shift = rng.randint(1, 8)
    return rng.choice(
        [
            (manifest_bytes + shift, max(0, stream_bytes - shift)),
            (max(0, manifest_bytes - shift), stream_bytes + shift),
            (2**32 - 1, stream_bytes),
            (manifest_bytes, 2**64 - 1),
            (manifest_bytes, stream_bytes + 2**40),
            (2**26 + 1, 0),
            (0, manifest_bytes + stream_bytes),
        ]
    )


def swap(rng: random.Random, data: bytes) -> bytes:
    parts, other = Parts.of(data), Parts.of(rng.choice(_SAMPLES))
    swapped = [
        Parts(parts.fixed, parts.digest, parts.stream, parts.manifest),
        Parts(other.fixed, parts.digest, parts.manifest, parts.stream),
        Parts(parts.fixed, other.digest, parts.manifest, parts.stream),
        Parts(parts.fixed, parts.digest, other.manifest, parts.stream),
        Parts(parts.fixed, parts.digest, parts.manifest, other.stream),
        Parts(other.fixed, other.digest, other.manifest, parts.stream),
    ]
    return rng.choice(swapped).joined()


# Re-signed damage to the container.


def signed_lie(rng: random.Random, data: bytes) -> bytes:
    parts = Parts.of(data)
    return signed(parts.manifest, parts.stream, _lies(rng, len(parts.manifest), len(parts.stream)))


def claim_huge(rng: random.Random, data: bytes) -> bytes:
    """A tensor of the table that is larger than anything."""
    parts = Parts.of(data)
    content = parts.content()
    row = rng.choice(content["tensors"])
    row[1] = rng.choice(
        [
            [2**20, 2**20],
            [2**62, 2**62],
            [10**30],
            [2**31],
            [2**63],
            [1] * 10_000,
            [0, 2**62, 2**62],
            [2**25 + 1],
        ]
    )
    return resigned(content, parts.stream)


def claim_many(rng: random.Random, data: bytes) -> bytes:
    """Many tensors that are small, and together too much."""
    parts = Parts.of(data)
    content = parts.content()
    shape, count = rng.choice([([2**22], 17), ([1], 100_001), ([2**10, 2**10], 70)])
    rows = [[f"t{i}", shape, "float32", -32, None] for i in range(count)]
    return resigned(content | {"tensors": rows}, parts.stream)


_MILLION = 10**6
_BOMBS: dict[str, Callable[[], bytes]] = {
    "blanks": lambda: b'{"record":' + b" " * (80 * _MILLION),
    "zeros": lambda: bytes(80 * _MILLION),
    "lists": lambda: b'{"record":{"a":[' + b"[]," * (20 * _MILLION) + b"[]]}}",
    "objects": lambda: b'{"record":{"a":[' + b"{}," * (20 * _MILLION) + b"{}]}}",
    "numbers": lambda: b'{"record":{"a":[' + b"1.5," * (15 * _MILLION) + b"1]}}",
    "deep": lambda: b"[" * _MILLION + b"]" * _MILLION,
    "digits": lambda: b'{"record":{"a":' + b"9" * (60 * _MILLION) + b"}}",
    "text": lambda: b'{"record":{"a":"' + b"x" * (80 * _MILLION) + b'"}}',
}


def bomb(rng: random.Random, data: bytes) -> bytes:
    """A manifest that inflates to more than it may, or into more objects than it may."""
    name = rng.choice(sorted(_BOMBS))
    return signed(zlib.compress(_BOMBS[name](), 1), Parts.of(data).stream)


def garble_manifest(rng: random.Random, data: bytes) -> bytes:
    """One value of the manifest replaced by another kind of value."""
    parts = Parts.of(data)
    content = parts.content()
    junk = [
        None,
        True,
        -1,
        2**70,
        1.5,
        "",
        "\ud800",
        "zz",
        [],
        [[]],
        {},
        {"a": 1},
        "float32",
        -129,
        [1, "2"],
    ]
    holder: Any = content
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = rng.choice(keys)
        inner = holder[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
            holder = inner
            continue
        if isinstance(holder, dict) and rng.random() < 0.2:
            del holder[key]
        else:
            holder[key] = rng.choice(junk)
        break
    digest = content.get("stream_sha256", "")
    text = json.dumps(content).encode()  # escapes what has no UTF-8 form, as a hostile writer would
    return signed(zlib.compress(text), parts.stream if digest or not parts.stream else b"")


def flip_manifest(rng: random.Random, data: bytes) -> bytes:
    parts = Parts.of(data)
    return signed(_flipped(rng, parts.manifest, rng.randint(1, 8)), parts.stream)


def other_stream(rng: random.Random, data: bytes) -> bytes:
    return resigned(Parts.of(data).content(), Parts.of(rng.choice(_SAMPLES)).stream)


def shuffle_table(rng: random.Random, data: bytes) -> bytes:
    parts = Parts.of(data)
    content = parts.content()
    rows = content["tensors"]
    action = rng.randrange(3)
    if action == 0:
        rng.shuffle(rows)
    elif action == 1:
        rows.append(rng.choice(rows))
    else:
        rows.pop(rng.randrange(len(rows)))
    return resigned(content, parts.stream)


# Re-signed damage inside the NNC stream: it reaches the decoder.


def units_of(stream: bytes) -> list[bytes]:
    """The units of an undamaged stream."""
    units, position = [], 0
    while position < len(stream):
        width = 4 if stream[position] >= 0x80 else 2
        size = int.from_bytes(stream[position : position + width], "big") & (
            (1 << (8 * width - 1)) - 1
        )
        units.append(stream[position : position + size])
        position += size
    return units


def stream_flips(rng: random.Random, data: bytes) -> bytes:
    parts = Parts.of(data)
    return resigned(parts.content(), _flipped(rng, parts.stream, rng.choice([1, 1, 2, 8, 100])))


def stream_overwrite(rng: random.Random, data: bytes) -> bytes:
    parts = Parts.of(data)
    return resigned(parts.content(), overwrite(rng, parts.stream))


def unit_headers(rng: random.Random, data: bytes) -> bytes:
    """Bits flipped behind the size of a unit: types, names, dimensions, codebooks."""
    parts = Parts.of(data)
    units = units_of(parts.stream)
    chosen = rng.randrange(len(units))
    unit = units[chosen]
    head = unit[2 : min(len(unit), 48)]
    units[chosen] = unit[:2] + _flipped(rng, head, rng.randint(1, 4)) + unit[2 + len(head) :]
    return resigned(parts.content(), b"".join(units))


def unit_order(rng: random.Random, data: bytes) -> bytes:
    """Units cut, repeated, dropped or swapped, with sizes that fit."""
    parts = Parts.of(data)
    units = units_of(parts.stream)
    one, two = rng.randrange(len(units)), rng.randrange(len(units))
    action = rng.randrange(5)
    if action == 0:
        units[one], units[two] = units[two], units[one]
    elif action == 1:
        units.insert(one, units[two])
    elif action == 2 and len(units) > 1:
        units.pop(one)
    elif action == 3:
        units[one] = _resized(units[one][: rng.randint(3, len(units[one]))])
    else:
        units[one] = _resized(units[one] + rng.randbytes(rng.randint(1, 64)))
    return resigned(parts.content(), b"".join(units))


def unit_noise(rng: random.Random, data: bytes) -> bytes:
    """A unit whose inside is noise, zeros or ones behind an honest header."""
    parts = Parts.of(data)
    units = units_of(parts.stream)
    chosen = rng.randrange(2, len(units)) if len(units) > 2 else 0
    keep = rng.randint(3, max(3, min(60, len(units[chosen]))))
    count = rng.choice([8, 200, 5_000])
    noise = rng.choice([rng.randbytes(count), bytes(count), b"\xff" * count])
    units[chosen] = _resized(units[chosen][:keep] + noise)
    return resigned(parts.content(), b"".join(units))


def stream_claims(rng: random.Random, data: bytes) -> bytes:
    """Another shape in stream and table, both alike: too large, or far larger than the data behind
    it.
    """
    from nncodec.nnc_core import hls

    parts = Parts.of(data)
    content = parts.content()
    units = units_of(parts.stream)
    tensors = [i for i, unit in enumerate(units) if unit[4 if unit[0] >= 0x80 else 2] >> 2 == 5]
    rows = [row for row in content["tensors"] if row[4] is None]
    which = rng.randrange(len(rows))
    unit = units[tensors[which]]
    fields = {"mps_topology_indexed_reference_flag": 0, "mps_parent_signalling_enabled_flag": 0}
    fields |= {"general_profile_idc": 1}
    reader = hls.BitReader(bytearray(unit))
    for _ in hls.decode_nnr_unit_size_and_header(reader, fields):
        pass
    payload = unit[reader.getNumBytesTouched() :]
    shape = rng.choice(
        [[2**23], [2**12, 2**11], [2**24], [4096, 4095], [2**31], [2**16, 2**16], [1, 2**22], [3]]
    )
    fields |= {
        "tensor_dimensions": shape,
        "count_tensor_dimensions": len(shape),
        "tensor_dimensions_flag": 1,
    }
    fields |= {"first_tensor_dimension_shift": 0, "scan_order": 0}
    written = hls.encode_nnr_unit_with_size_dummy(fields) + payload
    units[tensors[which]] = bytes(hls.update_nnr_unit_size(written)[0])
    rows[which][1] = shape
    return resigned(content, b"".join(units))


def _resized(unit: bytes) -> bytes:
    body = unit[4 if unit[0] >= 0x80 else 2 :]
    if len(body) + 2 < 2**15:
        return (len(body) + 2).to_bytes(2, "big") + body
    return (len(body) + 4 | 1 << 31).to_bytes(4, "big") + body


@dataclass(frozen=True)
class Kind:
    """A kind of damage: how it is done, what it must end in, and its share of the count."""

    damage: Callable[[random.Random, bytes], bytes]
    ends: str
    share: int
    needs_stream: bool = False


KINDS = {
    "flipped bit": Kind(flip, ERROR, 8),
    "flipped bits": Kind(flips, ERROR, 8),
    "truncated": Kind(truncate, ERROR, 8),
    "inserted or deleted bytes": Kind(insert_or_delete, ERROR, 8),
    "overwritten bytes": Kind(overwrite, ERROR, 8),
    "lengths lie": Kind(lie, ERROR, 6),
    "swapped parts": Kind(swap, ERROR, 6),
    "re-signed: lengths lie": Kind(signed_lie, ERROR, 5),
    "re-signed: huge claimed shape": Kind(claim_huge, ERROR, 5),
    "re-signed: many claimed tensors": Kind(claim_many, ERROR, 1),
    "re-signed: manifest bomb": Kind(bomb, ERROR, 2),
    "re-signed: manifest garbled": Kind(garble_manifest, EITHER, 6),
    "re-signed: deflated manifest flipped": Kind(flip_manifest, EITHER, 4),
    "re-signed: stream of another file": Kind(other_stream, EITHER, 2),
    "re-signed: table shuffled": Kind(shuffle_table, EITHER, 2),
    "re-signed: stream flipped": Kind(stream_flips, EITHER, 6, True),
    "re-signed: stream overwritten": Kind(stream_overwrite, EITHER, 4, True),
    "re-signed: unit header flipped": Kind(unit_headers, EITHER, 5, True),
    "re-signed: units cut, repeated, swapped": Kind(unit_order, EITHER, 4, True),
    "re-signed: unit filled with noise": Kind(unit_noise, EITHER, 4, True),
    "re-signed: stream and table claim another shape": Kind(stream_claims, EITHER, 3, True),
}

_SAMPLES = samples()
_WITH_STREAM = [data for data in _SAMPLES if Parts.of(data).stream]


@dataclass
class Tally:
    """Outcome of one kind of damage."""

    count: int = 0
    errors: int = 0
    decoded: int = 0
    unchanged: int = 0  # drawn again: the damage had left the file as it was
    worst_seconds: float = 0.0
    worst_megabytes: float = 0.0  # added to this process
    worst_child_megabytes: float = 0.0
    messages: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


def run(
    count: int, seed: int, done: Callable[[str, Tally], None] | None = None
) -> dict[str, Tally]:
    """Damage ``count`` files, spread over the kinds by their shares; the same seed gives the same
    damage.

    ``done`` is called with each kind when all of its files have been decoded.
    """
    shares = sum(kind.share for kind in KINDS.values())
    counts = {name: max(1, round(count * kind.share / shares)) for name, kind in KINDS.items()}
    counts[next(iter(KINDS))] += max(0, count - sum(counts.values()))  # what rounding has lost
    tallies = {}
    for name, kind in KINDS.items():
        tallies[name] = Tally()
        for number in range(counts[name]):
            _one(random.Random(f"{seed} {name} {number}"), kind, tallies[name])
        if done is not None:
            done(name, tallies[name])
    return tallies


def _one(rng: random.Random, kind: Kind, tally: Tally) -> None:
    whole = rng.choice(_WITH_STREAM if kind.needs_stream else _SAMPLES)
    while (data := kind.damage(rng, whole)) == whole:
        tally.unchanged += 1
    tally.count += 1
    memory = Memory()
    start = time.perf_counter()
    try:
        content = decompress(data, LIMITS)
    except BitstreamError as error:
        tally.errors += 1
        message = _class_of(str(error))
        tally.messages[message] = tally.messages.get(message, 0) + 1
    except BaseException as error:
        tally.violations.append(f"{type(error).__name__}: {error}"[:300])
    else:
        tally.decoded += 1
        if complaint := _complaint(kind, data, content.tensors):
            tally.violations.append(complaint)
    seconds = time.perf_counter() - start
    here, child = memory.stop()
    tally.worst_megabytes = max(tally.worst_megabytes, here)
    tally.worst_child_megabytes = max(tally.worst_child_megabytes, child)
    if max(here, child) > MAX_MEGABYTES:
        tally.violations.append(f"took {here:.0f} MB here, {child:.0f} MB in the child")
    tally.worst_seconds = max(tally.worst_seconds, seconds)
    if seconds > MAX_SECONDS:
        tally.violations.append(f"took {seconds:.1f} s")


def _complaint(kind: Kind, data: bytes, tensors: dict[str, torch.Tensor]) -> str:
    if kind.ends == ERROR:
        return "decoded, but had to be an error"
    declared = {entry.name: (entry.shape, entry.dtype) for entry in read_header(data).tensors}
    found = {
        name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()
    }
    return "" if found == declared else f"decoded to {found}, declared was {declared}"[:300]


def _class_of(message: str) -> str:
    """The message without what varies in it."""
    kept = "".join("#" if c.isdigit() else c for c in message[:200])
    return " ".join(kept.split())


class Memory:
    """Peak resident memory while something runs: what it adds here, and what its child processes
    have.

    Linux keeps a high-water mark for each process. Here it is reset at the start; of children it is
    read every 10 ms (that of ``getrusage`` would count the memory of the parent until the child has
    become a program).
    """

    def __init__(self) -> None:
        self._child = 0.0
        self._done = threading.Event()
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status(os.getpid(), "VmRSS")
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> tuple[float, float]:
        """Megabytes added here, and of the largest child."""
        self._done.set()
        self._thread.join()
        return _status(os.getpid(), "VmHWM") - self._before, self._child

    def _watch(self) -> None:
        own = threading.main_thread().native_id
        while not self._done.wait(0.01):
            for child in Path(f"/proc/self/task/{own}/children").read_text().split():
                if _is_decoder(child):  # until then it shares the memory of its parent
                    self._child = max(self._child, _status(int(child), "VmHWM"))


def _is_decoder(process: str) -> bool:
    try:
        return b"_worker.py" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def _status(process: int, key: str) -> float:
    """A line of /proc/PID/status in megabytes; 0 for a process that is gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in text.splitlines() if line.startswith(f"{key}:")]
    return int(found[0]) * 1024 / 1e6 if found else 0.0


def _show(name: str, t: Tally) -> None:
    print(
        f"{name:48} {t.count:6} {t.errors:6} {t.decoded:7} {len(t.violations):4} {t.worst_seconds:6.2f} s "
        f"{t.worst_megabytes:8.0f} {t.worst_child_megabytes:8.0f}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="damaged_containers.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'damage':48} {'count':>6} {'error':>6} {'decoded':>7} {'bad':>4} {'worst':>8} {'MB':>8} {'child MB':>8}"
    )
    start = time.perf_counter()
    tallies = run(arguments.count, arguments.seed, _show)
    took = time.perf_counter() - start
    total = sum(t.count for t in tallies.values())
    bad = sum(len(t.violations) for t in tallies.values())
    print(f"{total} files in {took:.0f} s, {bad} violations")
    result = {
        "count": total, "seed": arguments.seed, "seconds": took, "violations": bad,
        "limits": asdict(LIMITS), "enforced": Limits.enforced(),
        "kinds": {name: asdict(t) | {"ends": KINDS[name].ends} for name, t in tallies.items()},
    }  # fmt: skip
    Path(arguments.out).write_text(json.dumps(result, indent=1, ensure_ascii=False))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
