"""Decoding of an NNC stream, unit by unit; also the script that the decoder process runs.

Native code decodes untrusted bytes here, so `snello.codec._child` runs this file by its path,
in a process of its own. It must therefore import neither snello nor torch, only numpy and two
modules of nncodec (about 0.15 s).

Parent and child exchange frames: four bytes (little-endian) with the size of a JSON object, the
object, and the raw bytes of the tensor that it announces, if any. Nothing is pickled.

    parent -> child   {"paths", "stream_bytes", "decoded_bytes", "memory_bytes", "seconds"}, the stream
    child -> parent   {"kind": "claims", "units": [[names, shape or null, values], ...]}
                      {"kind": "tensor", "name", "shape", "qp"} + float32 values, for each tensor
                      {"kind": "done"}  or  {"kind": "error", "error", "message"}
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

MEGABYTE = 2**20
START, PARAMETERS, LAYER_PARAMETERS, TOPOLOGY, NDU = 0, 1, 2, 3, 5
"""Unit types of the standard; NDU is the compressed data of a tensor, or of a block of tensors."""


class BudgetError(Exception):
    """The tensors that a stream claims exceed the limit on bytes."""


@dataclass(frozen=True)
class Claim:
    """Names, shape and size that a unit states in its header.

    Attributes:
        names: names of its tensors, as in the stream.
        shape: shape of its tensor; None for a block of tensors.
        values: upper bound on the number of values.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...] | None
    values: int


def split_units(stream: bytes) -> Iterator[bytes]:
    """Split a stream into its units.

    Each starts with its size in bytes: one flag bit, then 15 bits, or 31 if the flag is set.

    Raises:
        ValueError: if the sizes do not fill the stream.
    """
    position = 0
    # An empty stream enters the loop once, to raise the error there.
    while position < len(stream) or position == 0:
        width = 4 if stream[position : position + 1] >= b"\x80" else 2
        size = int.from_bytes(stream[position : position + width], "big") & (
            (1 << (8 * width - 1)) - 1
        )
        if size <= width or position + size > len(stream):
            raise ValueError(
                f"NNC stream of {len(stream)} bytes: the unit at byte {position} says it has {size} bytes, "
                f"{len(stream) - position} are there; the stream is truncated, damaged or of another kind"
            )
        yield stream[position : position + size]
        position += size


def read_claims(units: list[bytes]) -> list[Claim]:
    """Read names, shapes and numbers of values from the headers of units, without native code.

    Raises:
        ValueError: for a sequence of units that is not a stream.
        Exception: of various classes, if nncodec cannot parse a unit.
    """
    from nncodec.nnc_core import hls

    claims: list[Claim] = []
    # Fields of the parameter set that change how later units are parsed.
    known: dict[str, Any] = {
        "mps_topology_indexed_reference_flag": 0,
        "mps_parent_signalling_enabled_flag": 0,
    }
    _check_order([_unit_type(unit) for unit in units])
    for unit in units:
        fields: dict[str, Any] = {}
        reader = hls.BitReader(bytearray(unit))
        header = hls.decode_nnr_unit_size_and_header(reader, fields)
        next(header)
        kind = fields["nnr_unit_type"]
        if kind == START:
            next(header)
            known["general_profile_idc"] = fields["general_profile_idc"]
        elif kind == PARAMETERS:
            next(header)
            fields["general_profile_idc"] = known["general_profile_idc"]
            hls.decode_nnr_unit_payload(reader, fields)
            known |= {key: fields.get(key, 0) for key in known if key != "general_profile_idc"}
        elif kind == NDU:
            fields.update(known)
            next(header)
            claims.append(_claim(fields))
    return claims


def _check_order(kinds: list[int]) -> None:
    good = kinds[:2] == [START, PARAMETERS] and kinds[-1] == NDU
    if not good or set(kinds[2:]) - {LAYER_PARAMETERS, TOPOLOGY, NDU}:
        raise ValueError(
            f"units of the types {', '.join(map(str, kinds[:8]))}{' ...' * (len(kinds) > 8)}: a stream has a start "
            f"({START}), a model parameter set ({PARAMETERS}) and ends with a tensor ({NDU})"
        )


def _claim(fields: dict[str, Any]) -> Claim:
    shape = tuple(int(n) for n in fields["tensor_dimensions"])
    if not shape or not all(shape):
        raise ValueError(f"a tensor of the stream claims the shape {shape}, which holds no values")
    values = prod(shape)
    rank = int(fields.get("decomposition_rank", 0))
    if fields["nnr_multiple_topology_elements_present_flag"] == 0 and not rank:
        return Claim((fields["topology_elem_id"],), shape, values)
    names = tuple(fields.get("topology_elem_id_list", ())) or (fields["topology_elem_id"],)
    # In addition to the weight (or its two factors), a block has at most six vectors with one value
    # per row.
    return Claim(
        names, None, values + 6 * shape[0] + rank * (fields.get("g_number_of_rows", 0) + values)
    )


def decode_units(units: list[bytes]) -> Iterator[tuple[str, int | None, Any]]:
    """Name, quantisation parameter and float32 array of each tensor, in the order of the stream.

    Units are decoded one by one, each after the parameter units before it, so that the memory is
    that of the largest tensor. A stream with blocks of tensors is decoded as a whole.
    """
    context = b""
    for unit in units:
        if _unit_type(unit) != NDU:
            context += unit
            continue
        found = _decode(context + unit)
        if found is None:
            yield from _decode_whole(b"".join(units))
            return
        yield from found


