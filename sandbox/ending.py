"""Ending a run, for `sandbox kill` and the Python API: it is asked first, then killed from below. Its supervisor is
spared, because it cleans up.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable

# How often what is left is killed anew: it may have started something. Seconds.
LOOK = 0.05


def ask(supervisor: int) -> None:
    """SIGTERM through this pidfd; the supervisor passes it on. Raises ProcessLookupError and PermissionError."""
    signal.pidfd_send_signal(supervisor, signal.SIGTERM)
    # A stopped one passes nothing on. One that has ended of the first signal by now was asked all the same.
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(supervisor, signal.SIGCONT)


def kill_below(pid: int) -> None:
    """SIGKILL to all that the supervisor has below it. `pid` must not have been waited for, or be known to live."""
    from sandbox.processes import below

    with contextlib.ExitStack() as stack:
        opened = {}
        for victim in below(pid):
            # Gone, or more than there may be descriptors: the next look finds what is left.
            with contextlib.suppress(OSError):
                opened[victim] = os.pidfd_open(victim)
                stack.callback(os.close, opened[victim])
        # Opened first: who is below now is the one whom the descriptor means.
        for victim in below(pid):
            if victim in opened:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    signal.pidfd_send_signal(opened[victim], signal.SIGKILL)


def end(
    supervisor: int, kill: Callable[[], None], ended: Callable[[float], bool], *, grace: float, patience: float | None
) -> str:
    """Ask the supervisor of this pidfd, `kill` from `grace` seconds later on. How it `ended`: "ended" or "killed".

    `ended` waits so many seconds for it. Nothing, when it still runs `patience` seconds after the grace (None: for
    ever). Raises ProcessLookupError and PermissionError when it could not be asked.
    """
    ask(supervisor)
    if ended(grace):
        return "ended"
    deadline = None if patience is None else time.monotonic() + patience
    while deadline is None or time.monotonic() < deadline:
        kill()
        if ended(LOOK):
            return "killed"
    return ""
