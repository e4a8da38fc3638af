"""What clients believe of their transactions, against what the database holds.

Units of work run through a proxy that cuts connections at random messages; at the end a reader that
knows nothing of the package counts what arrived. ``python -m tests.ledger`` runs the long form.
"""
