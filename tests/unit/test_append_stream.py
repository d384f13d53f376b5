"""The file behind the log: whatever is appended stands in it, in order, past the page cache or not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entangled import append_stream
from entangled.append_stream import AppendStream

SCHEMA = pa.schema([("values", pa.list_(pa.float32()))])


def batch(values: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array([np.arange(values, dtype=np.float32)], SCHEMA.field("values").type)], SCHEMA)


def read(path: Path) -> list[pa.RecordBatch]:
    with path.open("rb") as file:
        return list(pa.ipc.open_stream(file))


@pytest.fixture(params=["direct", "no such writes", "refused"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small sizes, three kinds of system, and how large every direct write was."""
    monkeypatch.setattr(append_stream, "HELD", 16 * append_stream.BLOCK)
    monkeypatch.setattr(append_stream, "DIRECT", 2 * append_stream.BLOCK)
    monkeypatch.setattr(append_stream, "PIECES", 1000)
    if request.param == "no such writes":
        monkeypatch.delattr(os, "O_DIRECT", raising=False)
    direct: set[int] = set()
    sizes: list[int] = []
    put, open_ = os.pwrite, append_stream._open_direct

    def opened(path: Path) -> int | None:
        file = open_(path)
        if file is not None:
            direct.add(file)
        return file

    def pwrite(file: int, data: bytes, offset: int) -> int:
        if file in direct:
            if request.param == "refused":
                raise OSError(errno.EINVAL, "the file system does not like it")
            sizes.append(len(data))
            assert offset % append_stream.BLOCK == len(data) % append_stream.BLOCK == 0
        return put(file, data, offset)

    monkeypatch.setattr(append_stream, "_open_direct", opened)
    monkeypatch.setattr(os, "pwrite", pwrite)
    return sizes


@given(st.lists(st.tuples(st.integers(0, 60_000), st.booleans()), max_size=8))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_appended_is_read_again(tmp_path: Path, written: list[int], appended: list[tuple[int, bool]]) -> None:
    """Also what is read between: everything up to the last `sync`."""
    stream, expected = AppendStream(tmp_path / "file", SCHEMA), []
    for values, sync in appended:
        stream.append(batch(values))
        expected.append(batch(values))
        if sync:
            stream.sync()
            assert read(tmp_path / "file") == expected
    stream.close()
    assert read(tmp_path / "file") == expected


def test_large_amounts_go_past_the_page_cache_where_the_system_lets_them(
    tmp_path: Path, written: list[int], request: pytest.FixtureRequest
) -> None:
    """Of a file system without such writes nothing can be said here."""
    stream = AppendStream(tmp_path / "file", SCHEMA)
    stream.append(batch(100))
    stream.sync()
    assert written == []
    stream.append(batch(100_000))
    stream.close()
    supported = append_stream._open_direct(tmp_path / "file") is not None
    assert (sum(written) > 300_000) == (supported and "refused" not in request.node.name)
    assert read(tmp_path / "file") == [batch(100), batch(100_000)]


def test_a_disks_own_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    stream = AppendStream(tmp_path / "file", SCHEMA)
    stream.append(batch(1_000_000))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as raised:
        stream.sync()
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    stream.close()
