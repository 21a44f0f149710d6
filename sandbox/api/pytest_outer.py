"""The plugin's outer half: starts a pytest in a sandbox, and makes of what it answers the reports of this one.

A test that is not trusted answers what it likes. It is read as plain data, its reports are for that very test, and no
more attributes are taken than pytest gives a report: it can lie about itself, and about nothing else.
"""

import contextlib
import json
import math
import os
import pickle
import sys
from typing import Any

import pytest

from sandbox.api import interpreter, wire
from sandbox.api.box import Sandbox
from sandbox.api.mailbox import Mailbox
from sandbox.api.options import repeatable
from sandbox.api.pytest_inner import plain
from sandbox.errors import SandboxError
from sandbox.pytest_plugin import INSIDE

_INNER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pytest_inner.py")
_ROOM = 64 << 20
_PLAIN = (type(None), bool, int, float, str)
# Options that are about the outer session: what it selects, shows, writes, and how it is spread.
_NOT_INSIDE: dict[str, Any] = {
    "keyword": "",
    "markexpr": "",
    "deselect": None,
    "maxfail": 0,
    "numprocesses": None,
    "dist": "no",
}
_NOT_INSIDE |= {
    "basetemp": None,
    "tx": [],
    "px": [],
    "maxprocesses": None,
    "usepdb": False,
    "trace": False,
    "xmlpath": None,
}
_NOT_INSIDE |= {"lf": False, "failedfirst": False, "stepwise": False, "setupplan": False, "collectonly": False}
_ATTRIBUTES = ("nodeid", "location", "keywords", "outcome", "longrepr", "when", "sections", "duration", "start", "stop")
_MORE_ATTRIBUTES = ("user_properties", "wasxfail", "$report_type")
_WHEN = ("setup", "call", "teardown")


def make(config: pytest.Config, more: dict[str, Any], *, inside: str = "") -> Sandbox:
    """A sandbox with the options of the session and `more`; `inside`: what the pytest in it is to know of this.

    Raises UsageError, of pytest's.
    """
    options: dict[str, Any] = {"isolation": "job"}
    for word in (*config.getini("sandbox_options"), *config.getoption("--sandbox-option")):
        name, equals, value = word.partition("=")
        _add(options, name.strip(), value if equals else True)
    for name, value in more.items():
        _add(options, name, value)
    if inside:
        _add(options, "env", f"{INSIDE}={inside}")
        options = interpreter.with_python(options, also=(str(config.rootpath),))
    try:
        return Sandbox(**options)
    except (SandboxError, TypeError) as error:
        raise pytest.UsageError(f"sandbox: {error}") from None


def _add(options: dict[str, Any], name: str, value: Any) -> None:
    """One more value of an option: what cannot be repeated is replaced."""
    key = {"level": "isolation"}.get(name, name).replace("-", "_")
    if isinstance(value, dict):
        value = [f"{variable}={text}" for variable, text in value.items()]
    values = list(value) if isinstance(value, list | tuple) else [value]
    if key in repeatable():
        options[key] = [*options.get(key, []), *values]
    else:
        options[key] = value


# -- the whole session -------------------------------------------------------------------------------------------


def run_session(config: pytest.Config) -> int:
    """The same pytest again, in a sandbox, on the same streams. Its exit code."""
    args = config.invocation_params.args
    argv = [sys.executable, "-P", _INNER, *map(str, args)]
    with contextlib.closing(make(config, {}, inside=json.dumps(interpreter.module_path()))) as box:
        try:
            code = box.run(argv, cwd=config.invocation_params.dir).returncode
        except SandboxError as error:
            raise pytest.UsageError(f"sandbox: {error}") from None
    return code if code >= 0 else 128 - code


# -- one test ----------------------------------------------------------------------------------------------------


