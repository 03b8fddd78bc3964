"""Where ONNX Runtime spends the time of dense and narrowed networks, kind of operation by kind.

    python benchmarks/channel_profile.py DIR/resnet32-0.5-10-15000 --out FILE.json

The networks are those that ``channel_pruning.py`` saved for its first seed. Each is exported, and
runs in the runtime's own profiler, one thread, batch 1, the networks in turns. Times are medians of
a forward, in milliseconds, and shares of the dense network's total.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import torch

from snello.deploy import export
from snello.files import write_text

X = torch.rand(1, 3, 32, 32)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(""))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def by_kind(profile: Path, skip: int) -> dict[str, float]:
    """Median milliseconds of a forward per kind of operation; the first forwards are skipped."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for event in json.loads(profile.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"]].append(event["dur"] / 1e3)
            kinds[event["name"]] = event["args"]["op_name"]
    found: Counter[str] = Counter()
    for name, values in times.items():
        found[kinds[name]] += statistics.median(values[skip:])  # type: ignore[assignment]
    return dict(found)


def profiled(networks: dict[str, torch.nn.Module], repeats: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for number, (name, network) in enumerate(networks.items()):
            path = Path(folder) / f"{number}.onnx"
            export(network.eval(), X, path)
            sessions[name] = session(path)
        for _ in range(repeats):
            for running in sessions.values():
                running.run(None, {running.get_inputs()[0].name: numpy.asarray(X)})
        return {
            name: by_kind(Path(running.end_profiling()), repeats // 5)
            for name, running in sessions.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="+", type=Path, help="folders with saved networks")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    networks: dict[str, Any] = {}
    for folder in options.folder:
        for path in sorted(folder.glob("*-0.pt")):
            # Files of the benchmark's own run, not of strangers: whole modules.
            network = torch.load(path, weights_only=False)
            networks.setdefault(path.stem.removesuffix("-0"), network)
    found = profiled(networks, options.repeats)
    whole = sum(found["dense"].values())
    for name, kinds in found.items():
        print(
            f"{name:36} {sum(kinds.values()) / whole:5.2f} "
            + "  ".join(
                f"{kind} {ms:.3f}" for kind, ms in sorted(kinds.items(), key=lambda k: -k[1])
            )
        )
    if options.out:
        write_text(options.out, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
