"""Entangled learning: what both sides must agree on, and the command line."""

__version__ = "0.1.0"

PROTOCOL_VERSION = 1
"""Raised when a change of the wire contract means that older peers or coordinators must not take part."""
