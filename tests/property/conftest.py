"""Few examples and no deadline: these run with every change, on any machine. In CI they are the same each time."""

import os

from hypothesis import settings

settings.register_profile("entangled", max_examples=50, deadline=None, derandomize="CI" in os.environ)
settings.load_profile("entangled")
