"""Seeded faults in the rules of simplification, and the tests that find them.

    python benchmarks/mutants.py --check                      # every snippet occurs once in its file
    python benchmarks/mutants.py --out runs/bench/mutants.json
    python benchmarks/mutants.py --only view-merge table-bias

``mutants.toml`` lists the faults: a sign, an index, a forgotten constant, a forgotten case. Each is
written into a copy of the checkout, where the test files run one after the other, the most likely
first, until one fails. A fault that no test finds has survived: either the tests are too weak there
or the fault changes nothing. ``meaning`` says precisely what a fault changes, so that it can be
found again in code that was rewritten.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "runs", "site", "build", "dist", "docs")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+.*?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Mutant:
    """One seeded fault.

    Attributes:
        id: short name.
        group: part of simplification that it is in.
        description: in a few words.
        meaning: precisely what is changed, independent of how the code is written.
        file: relative to the checkout.
        before, after: the snippet, which occurs once in the file, and what takes its place.
        tests: test files that find it most likely, in order; the others follow.
        note: what is known about it, for instance why it survives.
    """

    id: str
    group: str
    description: str
    meaning: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """The verdict on a mutant.

    Attributes:
        id: of the mutant.
        verdict: "killed", "survived", or "broken" where the mutated code cannot be imported.
        by: the test that failed, or the file that ran out of time.
        seconds: spent on it.
    """

    id: str
    verdict: str
    by: str
    seconds: float


def read(path: Path) -> tuple[list[Mutant], list[str]]:
    """The mutants, and all test files in their usual order."""
    data = tomllib.loads(path.read_text())
    mutants = [
        Mutant(**{**entry, "tests": tuple(entry.get("tests", ()))}) for entry in data["mutant"]
    ]
    ids = [mutant.id for mutant in mutants]
    if len(set(ids)) < len(ids):
        raise SystemExit(f"{path}: two mutants have one id")
    return mutants, list(data["tests"])


def problem(mutant: Mutant, root: Path) -> str | None:
    """Return the reason why a mutant cannot be applied to a checkout; None if it can."""
    path = root / mutant.file
    if not path.is_file():
        return f"{mutant.id}: there is no {mutant.file}"
    count = path.read_text().count(mutant.before)
    if count != 1:
        return f"{mutant.id}: its snippet occurs {count} times in {mutant.file}"
    return f"{mutant.id}: before and after are the same" if mutant.before == mutant.after else None


def outcome(mutant: Mutant, tests: list[str], root: Path, limit: float) -> Outcome:
    """Apply a mutant to a copy of the checkout, and run its tests until one fails."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(root, copy, ignore=LEFT_OUT)
        mutated = copy / mutant.file
        mutated.write_text(mutated.read_text().replace(mutant.before, mutant.after))
        verdict, by = _run(mutant, tests, copy, limit)
    return Outcome(mutant.id, verdict, by, round(time.perf_counter() - start, 1))


def _run(mutant: Mutant, tests: list[str], copy: Path, limit: float) -> tuple[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}
    module = mutant.file.removeprefix("src/").removesuffix(".py").replace("/", ".")
    options = {"cwd": copy, "env": environment, "capture_output": True, "text": True}
    imported = subprocess.run([sys.executable, "-c", f"import {module}"], check=False, **options)
    if imported.returncode:
        return "broken", imported.stderr.strip().splitlines()[-1]
    for file in dict.fromkeys((*mutant.tests, *tests)):
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        try:
            found = subprocess.run([*command, file], check=False, timeout=limit, **options)
            if not found.returncode:
                continue
            failed = FAILED.search(found.stdout)
            by = failed[1] if failed else file
            # Alone and a second time: a test that fails now and then finds nothing.
            again = subprocess.run([*command, by], check=False, timeout=limit, **options)
        except subprocess.TimeoutExpired:
            return "killed", f"{file}: more than {limit:.0f} s"
        if again.returncode:
            return "killed", by
    return "survived", ""


def main() -> int:
    """Print a line for each mutant, write JSON; the exit status is 1 if one cannot be applied."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="ID", help="these mutants alone")
    parser.add_argument("--check", action="store_true", help="look for the snippets, run nothing")
    parser.add_argument(
        "--list", action="store_true", help="print what each mutant means, run nothing"
    )
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="checkout to mutate; default: this one"
    )
    parser.add_argument("--table", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument(
        "--own", action="store_true", help="only the tests that each mutant lists: minutes"
    )
    parser.add_argument("--limit", type=float, default=120, help="seconds for one test file")
    parser.add_argument(
        "--out", type=Path, help="JSON; outcomes that it holds of other mutants are kept"
    )
    options = parser.parse_args()
    mutants, tests = read(options.table)
    if unknown := set(options.only or ()) - {mutant.id for mutant in mutants}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    mutants = [mutant for mutant in mutants if not options.only or mutant.id in options.only]
    problems = [text for mutant in mutants if (text := problem(mutant, options.root)) is not None]
    if problems or options.check or options.list:
        lines = [f"{m.id} ({m.group}): {m.meaning}" for m in mutants] if options.list else []
        print(
            "\n".join(
                [*lines, *problems, f"{len(mutants)} mutants, {len(problems)} cannot be applied"]
            )
        )
        return int(bool(problems))
    results = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    for mutant in mutants:
        result = outcome(mutant, [] if options.own else tests, options.root, options.limit)
        print(f"{result.verdict:9} {result.seconds:6.1f} s  {mutant.id:28} {result.by}", flush=True)
        results[mutant.id] = asdict(result)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    survived = [key for key, result in results.items() if result["verdict"] == "survived"]
    print(f"{len(results)} mutants, {len(survived)} survived: {', '.join(survived) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
