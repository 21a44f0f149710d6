"""What no handler of a signal interrupts: Python calls those in the main thread, between any two of its steps.

What one raises could come after a process was forked and before anybody knows its number.
"""

import _thread
import threading
from collections.abc import Callable

# How long a thread that has ended may go unnoticed where somebody else took its news. Seconds.
_LOOK = 0.01


def call(work: Callable[[], None]) -> None:
    """Do it, and raise what it raises. What a handler raises meanwhile is raised when it is done, or was never begun.

    In the main thread it is done by another one, which has the same signal mask and whatever else a process inherits.
    """
    if threading.current_thread() is threading.main_thread():
        _Errand(work).run()
    else:
        work()


class _Errand:
    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        # Taken by whoever comes first: the thread that begins, or who gives up before it has.
        self._turn, self._news = _thread.allocate_lock(), _thread.allocate_lock()
        self._news.acquire()
        self._is_done = False
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            try:
                _thread.start_new_thread(self._do, ())
            except RuntimeError:  # as many as there may be, or the interpreter ends
                self._do()
            self._news.acquire()
        except BaseException:
            if not self._turn.acquire(blocking=False):
                self._wait()
            raise
        if self._error is not None:
            raise self._error

    def _do(self) -> None:
        if not self._turn.acquire(blocking=False):
            return
        try:
            self._work()
        except BaseException as error:
            self._error = error
        finally:
            self._is_done = True
            self._news.release()

    def _wait(self) -> None:
        while not self._is_done:
            try:
                self._news.acquire(timeout=_LOOK)
            except BaseException:  # noqa: S112 (the first that was raised is raised)
                continue
