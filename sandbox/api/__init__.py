"""The Python API (docs/python.md): what `from sandbox import ...` gives is made here, and loaded when asked for."""
