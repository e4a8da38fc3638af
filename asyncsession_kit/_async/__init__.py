"""The source of both worlds: the twin of each module is generated beside it."""
