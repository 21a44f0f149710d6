"""The plugin's inner half, in a sandbox: `pytest_inner.py ARGUMENT ...`, or one test from a mailbox as input."""

import json
import os
import pickle
import sys
from typing import Any

INSIDE = "SANDBOX_PYTEST_INSIDE"


def session() -> int:
    """A whole session, as it was started outside."""
    sys.path[:] = json.loads(os.environ[INSIDE])
    sys.argv[0] = "pytest"
    import pytest

    return int(pytest.main())


class _Reports:
    """Collects what pytest says of the test."""

    def __init__(self, config: Any) -> None:
        self.config, self.data = config, list[Any]()

    def pytest_sessionstart(self) -> None:
        # What they write about this one test is the outer session's to write about all.
        for name in ("lfplugin", "nfplugin"):
            if self.config.pluginmanager.has_plugin(name):
                self.config.pluginmanager.unregister(name=name)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.data.append(self.config.hook.pytest_report_to_serializable(config=self.config, report=report))


def one() -> None:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from sandbox.api import wire
    from sandbox.api.mailbox import Mailbox

    mail = Mailbox(os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    job = pickle.loads(mail.job())  # noqa: S301 (from outside, where this sandbox was made)
    sys.path[:] = job["path"]
    sys.argv = ["pytest"]
    # It would be thrown away with the sandbox, which says what it throws away.
    sys.dont_write_bytecode = True
    # What pytest-xdist uses for its workers.
    from _pytest.config import Config

    config = Config.fromdictargs(job["options"], [job["node"]])
    reports = _Reports(config)
    config.pluginmanager.register(reports)
    code = config.hook.pytest_cmdline_main(config=config)
    if reports.data:
        mail.answer(wire.dump(plain(reports.data)))
    sys.exit(int(code))


def plain(value: Any, surrogates: str = "surrogatepass") -> Any:
    """The data of reports, where everything that is no data is shown as text; what becomes of text that is no UTF-8."""
    if isinstance(value, dict):
        return {plain(key, surrogates): plain(item, surrogates) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (tuple if isinstance(value, tuple) else list)(plain(item, surrogates) for item in value)
    if type(value) in (int, float, bool, type(None)):
        return value
    return str(value).encode("utf-8", surrogates).decode("utf-8", surrogates)


if __name__ == "__main__":
    if os.environ[INSIDE] == "1":
        one()
    else:
        sys.exit(session())
