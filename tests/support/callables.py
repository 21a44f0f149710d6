"""What tests of SandboxExecutor call in sandboxes. Some of it is an attacker's."""

import json
import os
import pickle
import subprocess
import sys
import time


def echo(value):
    return value


def nap(seconds):
    time.sleep(seconds)


def leave():
    sys.exit(3)


def write(path):
    with open(path, "w") as file:
        file.write("x")


class Runs:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return subprocess.call, (["touch", self.path],)


def give(path):
    return Runs(path)


def mailbox():
    """The descriptor that answers go to, as an attacker finds it."""
    return next(
        fd
        for fd in range(3, 64)
        if os.path.exists(f"/proc/self/fd/{fd}") and "sandbox-mail" in os.readlink(f"/proc/self/fd/{fd}")
    )


def send(data, length=None):
    """Answer in place of the code that would have, and be gone before it can."""
    fd = mailbox()
    os.pwrite(fd, data, 16)
    os.pwrite(fd, (len(data) if length is None else length).to_bytes(8, "little"), 0)
    os._exit(0)


def send_pickle(path, *, as_pickle):
    data = pickle.dumps(Runs(path))
    if as_pickle:
        import base64

        data = json.dumps(["tuple", ["pickle", ["bytes", base64.b64encode(data).decode()]]]).encode()
    send(data)


def flood():
    """Make the file that is handed over larger than it is."""
    fd = mailbox()
    end = os.fstat(fd).st_size
    for attempt in (lambda: os.ftruncate(fd, end + 1), lambda: os.pwrite(fd, b"x", end), lambda: os.ftruncate(fd, 0)):
        try:
            attempt()
        except PermissionError:
            continue
        return "grew"
    return "sealed"
