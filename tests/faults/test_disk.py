"""Guarantee 6 where the disk is full or read-only: one line that says so, and nothing half-written is taken for whole.

A full disk is a limit on the size of a process's files: it needs no privileges, and a write fails just as late.
"""

from __future__ import annotations

import multiprocessing
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from entangled import process
from entangled.cli.main import app
from entangled.errors import LogError
from entangled.log.reader import open_run
from entangled.log.verify import verify
from entangled.participation import checkpoint
from entangled.participation.checkpoint import Checkpoint
from tests.contract.processes import LiveCoordinator
from tests.faults.test_network import train
from tests.support import experiment

FULL = "no space left on the disk of the run's folder: free some, then go on with entangled run --resume"


def test_a_full_disk_ends_the_run_in_one_line_and_the_run_goes_on_when_there_is_space(tmp_path: Path) -> None:
    settings = experiment(epochs=4)
    full = LiveCoordinator(settings, tmp_path, disk=5000)  # an epoch's stream fits, its Parquet does not
    try:
        with ThreadPoolExecutor(2) as pool:
            peers = [pool.submit(train, full.peer(name), name, settings) for name in "ab"]
            for peer in peers:
                with pytest.raises(LogError, match=FULL):
                    peer.result()
        error = full.ended()
        assert isinstance(error, LogError)
        assert str(error) == f"cannot write the exchange log in {full.run}: {FULL}"
    finally:
        full.close()
    verdict = verify(open_run(full.run))
    assert (verdict.fault, verdict.finished) == (None, False)
    assert 0 < verdict.exchanges < verdict.of

    again = LiveCoordinator(settings, tmp_path)
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name: train(again.peer(name), name, settings), "ab"))
        assert again.ended() is None
    finally:
        again.close()
    verdict = verify(open_run(full.run))
    assert (verdict.fault, verdict.exchanges, verdict.finished) == (None, 12, True)


def save(folder: Path, limit: int, index: int) -> None:
    """In a process of its own: a limit cannot be taken back."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        checkpoint.save(folder, "a", Checkpoint("run", index, {}, [np.full(2000, index)]))
    except OSError as error:
        raise SystemExit(3 if process.one_line(error) == FULL else 4) from None


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    codes = []
    for limit, index in ((10**6, 10), (5000, 20)):
        saving = multiprocessing.get_context("forkserver").Process(target=save, args=(tmp_path, limit, index))
        saving.start()
        saving.join()
        codes.append(saving.exitcode)
    assert codes == [0, 3]
    found = checkpoint.load(tmp_path, "run", complete=50)
    assert found is not None
    assert (found.index, found.state[0][0]) == (10, 10)


def test_a_folder_that_cannot_be_written_to_is_one_line() -> None:
    """/sys, because a superuser may write to any folder that is only said to be read-only."""
    run = Path("/sys/entangled")
    try:
        run.mkdir()
    except PermissionError:
        pass
    except OSError as error:
        if process.one_line(error).startswith("FileNotFound"):
            pytest.skip("there is no /sys here")
    else:
        run.rmdir()
        pytest.skip("/sys can be written to here")
    result = CliRunner().invoke(app, ["run", "smoke", "--run-dir", str(run)])
    assert isinstance(result.exception, OSError)
    assert process.one_line(result.exception) == (
        "cannot write /sys/entangled: it is read-only or somebody else's; "
        "mend its permissions, or choose another --run-dir"
    )
