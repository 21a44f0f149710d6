"""What an engine tells the attendant, the process of the launcher that stays beside a run (docs/plan.md, section 15).

Both ends are a SOCK_SEQPACKET pair. The child hands over descriptors; the supervisor says when all is over, and waits.
"""

import array
import contextlib
import os
import socket

from sandbox.engine import syscalls as sys

ROOT, LISTENER, TERMINAL, ENDED = b"R", b"L", b"T", b"E"
LONGEST_ANSWER = 1 << 16
_TREE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def hand_over(attend: int, kind: bytes, fds: list[int]) -> None:
    """Raises OSError; whoever does not read holds up nobody but themselves."""
    with _socket(attend) as end:
        end.sendmsg([kind], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def expose(attend: int) -> None:
    """The root directory, the working directory, and the mount namespace: without that the tree falls apart with its
    last process.
    """
    with contextlib.ExitStack() as stack:
        opened = [os.open("/", _TREE), os.open(".", _TREE), os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)]
        for fd in opened:
            stack.callback(os.close, fd)
        hand_over(attend, ROOT, opened)


def take_terminal(attend: int) -> None:
    """A new terminal of this devpts becomes descriptors 0 to 2 and the session's own; the attendant sets its size."""
    main = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        own = sys.open_terminal(main)
        hand_over(attend, TERMINAL, [main])
        with _socket(attend) as end:
            end.recv(1)
        sys.take_terminal(own)
        for fd in range(3):
            os.dup2(own, fd)
        os.close(own)
    finally:
        os.close(main)


def wait(attend: int, *, started: bool) -> bytes:
    """Tell that nothing of the job is left, and wait until the attendant is done. What it has for the report."""
    with _socket(attend) as end:
        try:
            end.send(ENDED + bytes([started]))
            return end.recv(LONGEST_ANSWER)
        except OSError:
            return b""


def _socket(fd: int) -> socket.socket:
    """A copy, which is closed with it."""
    return socket.socket(fileno=os.dup(fd))
