# Generated from _async/__init__.py by asyncsession_kit._tools.unasync; do not edit.
"""The source of both worlds: the twin of each module is generated beside it."""
