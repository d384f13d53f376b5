"""The reference builds without a warning, and has everything that `import entangled` gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import entangled

ROOT = Path(__file__).parents[2]


def test_the_reference_is_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "joining.html").read_text()
    for name in entangled.__all__:
        assert f'.{name}"' in page, name
    assert "experiment_parts.Peer.backend" in (tmp_path / "reference" / "shared.html").read_text()
