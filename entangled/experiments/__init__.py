"""The shipped experiments."""
