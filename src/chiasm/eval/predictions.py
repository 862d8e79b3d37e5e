"""Replies on disk as they come: a run that was killed asks only what it had not written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chiasm.core.sample import Image, Part, Sample, Text
from chiasm.train.checkpoint import write_whole


@dataclass(frozen=True)
class Reply:
    """What came back: text with how it ended ("stop", or "length" where it was cut off), or the
    reason why nothing did."""

    text: str = ""
    finish: str = "stop"
    error: str = ""


class Predictions:
    """A JSONL file, one question a line; FILE.json beside it says what the replies depend on.

    run: all that replies depend on besides the question (weights, prompt, sampling), as JSON. Only
    replies of the same run are taken up again (run["noted"] apart, which is kept for the reader);
    without a run nothing is. None as the file keeps nothing. Failed questions are asked again.
    """

    def __init__(self, file: Path | None, run: Mapping[str, Any] | None):
        self.file, self.run = file, None if run is None else json.loads(json.dumps(run))
        self.known: dict[str, Reply] = {}
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        records = read_predictions(file) if self._is_same_run() else []
        kept = [record for record in records if "key" in record and not record.get("error")]
        self.known = {r["key"]: Reply(r["reply"], r.get("finish") or "stop") for r in kept}
        self._rewrite(kept)  # a kill may have cut the last line short
        if self.run is not None:
            self._note({"complete": False, "run": self.run})
        self._appended = file.open("a", encoding="utf-8")

    def append(self, record: Mapping[str, Any]) -> None:
        """One more line, given to the system at once."""
        if self.file is not None:
            self._appended.write(_line(record))
            self._appended.flush()

    def finish(self, records: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> None:
        """All lines in the order of the questions, and the result beside them."""
        if self.file is None:
            return
        self.close()
        self._rewrite(records)
        if self.run is not None:
            self._note({"complete": True, **result, "run": self.run})

    def close(self) -> None:
        if self.file is not None:
            self._appended.close()

    def _is_same_run(self) -> bool:
        assert self.file is not None
        if self.run is None or not self.file.exists():
            return False
        before = run_of(self.file)
        return before is not None and {**before, "noted": 0} == {**self.run, "noted": 0}

    def _rewrite(self, records: Sequence[Mapping[str, Any]]) -> None:
        assert self.file is not None
        write_whole(self.file, "".join(map(_line, records)))

    def _note(self, record: Mapping[str, Any]) -> None:
        assert self.file is not None
        write_whole(beside(self.file), json.dumps(record, indent=2, ensure_ascii=False))


def beside(file: Path) -> Path:
    """Where the result of a file of predictions is."""
    return file.with_suffix(".json")


def run_of(file: Path) -> dict | None:
    """The run that a file of predictions is of, None where nothing says it."""
    try:
        run = json.loads(beside(file).read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return run if isinstance(run, dict) else None


def read_predictions(file: Path) -> list[dict]:
    """The lines of a file of predictions; those that are no JSON objects are left out, as a line
    that a kill cut short is none."""
    records = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def key_of(sample: Sample) -> str:
    """Equal for the same question about the same images."""
    said = [[turn.role, [_part(part) for part in turn.content]] for turn in sample.turns]
    return hashlib.sha256(json.dumps([sample.id, said]).encode()).hexdigest()[:16]


def _part(part: Part) -> list:
    if isinstance(part, Text):
        return [part.text]
    path = part.source if isinstance(part, Image) else part.path
    if isinstance(part, Image) and not isinstance(path, Path):
        return [part.digest()]
    assert isinstance(path, Path)
    # Not opened: a missing file is that question's error, found when it is asked.
    state = path.stat() if path.exists() else None
    return [str(path.resolve()), *((state.st_size, state.st_mtime_ns) if state else ())]


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
