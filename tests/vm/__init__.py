"""The suite on stock kernels: `make test-vm`, or `python -m tests.vm --help` (docs/compatibility.md is made by it).

packages   what Debian's package source offers: a root made by mmdebstrap, kernels of several releases
store      what was built once and is kept below ~/.cache/sandbox-tests/vm
initrd     the first programs of a boot: modules for the disks, then the root
project    a disk with this checkout, its native programs and what the tests import
machine    one boot under qemu, with a deadline; results come back through a virtio port
guest      what runs inside: the only file here that the machine itself executes
matrix     the variants: kernel, boot options, what is run, what must work and what must fail with which line
expectations  the table's lines as tests, run inside
results    JUnit files, read
report     docs/compatibility.md, from the results
"""
