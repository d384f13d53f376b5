"""Scalars for TensorBoard, written without TensorFlow."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


class Board:
    """An event file of TensorBoard's in `folder`; nothing where the package `tensorboard` is not installed."""

    def __init__(self, folder: Path) -> None:
        self._writer: Any = None
        try:
            self._event: Any = import_module("tensorboard.compat.proto.event_pb2").Event
            self._summary: Any = import_module("tensorboard.compat.proto.summary_pb2").Summary
            writer: Any = import_module("tensorboard.summary.writer.record_writer").RecordWriter
        except ModuleNotFoundError:
            return
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._writer = writer((folder / name).open("ab"))
        self._write(file_version="brain.Event:2")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars by name, at `step`."""
        if self._writer is not None:
            scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            self._write(step=step, summary=self._summary(value=scalars))

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._writer.flush()
