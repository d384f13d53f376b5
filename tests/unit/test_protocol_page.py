"""What docs/protocol.md computes is what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def test_the_digests_of_the_protocols_page() -> None:
    page = PAGE.read_text("utf-8")
    script, shown = re.search(r"python - <<'END'\n(.*?)\nEND\n```\n\n((?:    [^\n]*\n)+)", page, re.S).groups()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [line.split() for line in done.stdout.splitlines()] == [line.split() for line in shown.splitlines()]
