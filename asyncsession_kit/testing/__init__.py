"""What helps to test code that uses the package: a proxy that fails on purpose.

Import it in tests; nothing of the package itself does.
"""

from __future__ import annotations

from ._faults import Action, Fault, FaultChooser, WireMessage
from ._proxy import FaultProxy, ThreadedFaultProxy

__all__ = [
    "Action",
    "Fault",
    "FaultChooser",
    "FaultProxy",
    "ThreadedFaultProxy",
    "WireMessage",
]

# Shown in tracebacks and help under the name they are imported by.
for _public in (Fault, FaultProxy, ThreadedFaultProxy, WireMessage):
    _public.__module__ = __name__
del _public
