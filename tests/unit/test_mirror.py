"""What is copied from stations fits together at any moment, and is enough to go on from; without any cluster."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from entangled import atomic
from entangled.exchange_log import read
from entangled.launch import station as stations
from entangled.launch.mirror import Mirror, restore
from entangled.launch.station import Station
from tests.faults.launched import until
from tests.support import log_rows, same, writer

HERE = ("node", "127.0.0.1")


@pytest.fixture
def station(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Station:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nodes"))
    return Station("test", "coordinator", lambda: HERE)


def put(station: Station, name: str, content: bytes) -> None:
    """As a role does: the whole file at once, or what it adds."""
    station.write(f"run/{name}", content, 0)


def copied(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


def update(mirror: Mirror) -> None:
    assert mirror.fetch()
    mirror.commit()


def test_what_changes_is_copied_and_what_goes_is_removed(station: Station, tmp_path: Path) -> None:
    mirror = Mirror(station, tmp_path / "copy")
    put(station, "run.json", b'{"samples": 3}')
    update(mirror)
    put(station, "exchange/epoch=0000.arrow", b"one")
    update(mirror)
    put(station, "exchange/epoch=0000.arrow", b"one, two")  # the same file, longer
    put(station, "exchange/.tmp-part-0.parquet", b"half of")
    update(mirror)
    assert copied(tmp_path / "copy") == {"run.json": b'{"samples": 3}', "exchange/epoch=0000.arrow": b"one, two"}
    put(station, "exchange/epoch=0000/part-0.parquet", b"PAR1")
    station.remove("run/exchange/epoch=0000.arrow")
    update(mirror)
    assert copied(tmp_path / "copy") == {"run.json": b'{"samples": 3}', "exchange/epoch=0000/part-0.parquet": b"PAR1"}


def test_a_large_file_comes_in_pieces(station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stations, sys.modules["entangled.launch.mirror"]):
        monkeypatch.setattr(module, "PIECE", 10)
    sizes = {"none": 0, "less": 9, "one": 10, "more": 11, "two": 20, "exchange/x.arrow": 25}
    for name, size in sizes.items():
        put(station, name, os.urandom(size))
    mirror = Mirror(station, tmp_path / "copy")
    update(mirror)
    elsewhere = Station("test", "elsewhere", lambda: HERE)
    restore(tmp_path / "copy", lambda name: name != "less", elsewhere)
    for name, size in sizes.items():
        original = station.read(name, 0)
        assert len(copied(tmp_path / "copy")[name]) == size
        if name != "less":
            got = b"".join(elsewhere.read(name, offset) or b"" for offset in range(0, size + 1, 10))
            assert got[:10] == original
            assert len(got) == size
    assert "less" not in elsewhere.files()


def test_exchanges_wait_for_the_run_json_that_knows_their_data(station: Station, tmp_path: Path) -> None:
    mirror = Mirror(station, tmp_path / "copy")
    put(station, "run.json", b'{"finals": {}}')
    update(mirror)
    put(station, "run.json", b'{"finals": {}, "samples": 3}')
    put(station, "exchange/epoch=0000.arrow", b"one")
    update(mirror)
    assert "exchange/epoch=0000.arrow" not in copied(tmp_path / "copy")
    assert json.loads(copied(tmp_path / "copy")["run.json"])["samples"] == 3
    update(mirror)
    assert copied(tmp_path / "copy")["exchange/epoch=0000.arrow"] == b"one"


def test_what_is_fetched_stays_beside_its_place_until_it_is_committed(station: Station, tmp_path: Path) -> None:
    mirror = Mirror(station, tmp_path / "copy")
    put(station, "peers/cnn/checkpoints/10.checkpoint", b"first")
    update(mirror)
    put(station, "peers/cnn/checkpoints/20.checkpoint", b"second")
    station.remove("run/peers/cnn/checkpoints/10.checkpoint")
    assert mirror.fetch()
    assert copied(tmp_path / "copy") == {"peers/cnn/checkpoints/10.checkpoint": b"first"}, "it is ahead of the log"
    elsewhere = Station("test", "elsewhere", lambda: HERE)
    restore(tmp_path / "copy", lambda _: True, elsewhere)
    assert list(elsewhere.files()) == ["peers/cnn/checkpoints/10.checkpoint"]
    mirror.commit()
    assert copied(tmp_path / "copy") == {"peers/cnn/checkpoints/20.checkpoint": b"second"}


class Vanishing:
    """A station from which a file goes after it was listed."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self.files = station.files

    def read(self, name: str, offset: int) -> bytes | None:
        self._station.remove(f"run/{name}")
        return self._station.read(name, offset)


def test_a_file_that_goes_while_it_is_copied_is_left_to_the_next_time(station: Station, tmp_path: Path) -> None:
    mirror = Mirror(Vanishing(station), tmp_path / "copy")
    put(station, "final.keras", b"x")
    assert not mirror.fetch()
    assert mirror.fetch()
    mirror.commit()
    assert copied(tmp_path / "copy") == {}


class Lost(Exception):  # noqa: N818
    """The station is there no more, or this side is not."""


