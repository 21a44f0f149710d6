"""A Python that launches for another: `python -I child.py FD`, FD a file with sys.path and what is to be done.

The order comes from the process that starts this one, and from nobody else.
"""

import os
import pickle
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.preparing import Calling
    from sandbox.spec import Spec


def main() -> None:
    with open(int(sys.argv[1]), "rb") as file:
        path, order = pickle.load(file)  # noqa: S301 (the caller's own)
    sys.path[:] = path
    from sandbox import dispositions
    from sandbox.errors import SandboxError, complain

    dispositions.take()
    try:
        what, subject, calling = pickle.loads(order)  # noqa: S301 (the caller's own)
        if what == "reap":
            _reap()
        else:
            _run(subject, calling)
    except SandboxError as error:
        complain(error)
        os._exit(error.exit_code)


def _run(spec: "Spec", calling: "Calling") -> None:
    from sandbox import launch
    from sandbox.engine.supervisor import end_like
    from sandbox.errors import TIMED_OUT, complain

    assert calling.account is not None
    os.set_inheritable(calling.account, False)
    result = launch.run(spec, dict(os.environb), say=_silent, hint=_silent, calling=calling)
    if result.timed_out:
        complain(TIMED_OUT)
    end_like(result)


def _reap() -> None:
    from sandbox import home, records
    from sandbox.images import reaper

    with home.open_home(dict(os.environb), say=_silent) as where:
        reaper.maybe_start(where.fd, clean_records=records.clean_at)


def _silent(_: str) -> None:
    pass


if __name__ == "__main__":
    main()
