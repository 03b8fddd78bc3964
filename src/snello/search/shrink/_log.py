"""A log with one JSON line per result, which several processes share."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock  # torch depends on it

from snello.errors import ConfigError, OutputError
from snello.search.identity import plain
from snello.search.locks import claimed

WAIT = 0.1
"""Seconds between two looks at what another process is computing."""

Job = Callable[[], Mapping[str, Any]]


class Log:
    """Results by key; each is computed once, by whichever process comes first.

    Args:
        folder: folder of `candidates.jsonl` and of the locks; None keeps results in memory.
        settings: what the results depend on, compared with that of the file.
        whole: tells from a key and an entry if the entry has all fields; others are computed again,
            as if they were not there.

    Raises:
        ConfigError: if the folder holds results of other settings, or without their settings, and
            for settings that are no plain values.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: Mapping[str, Any],
        whole: Callable[[str, Mapping[str, Any]], bool] = lambda key, entry: True,
    ) -> None:
        self._folder, self._whole = folder, whole
        self._known: dict[str, dict[str, Any]] = {}
        self._read = 0
        if folder is None:
            return
        wanted = plain(settings, "shrink")
        try:
            (folder / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error
        # Every process writes the settings first: without them, the line was lost.
        if self.find("settings") is None and self._known:
            raise ConfigError(
                f"{self._file} has results, but not the settings of their search: choose another "
                f"folder, or remove {folder}"
            )
        found = self.result("settings", lambda: wanted)
        if found != wanted:
            odd = sorted(key for key in wanted if found.get(key) != wanted[key])
            raise ConfigError(
                f"{folder} holds a search with other settings ({', '.join(odd)}): choose another folder, "
                "or remove it"
            )  # fmt: skip

    def result(self, key: str, job: Job) -> dict[str, Any]:
        """The result of one job."""
        return self.results({key: job})[key]

    def results(self, jobs: Mapping[str, Job]) -> dict[str, dict[str, Any]]:
        """The results of some jobs: from the file, computed here, or awaited."""
        left, found = dict(jobs), {}
        while left:
            before = len(left)
            for key in list(left):
                if (result := self.attempt(key, left[key])) is not None:
                    found[key] = result
                    del left[key]
            if len(left) == before:
                time.sleep(WAIT)
        return {key: found[key] for key in jobs}

    def attempt(self, key: str, job: Job) -> dict[str, Any] | None:
        """The result of a job; None while another process computes it."""
        if (known := self.find(key)) is not None:
            return known
        with self._claim(key) as mine:
            if not mine:
                return None
            # It may have been written between the look and the claim.
            return self.find(key) or self._write(key, job())

    def find(self, key: str) -> dict[str, Any] | None:
        """A result that is known already."""
        if key not in self._known:
            self._refresh()
        return self._known.get(key)

    @contextmanager
    def _claim(self, key: str) -> Iterator[bool]:
        if self._folder is None:
            yield True
            return
        # Names of modules may hold characters that a file system does not allow.
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        with claimed(self._folder / "locks" / f"{name}.lock") as mine:
            yield mine

    @property
    def _file(self) -> Path:
        assert self._folder is not None
        return self._folder / "candidates.jsonl"

    def _refresh(self) -> None:
        if self._folder is None or not self._file.is_file():
            return
        with self._file.open("rb") as file:
            file.seek(self._read)
            # A process that was killed may have left half a line, and others write behind it.
            for line in file.read().split(b"\n")[:-1]:
                self._read += len(line) + 1
                try:
                    entry = json.loads(line)
                    key = str(entry.pop("key"))
                    if self._whole(key, entry):
                        self._known.setdefault(key, entry)
                except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
                    continue

    def _write(self, key: str, result: Mapping[str, Any]) -> dict[str, Any]:
        line = json.dumps({"key": key, **result})
        self._known[key] = json.loads(line)
        self._known[key].pop("key")
        if self._folder is not None:
            with FileLock(self._folder / "locks" / "file.lock"):
                half = self._file.is_file() and not _ends_with_newline(self._file)
                with self._file.open("a", encoding="utf-8") as file:
                    file.write("\n" * half + line + "\n")
        return self._known[key]


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