class Losing:
    """A station that is lost when so many pieces have been read, if it is told."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self.files = station.files
        self.left = sys.maxsize

    def read(self, name: str, offset: int) -> bytes | None:
        if not self.left:
            raise Lost
        self.left -= 1
        return self._station.read(name, offset)


def test_what_is_fetched_in_part_does_not_get_to_its_place(station: Station, tmp_path: Path) -> None:
    source = Losing(station)
    mirror = Mirror(source, tmp_path / "copy")
    put(station, "final.keras", b"first")
    update(mirror)
    put(station, "final.keras", b"second")
    assert mirror.fetch()
    put(station, "final.keras", b"the third")
    source.left = 0
    with pytest.raises(Lost):
        mirror.fetch()
    mirror.commit()
    assert copied(tmp_path / "copy") == {"final.keras": b"first"}


def log_of_seven(folder: Path, source: Losing, run: Path) -> tuple[Mirror, Callable[[], int]]:
    """A mirror that knows the first exchange of a log that has got seven since, over three epochs; who counts them."""
    rows, log, mirror = log_rows(epochs=3), writer(run), Mirror(source, folder / "copy")
    log.append(*rows[:2])
    log.flush()
    (run / "run.json").write_text('{"samples": 12}')
    update(mirror)
    update(mirror)
    log.append(*rows[2:14])
    log.close()

    def goes_on_from() -> int:
        shutil.copytree(folder / "copy", folder / "elsewhere")
        log = writer(folder / "elsewhere")
        log.append(*rows[2 * log.resumed :])
        log.finish_epoch()
        assert all(same(a, b) for a, (b, _) in zip(rows, read(folder / "elsewhere"), strict=True))
        shutil.rmtree(folder / "elsewhere")
        return log.resumed

    assert goes_on_from() == 1
    return mirror, goes_on_from


@pytest.mark.parametrize("pieces", range(5))
def test_a_log_whose_station_is_lost_while_it_is_copied_has_no_gap(
    station: Station, tmp_path: Path, pieces: int
) -> None:
    source = Losing(station)
    mirror, goes_on_from = log_of_seven(tmp_path, source, Path(station.place().folder) / "run")
    source.left = pieces
    if pieces < 4:  # what run.json says, two finished epochs, and a stream
        with pytest.raises(Lost):
            mirror.fetch()
        assert goes_on_from() == 1
        mirror.forget()
        source.left = sys.maxsize
    update(mirror)
    assert goes_on_from() == 7


@pytest.mark.parametrize("files", range(4))
def test_a_log_whose_copy_is_broken_off_has_no_gap(
    station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    source, run = Losing(station), Path(station.place().folder) / "run"
    mirror, goes_on_from = log_of_seven(tmp_path, source, run)
    assert mirror.fetch()
    with monkeypatch.context() as patch:
        synced: list[Path] = []

        def sync(path: Path) -> None:
            if len(synced) == files:
                raise Lost
            synced.append(path)

        patch.setattr(atomic, "sync", sync)
        with pytest.raises(Lost):
            mirror.commit()
    assert goes_on_from() == (1, 3, 6, 7)[files]
    update(Mirror(source, tmp_path / "copy"))  # of the next launch
    assert goes_on_from() == 7


def test_after_a_restart_a_torn_end_is_copied_anew(station: Station, tmp_path: Path) -> None:
    mirror = Mirror(station, tmp_path / "copy")
    put(station, "exchange/x.arrow", b"whole|torn")
    update(mirror)
    put(station, "exchange/x.arrow", b"whole|again and more")
    mirror.forget()
    update(mirror)
    assert copied(tmp_path / "copy")["exchange/x.arrow"] == b"whole|again and more"


def test_each_line_of_a_log_is_heard_once(station: Station, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "coordinator.log").write_text("before\n")
    heard: list[str] = []
    mirror = Mirror(station, tmp_path / "copy", heard.append)
    for content in (b"before\none\ntw", b"before\none\ntwo\n", b"before\none\ntwo\nthree\n"):
        put(station, "coordinator.log", content)
        update(mirror)
        mirror.forget()
    assert heard == ["one", "two", "three"]


def test_a_station_holds_a_role_and_knows_when_it_was_here_before(station: Station) -> None:
    assert not station.state().started
    assert not station.place().kept
    folder = Path(station.place().folder)
    assert folder.stat().st_mode & 0o777 == 0o700, "keys may be in it"
    station.start("the role", ["tests.faults.idle", "silent"], "run/coordinator.log")
    until(lambda: station.state().exit_code is not None, "its end")
    assert station.state().exit_code == 3
    assert station.state().why == "exit code 3: it printed nothing"
    station.start("the role", ["tests.faults.idle", "idle"], "run/coordinator.log")
    until(lambda: station.read("coordinator.log", 0), "its first word")
    assert station.state().exit_code is None
    again = Station("test", "coordinator", lambda: HERE)
    assert again.place().kept
    assert again.place().incarnation != station.place().incarnation
    assert not Station("test", "coordinator", lambda: ("another node", "127.0.0.1")).place().kept
    station.clear()
    assert not folder.exists()
