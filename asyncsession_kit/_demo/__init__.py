"""The demo: a ledger under many concurrent scopes, written as an application would write it.

``tasks`` and ``threads`` hold the same job for both worlds; only they use the package's scopes.
"""
