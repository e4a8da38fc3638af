"""The faults, one module per kind; importing this package fills the table of cells."""

from . import cancelling, misuse, pools, servers, wire

__all__ = ["cancelling", "misuse", "pools", "servers", "wire"]
