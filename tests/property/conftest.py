"""Few examples and no deadline: these run with every change, on any machine."""

from hypothesis import settings

settings.register_profile("entangled", max_examples=50, deadline=None)
settings.load_profile("entangled")