def run_item(item: pytest.Item, nextitem: pytest.Item | None, marker: pytest.Mark) -> None:
    """What pytest does with a test, with the test itself elsewhere."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item, marker):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # What earlier tests of this process left set up, and the next one does not share.
    item.session._setupstate.teardown_exact(nextitem)


def _reports(item: pytest.Item, marker: pytest.Mark) -> list[pytest.TestReport]:
    try:
        answer, code = _run(item, {**dict(zip(("level",), marker.args, strict=False)), **marker.kwargs})
        reports = [_report(item, data) for data in answer]
        _check_whole(reports, code)
        return reports
    except (SandboxError, pytest.UsageError) as error:
        why = f"sandbox: {error}" if isinstance(error, SandboxError) else str(error)
    except Exception as error:  # as many ways as there are to be no report
        why = f"sandbox: the test's process sent what is no report: {type(error).__name__}"
    return [pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call")]


def _run(item: pytest.Item, options: dict[str, Any]) -> tuple[list[Any], int]:
    """What the test's process said, and how it ended."""
    with (
        contextlib.closing(Mailbox.make(_job(item), _ROOM)) as mail,
        contextlib.closing(make(item.config, options, inside="1")) as box,
    ):
        argv = [sys.executable, "-I", _INNER]
        ended = box.run(argv, stdin=mail.fd, cwd=item.config.invocation_params.dir)
        data = mail.take()
    if not data:
        raise SandboxError(f"the test's process ended with {ended.returncode} before it could report")
    answer = wire.load(data)
    if not isinstance(answer, list) or not 0 < len(answer) <= 100:
        raise SandboxError("the test's process sent what is no report")
    return answer, ended.returncode


def _check_whole(reports: list[pytest.TestReport], code: int) -> None:
    """Raises SandboxError for less or more than pytest says of one test: it would be neither passed nor failed.

    What stops a bare session (pytest.exit, an interrupt) fails the test: it is not to keep others from being run.
    """
    told = [report.when for report in reports]
    if told != ["setup", *(["call"] if reports[0].passed else []), "teardown"]:
        raise SandboxError(
            f"the test's process ended with {code} when it had reported: {', '.join(map(str, told))}",
            hint="a marked test that ends its session fails",
        )
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SandboxError(f"the test's process ended with {code} after its reports")


def _job(item: pytest.Item) -> bytes:
    config = item.config
    options = {name: value for name, value in vars(config.option).items() if _is_plain(value)}
    options.pop("file_or_dir", None)
    options |= {name: value for name, value in _NOT_INSIDE.items() if name in options}
    options["plugins"] = [*options.get("plugins", []), "no:terminal"]
    options |= {"rootdir": str(config.rootpath), "inifilename": str(config.inipath) if config.inipath else None}
    node = str(item.path) + item.nodeid[len(item.nodeid.split("::")[0]) :]
    return pickle.dumps({"path": interpreter.module_path(), "options": options, "node": node})


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, list) and all(isinstance(item, _PLAIN) for item in value))


def _report(item: pytest.Item, data: Any) -> pytest.TestReport:
    """A report of this test and of no other. Raises for what is none, in as many ways as there are."""
    # A worker of pytest-xdist dies of text that it cannot pass on, and the session with it.
    data = plain(data, "backslashreplace" if hasattr(item.config, "workerinput") else "surrogatepass")
    kept = {name: data[name] for name in (*_ATTRIBUTES, *_MORE_ATTRIBUTES) if name in data}
    if kept["$report_type"] != "TestReport" or kept["when"] not in _WHEN:
        raise SandboxError("the test's process sent what is no report")
    if kept["outcome"] not in ("passed", "failed", "skipped"):
        raise SandboxError("the test's process sent what is no report")
    if kept["outcome"] == "skipped" and "wasxfail" not in kept:
        path, line, reason = kept["longrepr"]
        kept["longrepr"] = (str(path), int(line), str(reason))
    kept |= {"nodeid": item.nodeid, "location": item.location, "keywords": dict.fromkeys(item.keywords, 1)}
    if "wasxfail" in kept:
        kept["wasxfail"] = str(kept["wasxfail"])
    for name in ("duration", "start", "stop"):
        kept[name] = float(kept[name])
        if not 0 <= kept[name] < math.inf:
            raise SandboxError("the test's process sent what is no report")
    kept["sections"] = [(str(title), str(text)) for title, text in kept["sections"]]
    kept["user_properties"] = [(str(name), value) for name, value in kept["user_properties"]]
    report = item.config.hook.pytest_report_from_serializable(config=item.config, data=kept)
    assert isinstance(report, pytest.TestReport)
    # What every reader of reports does: whatever cannot be shown is found here, and not in the middle of a summary.
    str(report.longreprtext)
    str(getattr(report.longrepr, "reprcrash", ""))
    return report
