"""What the roles' processes do the same way."""

from __future__ import annotations

import signal
import subprocess
import sys

IN_A_NATIVE_LIBRARY = """
import ctypes
from entangled import process
process.end_at_interrupt()
mutex, library = ctypes.create_string_buffer(128), ctypes.CDLL(None)
library.pthread_mutex_lock(mutex)
print("ready", flush=True)
library.pthread_mutex_lock(mutex)  # never returns, also not for a signal
"""


def test_ctrl_c_ends_a_peer_whose_main_thread_is_not_in_python() -> None:
    started = subprocess.Popen(
        [sys.executable, "-c", IN_A_NATIVE_LIBRARY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with started as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
            assert process.stderr.read() == "stopped\n"
        finally:
            process.kill()
