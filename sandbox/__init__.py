"""sandbox: run a command with private, throw-away filesystems."""

__version__ = "0.1.0"
