"""A role process that does nothing: what a launcher has to deal with, by its first argument."""

import os
import signal
import sys


def main(kind: str) -> None:
    match kind:
        case "error":
            sys.stderr.write("some line\nerror: first\nerror: no memory left\nlast line\n")
            sys.exit(1)
        case "trace":
            raise RuntimeError("unexpected")
        case "done":
            sys.exit(0)
        case "silent":
            sys.exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case _:
            pass
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1])
