"""Print what the package needs, a requirement a line: `requirements.py [EXTRA]`.

An image build installs that before it copies the code, so that a change of the code does not install it all again.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
extras = project["optional-dependencies"]
found = [*project["dependencies"], *(requirement for extra in sys.argv[1:] for requirement in extras[extra])]
sys.stdout.write("\n".join(found) + "\n")
