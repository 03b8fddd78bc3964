"""Corners (i)-(v) of gates and tables, old code. Run with PYTHONPATH=./src:./benchmarks."""
import json, random, sys, time, importlib, statistics
from contextlib import contextmanager
from pathlib import Path
import torch
from torch import fx
from masked_zoo import masked, zoo, images
sim = importlib.import_module("snello.simplify._simplify")
ana = importlib.import_module("snello.simplify._analysis")
gate_mod = importlib.import_module("snello.simplify._gate")
cost = importlib.import_module("snello.simplify._cost")
from snello.simplify import plan_of, simplify
HERE = Path(__file__).parent
Gate = gate_mod.Gate
choices0, gates0, chains0, bytes0 = Gate.choices, ana.gates, ana.chains, sim.RELIEVED["bytes"]

def reset():
    Gate.choices, ana.gates, ana.chains, sim.RELIEVED["bytes"] = choices0, gates0, chains0, bytes0

def as_is(): pass
def no_static(): Gate.choices = property(lambda self: choices0.fget(self)[-1:])
def no_gates(): ana.gates = lambda *a: {}
def no_tables(): ana.chains = lambda *a: {}
def eager(): sim.RELIEVED["bytes"] = lambda relief, *counts: relief.saves_bytes(*counts)
VARIANTS = {"i as is": as_is, "ii no static": no_static, "iii no gates": no_gates, "iv no tables": no_tables, "v eager gates": eager}

def numbers(m):
    return sum(t.numel() for t in m.parameters()), sum(v.numel() for v in m.state_dict().values())

def main():
    torch.set_num_threads(1)
    members = zoo()
    res = json.loads((HERE/"corners.json").read_text()) if (HERE/"corners.json").exists() else {}
    for name in sys.argv[1:]:
        m = members[name]; side = 224
        pt = HERE / f"{name}-B.pt"
        if pt.exists() and name != "efficientnet_b3":
            model = m.build(); model.load_state_dict(torch.load(pt))
        else:
            model, _ = masked(m, 0.5, "B", 0, side=side)
            torch.save(model.state_dict(), pt)
        model.eval()
        x = images((1, 3, side, side), torch.Generator().manual_seed(1))
        nets = {"masked": model}
        row = {"masked": {"numbers": numbers(model)}}
        for key, patch in VARIANTS.items():
            reset(); patch()
            try:
                lean = simplify(model, x).eval()
            finally:
                reset()
            p = plan_of(lean)
            nets[key] = lean
            row[key] = {"numbers": numbers(lean), "gates": len(p.gates), "statics": len(p.statics), "overhangs": len(p.overhangs), "fills": len(p.fills), "sums": len(p.sums), "picks": len(p.picks), "tables": sum(bool(l.table) for l in p.layers.values()), "gated": sum(bool(l.gated) for l in p.layers.values())}
        times = {k: [] for k in nets}
        with torch.inference_mode():
            for _ in range(3):
                for net in nets.values(): net(x)
            per = max(1, int(0.25 / 0.03))
            for turn in range(31):
                keys = list(nets)
                random.Random(turn).shuffle(keys)
                for k in keys:
                    net = nets[k]
                    net(x)  # not timed: the caches are those of the net before
                    s = time.process_time()
                    for _ in range(4): net(x)
                    times[k].append((time.process_time() - s) / 4)
        for k in nets:
            row[k]["ms"] = 1e3 * statistics.median(times[k])
            r = sorted(a / b for a, b in zip(times[k], times["masked"]))
            row[k]["ratio"] = statistics.median(r); row[k]["iqr"] = (r[len(r)//4], r[3*len(r)//4])
            r = sorted(a / b for a, b in zip(times[k], times["i as is"]))
            row[k]["to_i"] = statistics.median(r); row[k]["to_i_iqr"] = (r[len(r)//4], r[3*len(r)//4])
        res[name] = row
        (HERE/"corners.json").write_text(json.dumps(res, indent=1))
        print(name)
        for k, v in row.items():
            print(f"  {k:14} {v['ms']:7.2f} ms  ratio {v['ratio']:.3f} ({v['iqr'][0]:.3f}-{v['iqr'][1]:.3f})  to i {v['to_i']:.3f} ({v['to_i_iqr'][0]:.3f}-{v['to_i_iqr'][1]:.3f})  {v['numbers']}", {a: b for a, b in v.items() if a not in ('ms','ratio','iqr','numbers','to_i','to_i_iqr')}, flush=True)
main()
