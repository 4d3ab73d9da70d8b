"""The study's records: one JSON line for every run that is done, so that a stopped study goes on where it was."""

import dataclasses
import json
import os
from pathlib import Path

from study_runs import Run

# a field that came later has its default where a record is older
FIELDS = {field.name: field.default for field in dataclasses.fields(Run)}


class Results:
    """Records of a file by their run; a line that a crash cut short is as if it were not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[tuple, dict] = {}
        self.whole = True  # whether the file ends with a line's end
        if path.exists():
            text = path.read_text("utf-8")
            self.whole = not text or text.endswith("\n")
            for line in text.splitlines():
                self._keep(line)

    def _keep(self, line: str) -> None:
        try:
            record = json.loads(line)
            key = tuple(record.get(name, default) for name, default in FIELDS.items())
            if dataclasses.MISSING not in key:
                self.records[key] = record
        except (ValueError, AttributeError, TypeError):
            pass

    def __contains__(self, run: Run) -> bool:
        return run.key in self.records

    def __getitem__(self, run: Run) -> dict:
        return self.records[run.key]

    def __iter__(self):
        return iter(self.records.values())

    def add(self, record: dict) -> None:
        """Append a record, synced; it takes the place of an earlier one of the same run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("" if self.whole else "\n") + json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.whole = True
        self._keep(json.dumps(record))

    def pending(self, runs: list[Run], retry: bool) -> list[Run]:
        """Those of `runs` that are not done; with `retry`, failed ones are not."""
        return [run for run in runs if run not in self or (retry and "failed" in self[run])]
