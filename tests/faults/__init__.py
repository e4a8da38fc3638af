"""The safety case: every fault, at every moment, on every driver, and what must hold afterwards.

A *cell* is one fault at one moment on one driver. Whatever happens in it, it ends with the same
invariants (``invariants.py``), and the textbook's idiom goes through the same cells, so that the
difference is a figure. ``python -m tests.faults`` runs the long form, ``pytest tests/faults`` a
short one that also switches off each guard and expects its cell to fail.
"""
