"""Files that the user names for sandbox itself to read: a FIFO must not have it wait for ever, nor a device fill it."""

import os
import stat

from sandbox import fsops
from sandbox.errors import UsageError, printable, reason

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# What somebody opened for us.
_PASSED = (b"/dev/fd/", b"/dev/stdin", b"/proc/self/fd/")


def read(path: str | bytes, most: int, *, option: str = "", hint: str = "") -> bytes:
    """All of it. Raises UsageError, which names the option, for more than `most` bytes as well.

    A descriptor that somebody passed on is waited for, as in `--env-file <(COMMAND)`; a FIFO by its name, which may
    have no writer, is refused.
    """
    what = f"{option}: " if option else ""
    shown = printable(path)
    try:
        with fsops.closing(os.open(path, _FLAGS)) as fd:
            if stat.S_ISFIFO(os.fstat(fd).st_mode) and not os.fsencode(path).startswith(_PASSED):
                raise UsageError(f"{what}{shown} is a FIFO", hint="name a file, or <(COMMAND) in a shell")
            os.set_blocking(fd, True)
            with open(fd, "rb", closefd=False) as file:
                data = file.read(most + 1)
    except OSError as error:
        raise UsageError(f"{what}cannot read {shown}: {reason(error)}", hint=hint) from None
    except ValueError:
        raise UsageError(f"{what}{shown} holds a NUL byte", hint=hint) from None
    if len(data) > most:
        raise UsageError(f"{what}{shown} is longer than {most >> 10:,} KiB", hint=hint or "name another file")
    return data
