"""A process that swaps names while something else uses them."""

import contextlib
import subprocess
import sys
import time

SWAPPER = """
import ctypes, sys
libc = ctypes.CDLL(None)
one, other = (path.encode() for path in sys.argv[1:3])
while True:
    libc.renameat2(-100, one, -100, other, 2)
"""


@contextlib.contextmanager
def swapping(one, other):
    """A process that exchanges two names as fast as it can (renameat2 with RENAME_EXCHANGE)."""
    # As root, whoever launches: the interpreter of the suite may be out of the account's reach.
    process = subprocess.Popen([sys.executable, "-c", SWAPPER, str(one), str(other)])
    try:
        time.sleep(0.3)
        assert process.poll() is None
        yield
    finally:
        process.kill()
        process.wait()
