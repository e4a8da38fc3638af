"""Lets ``python -m asyncsession_kit`` stand for the command ``asyncsession-kit``."""

from .cli import main

if __name__ == "__main__":
    main()
