"""The command line, `entangled …`."""
