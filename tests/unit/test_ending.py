"""Ending a process that ends at the first word."""

import os
import select
import signal
import subprocess

import pytest

from sandbox import ending


@pytest.fixture
def sleeper():
    with subprocess.Popen(["sleep", "100"]) as process:
        yield process
        process.kill()


def test_who_ends_of_the_first_signal_was_ended_by_it(sleeper, monkeypatch):
    """It may be gone, and waited for, before the second signal is sent: that one is not what counts."""
    send = signal.pidfd_send_signal

    def send_and_wait(fd, number):
        send(fd, number)
        if number == signal.SIGTERM:
            assert sleeper.wait(20) == -signal.SIGTERM

    monkeypatch.setattr(ending.signal, "pidfd_send_signal", send_and_wait)
    fd = os.pidfd_open(sleeper.pid)
    try:

        def ended(seconds):
            return bool(select.select([fd], [], [], seconds)[0])

        assert ending.end(fd, sleeper.kill, ended, grace=20, patience=20) == "ended"
        with pytest.raises(ProcessLookupError):
            ending.end(fd, sleeper.kill, ended, grace=20, patience=20)
    finally:
        os.close(fd)
