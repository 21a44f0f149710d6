"""Inside a sandbox: calls what it is sent and answers what comes of it. `python -I callee.py`, a mailbox as input."""

import os
import pickle
import sys
import traceback
from typing import Any


def main() -> None:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from sandbox.api.mailbox import Mailbox

    box = Mailbox(os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    job = pickle.loads(box.job())  # noqa: S301 (from outside, where this sandbox was made)
    sys.path[:] = job["path"]
    box.answer(_answer(job))


def _answer(job: dict[str, Any]) -> bytes:
    from sandbox.api import wire

    try:
        value = _call(job)
    except Exception as error:
        return _raised(error)
    try:
        if job["results"] == "pickle":
            return wire.dump(("pickle", pickle.dumps(value)))
        answer = wire.dump(("value", value))
    except Exception as error:
        return wire.dump(("refused", getattr(error, "message", str(error)), getattr(error, "hint", "")))
    if len(answer) > job["room"]:
        return wire.dump(("refused", f"the result is larger than {job['room']} bytes", "max_result= allows more"))
    return answer


def _call(job: dict[str, Any]) -> Any:
    if job["main"]:
        from multiprocessing import spawn

        # What the caller's main program defines is found as multiprocessing finds it.
        spawn.prepare(job["main"])
    function, args, named = pickle.loads(job["call"])  # noqa: S301 (as above)
    return function(*args, **named)


def _raised(error: Exception) -> bytes:
    from sandbox.api import wire

    text = "".join(traceback.format_exception(error))
    kind = type(error).__name__ if type(error).__module__ == "builtins" else ""
    said = f"{type(error).__name__}: {error}"
    try:
        return wire.dump(("raised", kind, list(error.args), said, text))
    except wire.CallError:
        return wire.dump(("raised", "", [], said, text))


if __name__ == "__main__":
    main()
