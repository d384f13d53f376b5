"""What the coordinator keeps of a run beside the exchange log, so that it can come back: `run.json`."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from coordinator.entry import MAX_SAMPLES
from coordinator.session import Restored
from entangled import atomic, process, views
from entangled.alignment import Fingerprint, SampleIds
from entangled.errors import EntangledError, LogError


class _Description(BaseModel):
    """What stands in `run.json`; all but the first two from the first join on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    run_id: Annotated[str, Field(min_length=1, max_length=64)]
    finals: dict[str, dict[str, float]]
    started_at: float = 0.0
    samples: Annotated[int, Field(gt=0, le=MAX_SAMPLES)] = 1
    classes: Annotated[int, Field(ge=2, lt=2**32)] = 2
    ids_digest: str = ""
    contents_digest: str = ""

    @model_validator(mode="after")
    def _all_or_nothing(self) -> _Description:
        if len(self.model_fields_set) not in (2, 7):
            raise ValueError("some of the data set's fingerprint is missing")
        return self


class RunFolder:
    """One run's folder. Every change is on disk when the method returns.

    Args:
        path: the folder; made, or a run's to go on with.
        experiment_toml: the experiment as resolved.

    Raises:
        EntangledError: the folder is of a run of another experiment.
        LogError: its `run.json` is damaged.
    """

    def __init__(self, path: Path, experiment_toml: str) -> None:
        self.path = path
        atomic.private_folder(path)  # predictions tell of the data that they come from
        experiment = path / "experiment.toml"
        if not experiment.exists():
            atomic.write(experiment, lambda file: file.write_text(experiment_toml, "utf-8"))
        elif experiment.read_text("utf-8") != experiment_toml:
            raise EntangledError(
                f"{path} is a run of another experiment than this one, or of other settings: choose another --run-dir"
            )
        self._description = self._load()

    @property
    def run_id(self) -> str:
        """Names the run."""
        return self._description["run_id"]

    @property
    def seconds(self) -> float:
        """Since the first peer joined."""
        return max(0.0, time.time() - self._description.get("started_at", time.time()))

    @property
    def finished(self) -> bool:
        """Whether the run is over, with a summary."""
        return (self.path / "summary.json").exists()

    def started(self, data: Fingerprint) -> None:
        """Keep the data set's fingerprint."""
        self._description |= {
            "started_at": time.time(),
            "samples": data.samples,
            "classes": data.classes,
            "ids_digest": data.ids_digest.hex(),
            "contents_digest": data.contents_digest.hex(),
        }
        self._save()

    def decided(self, lookahead: int) -> None:
        """Keep the look-ahead that was decided."""
        self._description["lookahead"] = lookahead
        self._save()

    @property
    def common(self) -> SampleIds | None:
        """The ids of the samples that all peers have, where each has its own features; None if that is not known."""
        path = self.path / views.FILE
        return np.load(path) if path.exists() else None

    def agreed(self, common: SampleIds) -> None:
        """Keep the ids of the samples that all peers have."""

        def write(file: Path) -> None:
            with file.open("wb") as stream:
                np.save(stream, common)

        atomic.write(self.path / views.FILE, write)

    def departed(self, peer: str, values: dict[str, float]) -> None:
        """Keep the final metrics of a peer that is done."""
        self._description["finals"][peer] = values
        self._save()

    def restored(self, complete: int, members: tuple[str, ...]) -> Restored | None:
        """What is known of a run that began earlier, with `complete` exchanges in its log, the last among `members`."""
        if "samples" not in self._description:
            if complete:
                raise LogError(
                    f"{self.path / 'run.json'} does not know the data set that {complete} exchanges are about"
                )
            return None
        d = self._description
        data = Fingerprint(
            d["samples"], d["classes"], bytes.fromhex(d["ids_digest"]), bytes.fromhex(d["contents_digest"])
        )
        return Restored(data, complete, members, d["finals"], d.get("lookahead"))

    def _load(self) -> dict[str, Any]:
        path = self.path / "run.json"
        if not path.exists():
            description: dict[str, Any] = {"run_id": uuid.uuid4().hex, "finals": {}}
            atomic.write_json(path, description)
            return description
        try:
            found = _Description.model_validate_json(path.read_bytes())
            bytes.fromhex(found.ids_digest + found.contents_digest)
        except ValueError as error:
            raise LogError(f"{path} is damaged: {process.one_line(error)}") from None
        return found.model_dump(exclude_unset=True)

    def _save(self) -> None:
        atomic.write_json(self.path / "run.json", self._description)
