"""What every role's process does the same way: logging, errors as one line, exit codes."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import NoReturn

from entangled.errors import EntangledError, PatienceError, RunFailedError
from entangled.log_limit import LogLimit

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def log_to(path: Path) -> None:
    """Log to `path` and, unless that is the same file, to standard error."""
    handlers: list[logging.Handler] = [_log_file(path)]
    if not os.path.samestat(os.fstat(2), path.stat()):
        handlers.append(logging.StreamHandler())
    _log(handlers)


def log_apart(paths: Mapping[str, Path]) -> None:
    """Log to standard error, and what a thread says to its own file: `paths` by the threads' names."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    for thread, path in paths.items():
        handler = _log_file(path)
        handler.addFilter(functools.partial(_is_of, thread))
        handlers.append(handler)
    _log(handlers)


def _log_file(path: Path) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return logging.FileHandler(path, encoding="utf-8")


def _is_of(thread: str, record: logging.LogRecord) -> bool:
    return record.threadName == thread


def _log(handlers: list[logging.Handler]) -> None:
    limit = LogLimit()
    for handler in handlers:
        handler.addFilter(limit)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", handlers=handlers
    )


def one_line(error: Exception) -> str:
    """An error of somebody else's as one line: its kind, what it says, and what to do where that is known."""
    if isinstance(error, OSError):
        if error.errno in _FULL or "errno = 28" in str(error):
            return "no space left on the disk of the run's folder: free some, then go on with entangled run --resume"
        if error.errno in _FORBIDDEN:
            return (
                f"cannot write {error.filename or 'a file'}: it is read-only or somebody else's; mend its permissions, "
                "or choose another --run-dir"
            )
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def leave(error: EntangledError) -> NoReturn:
    """End the process at once with one line: a native library that failed may crash in its own cleaning up."""
    print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    logging.shutdown()
    os._exit(1)


def end_at_interrupt() -> None:
    """Let Ctrl-C end the process at once with code 130, also while its main thread is in a native library.

    Python runs a signal's handler only when the main thread is back in Python, and that may be waiting for the others
    in the middle of TensorFlow's graph. The number of a signal that came is written to a pipe at once, wherever it is.
    """
    numbers, written = os.pipe()
    os.set_blocking(written, False)

    def end() -> None:
        while signal.SIGINT not in os.read(numbers, 64):
            pass  # another signal's
        os.write(2, b"stopped\n")
        os._exit(130)

    signal.signal(signal.SIGINT, lambda *_: None)
    signal.set_wakeup_fd(written)
    threading.Thread(target=end, name="interrupt", daemon=True).start()


def main(work: Callable[[], None], command: str = "") -> None:
    """Run `work` and leave the process: 0 when it is done, 1 with one line on an error, 130 on Ctrl-C.

    Args:
        work: what the process does.
        command: that started it; a line says so where the same command goes on, once what was wrong is mended.
    """
    try:
        work()
    except (PatienceError, RunFailedError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        if command:
            again = shlex.join([*command.split(), *sys.argv[1:]])
            print(f"nothing is lost; to go on: {again}", file=sys.stderr, flush=True)  # noqa: T201
        sys.exit(1)
    except (EntangledError, OSError) as error:
        said = error if isinstance(error, EntangledError) else one_line(error)
        print(f"error: {said}", file=sys.stderr, flush=True)  # noqa: T201
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)  # noqa: T201
        sys.exit(130)


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Drop what libraries print to standard error meanwhile, past Python: TensorFlow's notes on starting."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
