"""Compare the plans of the rebuilt simplification with the golden ones, field by field.

Run: PYTHONPATH=CHECKOUT/src:CHECKOUT/benchmarks python golden/compare.py [--only NAME ...] [--prefer P ...]

For every golden network: loads the masked weights, makes a plan with the new code, and compares it with the old
plan as the new code reads it (`SimplificationPlan.from_json`). Prints one line per network and preference, then
each differing entry. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from masked_zoo import zoo

from snello.simplification import SimplificationPlan, make_plan

HERE = Path(__file__).parent
LIMIT = 12


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:110]} ... ({len(text)} characters)"


def label(record: Any) -> str:
    """Readable name of a record in a tuple: its kind and the node or name it speaks of."""
    kind = getattr(record, "tag", "") or type(record).__name__
    at = next((getattr(record, a) for a in ("name", "node", "reader") if getattr(record, a, "")), "")
    return f"{kind}:{at}"


def keyed(records: tuple[Any, ...]) -> dict[str, Any]:
    """Records of a tuple by label; those with one label are numbered."""
    found: dict[str, Any] = {}
    for record in records:
        key, number = label(record), 0
        while key in found:
            number += 1
            key = f"{label(record)}#{number}"
        found[key] = record
    return found


def differences(old: Any, new: Any, where: str = "plan") -> Iterator[str]:
    """Every place where two plans differ, one line each."""
    if is_dataclass(old) and is_dataclass(new) and type(old) is type(new):
        for field in fields(old):
            yield from differences(getattr(old, field.name), getattr(new, field.name), f"{where}.{field.name}")
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(k for k in new if k not in old)]:
            if key not in new:
                yield f"{where}[{key}]: missing in the new plan (old: {short(old[key])})"
            elif key not in old:
                yield f"{where}[{key}]: only in the new plan: {short(new[key])}"
            else:
                yield from differences(old[key], new[key], f"{where}[{key}]")
        if list(old) != list(new) and set(old) == set(new):
            yield f"{where}: same keys in another order"
        return
    records = isinstance(old, tuple) and isinstance(new, tuple) and any(map(is_dataclass, (*old, *new)))
    if records:
        a, b = keyed(old), keyed(new)
        yield from (d for d in differences(a, b, where) if not d.endswith("in another order"))
        if list(a) != list(b) and set(a) == set(b):
            at = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
            yield f"{where}: same records in another order, first at {at}: {list(a)[at]} / {list(b)[at]}"
        return
    if old != new:
        yield f"{where}: {short(old)} -> {short(new)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of networks, or name-variant")
    parser.add_argument("--prefer", nargs="*", default=["bytes", "latency", "plain"])
    parser.add_argument("--all", action="store_true", help=f"print all differences, not {LIMIT} per plan")
    options = parser.parse_args()
    torch.set_num_threads(1)
    index, members, bad, compared = json.loads((HERE / "index.json").read_text()), zoo(), 0, 0
    for key, entry in index.items():
        name, variant = key.rsplit("-", 1)
        if options.only and not {name, key} & set(options.only):
            continue
        model = members[name].build()
        model.load_state_dict(torch.load(HERE / f"{key}.pt", weights_only=True))
        x = torch.zeros(1, 3, entry["side"], entry["side"])
        for prefer in options.prefer:
            text = (HERE / f"{key}-{prefer}.json").read_text()
            old = SimplificationPlan.from_json(text)
            start = time.perf_counter()
            new = make_plan(model, x, prefer=prefer)
            seconds = time.perf_counter() - start
            found = list(differences(old, new))
            if not found and old != new:
                found = ["equal field by field, yet not equal as objects"]
            if SimplificationPlan.from_json(new.to_json()) != new:
                found.append("the new plan does not survive to_json and from_json")
            before = entry["make_plan_seconds"][prefer]
            compared += 1
            print(f"{key:28} {prefer:8} {len(found):5} differences   {seconds:.2f} s (old {before:.2f} s)")
            for line in found if options.all else found[:LIMIT]:
                print(f"    {line}")
            if len(found) > LIMIT and not options.all:
                print(f"    ... and {len(found) - LIMIT} more")
            bad += bool(found)
    print(f"{bad} of {compared} plans differ")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
