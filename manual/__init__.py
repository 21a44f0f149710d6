"""What is made from the code and the docs: man pages, completion scripts, the reference. `make man`, `make docs`."""
