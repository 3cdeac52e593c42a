"""The version, alone in a file that imports nothing: the installer and `functrain --version` read it."""

__version__ = "0.1.0"
