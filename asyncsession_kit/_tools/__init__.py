"""Tools for working on the package itself; left out of the wheel."""