def _unit_type(unit: bytes) -> int:
    return unit[4 if unit[0] >= 0x80 else 2] >> 2


def _decode(stream: bytes) -> list[tuple[str, int | None, Any]] | None:
    import numpy
    from nncodec.nnc_core import approximator, coder

    info = _empty_info()
    data = coder.decode(bytearray(stream), info, hls_stats={}, oob_dict={})
    if info["block_identifier"]:
        return None
    qps = dict(data.get("qp", {}))
    approximator.rec(data)
    return [
        (
            name,
            int(qps[name]) if name in qps else None,
            numpy.ascontiguousarray(array, dtype=numpy.float32),
        )
        for name, array in data["parameters"].items()
    ]


def _decode_whole(stream: bytes) -> list[tuple[str, int | None, Any]]:
    import numpy
    from nncodec.nnc_core import approximator, coder

    info = _empty_info()
    data = coder.decode(bytearray(stream), info, hls_stats={}, oob_dict={})
    approximator.rec(data)
    whole = approximator.recompose_params(info, data)["parameters"]
    return [
        (name, None, numpy.ascontiguousarray(array, dtype=numpy.float32))
        for name, array in whole.items()
    ]


def _empty_info() -> dict[str, Any]:
    maps = ("sparsification", "pruning", "unification", "decomposition_performance_map")
    return {
        "parameter_type": {}, "parameter_dimensions": {}, "parameter_index": {}, "block_identifier": {},
        "topology_storage_format": None, "topology_compression_format": None,
        "performance_maps": {"mps": {}, "lps": {}},
        "performance_map_flags": {
            f"{unit}_{name.removesuffix('_flag')}_flag": {} for unit in ("mps", "lps") for name in maps
        },
    }  # fmt: skip


# The rest of the file runs in the child alone.


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer one request."""
    try:
        request = _read_request(requests)
        _serve(request, requests, replies)
    except (Exception, SystemExit) as error:
        reason = str(error).partition("\n")[0][:300] or type(error).__name__
        _send(replies, {"kind": "error", "error": type(error).__name__, "message": reason})


def _read_request(requests: BinaryIO) -> dict[str, Any]:
    size = int.from_bytes(requests.read(4), "little")
    request: dict[str, Any] = json.loads(requests.read(size))
    return request


def _serve(request: dict[str, Any], requests: BinaryIO, replies: BinaryIO) -> None:
    sys.path += request["paths"]
    import numpy
    from nncodec.nnc_core import coder

    del numpy, coder  # loaded before the memory is limited
    size = request["stream_bytes"]
    # Reading the claims takes no more than a few copies of the stream.
    _limit(64 * MEGABYTE + 8 * size, request["seconds"])
    units = list(split_units(requests.read(size)))
    claims = read_claims(units)
    check_budget(claims, request["decoded_bytes"])
    _send(replies, {"kind": "claims", "units": [[c.names, c.shape, c.values] for c in claims]})
    memory = request["memory_bytes"] or memory_for(claims, size)
    _limit(memory, request["seconds"] or seconds_for(claims, size))
    for name, qp, array in decode_units(units):
        _send(
            replies,
            {"kind": "tensor", "name": name, "shape": array.shape, "qp": qp},
            memoryview(array),
        )
    _send(replies, {"kind": "done"})


def check_budget(claims: list[Claim], decoded_bytes: int) -> None:
    """Raise an error if the claims of a stream exceed the limit.

    Raises:
        BudgetError: naming the largest tensor.
    """
    total = 4 * sum(claim.values for claim in claims)
    if total > decoded_bytes:
        largest = max(claims, key=lambda claim: claim.values)
        raise BudgetError(
            f"the stream claims {total} bytes of float32 values (tensor {largest.names[0][:80]!r}: "
            f"{largest.values} values), more than the limit of {decoded_bytes}"
        )


def memory_for(claims: list[Claim], stream_bytes: int) -> int:
    """Bytes that decoding may add: levels and values of a tensor, copies of the stream."""
    values = [claim.values for claim in claims]
    if any(claim.shape is None for claim in claims):  # blocks: the stream is decoded as a whole
        return 64 * MEGABYTE + 8 * stream_bytes + 24 * sum(values)
    return 64 * MEGABYTE + 8 * stream_bytes + 12 * max(values)


def seconds_for(claims: list[Claim], stream_bytes: int) -> float:
    """Seconds that decoding may take: about twenty times those on a desktop computer."""
    return 20 + (sum(claim.values for claim in claims) + 4 * stream_bytes) / 500_000


def _limit(memory_bytes: int, seconds: float | None) -> None:
    try:
        import resource
    except ImportError:  # not a POSIX system: the parent still limits time and sizes
        return
    used = _address_space()
    if used is not None:
        _set(resource.RLIMIT_AS, used + memory_bytes)
    cpu = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _set(resource.RLIMIT_CPU, int(cpu + (seconds or 20) + 1))
    _set(resource.RLIMIT_CORE, 0)
    _set(resource.RLIMIT_FSIZE, 0)  # a decoder writes no file


def _set(what: int, value: int) -> None:
    import resource

    hard = resource.getrlimit(what)[1]
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (soft, hard))


def _address_space() -> int | None:
    """Bytes of address space in use; None on systems without `/proc`."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return None


def _send(replies: BinaryIO, reply: dict[str, Any], payload: memoryview | None = None) -> None:
    text = json.dumps(reply).encode()
    replies.write(len(text).to_bytes(4, "little") + text)
    if payload is not None:
        replies.write(payload.cast("B"))
    replies.flush()


def main() -> None:
    """Serve on standard input and output; what nncodec prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
