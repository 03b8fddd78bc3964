"""The pages of the reference: one per public name and one per command, made while the docs build.

A name that several modules export stands in the deepest of them; ``snello`` links to it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from snello.cli import help_texts

MODULES = (
    "snello.sensitivity", "snello.pruning", "snello.pruning.channels", "snello.pruning.recovery",
    "snello.simplification", "snello.graph", "snello.graph.coupled", "snello.codec", "snello.deploy",
    "snello.deploy.formats", "snello.deploy.operations", "snello.equilibrium", "snello.curation", "snello.search",
    "snello.search.prune", "snello.search.rate", "snello.search.shrink", "snello.search.tune",
    "snello.store", "snello.store.archives",
    "snello.integrations.lightning",
    "snello.integrations.huggingface", "snello.lab.methods", "snello.lab.models",
    "snello.lab.datasets", "snello.lab.training", "snello.lab.training.tuning",
    "snello.lab.reporting", "snello.lab.reporting.pages", "snello.errors",
)  # fmt: skip
"""Modules whose public names have pages, in the order of the navigation."""

OBJECT = """    options:
      heading_level: 1
      show_root_heading: true
      show_root_full_path: false
"""


def names_of(module: str) -> list[str]:
    """The names that a module exports; without ``__all__``, the classes that it defines."""
    found = importlib.import_module(module)
    own = getattr(found, "__all__", None)
    if own is None:
        own = [n for n, v in vars(found).items() if getattr(v, "__module__", "") == module]
    return sorted((n for n in own if _documented(found, n)), key=str.lower)


def homes() -> dict[str, list[str]]:
    """Module -> the names that have their page there: each name once, in the deepest module."""
    found: dict[str, list[str]] = {}
    taken: set[int] = set()
    for module in sorted(MODULES, key=lambda name: -name.count(".")):
        loaded = importlib.import_module(module)
        own = [n for n in names_of(module) if id(getattr(loaded, n)) not in taken]
        taken |= {id(getattr(loaded, n)) for n in own}
        found[module] = own
    return {module: found[module] for module in MODULES if found[module]}


def pages() -> Iterator[tuple[str, str]]:
    """Path below the folder of the docs, and text."""
    navigation = ["* [The command line](cli.md)\n"]
    for module, names in homes().items():
        folder = module.removeprefix("snello.")
        navigation.append(f"* [{module}]({folder}/index.md)\n")
        listed = "".join(f"- [`{name}`]({name}.md)\n" for name in names)
        opening = f"# {module}\n\n::: {module}\n    options:\n      members: false\n      show_root_heading: false\n"
        yield f"reference/{folder}/index.md", f"{opening}\n{listed}"
        for name in names:
            navigation.append(f"    * [{name}]({folder}/{name}.md)\n")
            yield f"reference/{folder}/{name}.md", f"::: {module}.{name}\n{OBJECT}"
    yield "reference/SUMMARY.md", "".join(navigation)
    yield "reference/cli.md", _commands()
    yield "changelog.md", (Path(__file__).parents[1] / "CHANGELOG.md").read_text()


def _documented(module: ModuleType, name: str) -> bool:
    return not name.startswith("_") and not isinstance(getattr(module, name), ModuleType)


def _commands() -> str:
    """The help of every command."""
    parts = ["# The command line\n"]
    for name, text in help_texts().items():
        title = f"## snello {name}\n\n" if name else ""
        parts.append(f"{title}```\n{text}```\n")
    return "\n".join(parts)


if __name__ in ("__main__", "<run_path>"):
    import mkdocs_gen_files

    for path, text in pages():
        with mkdocs_gen_files.open(path, "w") as page:
            page.write(text)
