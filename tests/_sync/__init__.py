# Generated from _async/__init__.py by asyncsession_kit._tools.unasync; do not edit.
