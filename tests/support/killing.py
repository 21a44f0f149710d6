"""Kill a process at its N-th system call, before the call is done: seccomp user notification, seccomp_unotify(2)."""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

import prctl

_SECCOMP = {"x86_64": 317, "aarch64": 277}
_PIDFD_GETFD = 438
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_RETURN, _USER_NOTIF = 0x06, 0x7FC00000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1


class Ending(NamedTuple):
    """Whether it was killed, and the numbers of the system calls it asked for; the last one was not done if so."""

    killed: bool
    calls: tuple[int, ...]


def run(act: Callable[[], object], *, kill_at: int, before: Callable[[], None] = lambda: None) -> Ending:
    """`act` in a forked child that dies at its `kill_at`-th system call, counted from 1 after `before`.

    What it starts may go on, and is not counted.

    Raises AssertionError when it fails by itself.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            before()
            _listen(writer)
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(writer)
    listener = _take_listener(child, reader)
    try:
        ending = _count(child, listener, kill_at)
    finally:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        os.close(listener)
    assert ending.killed or status == 0, "the operation failed"
    return ending


def _listen(writer: int) -> None:
    """From the next system call on, somebody else decides. The listener gets the lowest free descriptor."""
    program = struct.pack("=HBBI", _RETURN, 0, 0, _USER_NOTIF)
    code = ctypes.create_string_buffer(program)
    filter_ = ctypes.create_string_buffer(struct.pack("@HP", 1, ctypes.addressof(code)))
    libc = ctypes.CDLL(None)
    prctl.set_no_new_privs(1)
    free = os.dup(writer)
    os.close(free)
    os.write(writer, b"%d\n" % free)
    libc.syscall(_SECCOMP[platform.machine()], _SET_MODE_FILTER, _NEW_LISTENER, filter_)


def _take_listener(child: int, reader: int) -> int:
    with open(reader, "rb") as file:
        number = int(file.readline() or b"-1")
    assert number >= 0, "the child did not get as far"
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(child)
    try:
        for _ in range(10_000):
            fd = libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
            if fd >= 0:
                return int(fd)
            time.sleep(0.0005)
    finally:
        os.close(pidfd)
    os.kill(child, signal.SIGKILL)
    raise OSError(ctypes.get_errno(), "cannot take the listener")


def _count(child: int, listener: int, kill_at: int) -> Ending:
    calls: list[int] = []
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        if poll.poll(20_000) != [(listener, select.POLLIN)]:
            return Ending(False, tuple(calls))
        notice = bytearray(80)
        try:
            fcntl.ioctl(listener, _RECEIVE, notice)
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue
            raise
        identity, thread, _, number = struct.unpack_from("=QIIi", notice)
        if thread == child:
            calls.append(number)
            if len(calls) == kill_at:
                return Ending(True, tuple(calls))
        with contextlib.suppress(FileNotFoundError):  # whoever asked was killed meanwhile
            fcntl.ioctl(listener, _SEND, bytearray(struct.pack("=QqiI", identity, 0, 0, _CONTINUE)))
