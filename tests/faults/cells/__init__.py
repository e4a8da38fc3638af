"""The faults, one module per kind; importing this package fills the table of cells."""

from . import cancelling, crashes, disconnects, misuse, pools, servers, wire

__all__ = ["cancelling", "crashes", "disconnects", "misuse", "pools", "servers", "wire"]
