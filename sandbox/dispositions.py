"""SIGCHLD ignored: many a daemon hands that down, and the kernel then reaps children itself, and tells nobody how they
ended (wait(2)). A process of ours that waits takes the default for itself; the command gets what was handed down.
"""

import signal

_ignored = False


def take() -> None:
    """For a whole process of ours, at its very start; never in one that imports us."""
    global _ignored  # noqa: PLW0603 (a process has one disposition of a signal)
    if is_ignored():
        _ignored = True
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def give_back() -> None:
    """For what is executed next: whoever does this waits for no child any more."""
    if _ignored:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def is_ignored() -> bool:
    return signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
