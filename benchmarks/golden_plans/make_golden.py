"""Golden plans of the old code: masked networks, and what make_plan decides for each preference.

Run: PYTHONPATH=./src:./benchmarks python golden/make_golden.py [NAME ...]

Writes NAME-VARIANT.pt (masked state_dict), NAME-VARIANT-PREFER.json (plan), index.json (side, seconds).
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

import torch
from masked_zoo import masked, zoo

from snello.simplify import make_plan

HERE = pathlib.Path(__file__).parent
SIDES = {  # side of the square input on which the network is calibrated and traced
    "resnet-32": 32, "resnet18": 128, "mobilenet_v2": 224, "efficientnet_b0": 224, "mobilenet_v3_small": 224,
    "densenet121": 128, "shufflenet_v2_x1_0": 224, "swin_t": 224, "vit_b_16": 224, "regnet_y_400mf": 128,
}  # fmt: skip


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    members = zoo()
    path = HERE / "index.json"
    for name in names:
        for variant in ("A", "B"):
            side = SIDES[name]
            start = time.perf_counter()
            target = HERE / f"{name}-{variant}.pt"
            if target.exists():
                model = members[name].build()
                model.load_state_dict(torch.load(target))
                rescued = None
            else:
                model, rescued = masked(members[name], 0.5, variant, 0, side=side)
                torch.save(model.state_dict(), target)
            made = time.perf_counter() - start
            x = torch.zeros(1, 3, side, side)
            taken = {}
            for prefer in ("bytes", "latency", "plain"):
                start = time.perf_counter()
                plan = make_plan(model, x, prefer=prefer)
                taken[prefer] = round(time.perf_counter() - start, 2)
                (HERE / f"{name}-{variant}-{prefer}.json").write_text(plan.to_json())
            index = json.loads(path.read_text()) if path.exists() else {}
            index[f"{name}-{variant}"] = {
                "side": side, "share": 0.5, "seed": 0, "rescued": rescued, "masking_seconds": round(made, 1),
                "make_plan_seconds": taken,
            }  # fmt: skip
            path.write_text(json.dumps(index, indent=1))
            print(name, variant, side, round(made, 1), taken, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(SIDES))
