"""Examples; each runs from the command line."""
