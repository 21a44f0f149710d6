"""Why a run failed: one line, JUnit's XML, Markdown. All of it from the report (docs/report.md)."""

import signal
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

from sandbox.ci.running import Ended
from sandbox.errors import printable
from sandbox.spec import Spec

if TYPE_CHECKING:
    from sandbox.limits import Limits


def failure(ended: Ended, spec: Spec) -> str:
    """What there is to fix, naming the option whose limit it was; empty when the command succeeded."""
    if ended.returncode == 0:
        return ""
    report, limits = ended.report, spec.limits
    cause = report.get("cause")
    if cause is None:
        return f"the sandbox was killed before it could tell of the command (exit code {ended.exit_code})"
    if cause == "launcher":
        return str(report["error"])
    if (lost := [item["error"] for item in report.get("kept") or () if item["error"]]) and not report["exit_code"]:
        return "; ".join(lost)
    how = _how(report)
    if cause == "timeout":
        return f"its time was up ({_option(limits, 'timeout')})"
    if cause == "oom":
        return f"its memory was used up ({_option(limits, 'memory')}; {report['oom_kills']} killed): {how}"
    if cause == "limit":
        option = _option(limits, str(report["limit"]).replace("-", "_"))
        refused = f"; {report['forks_refused']} new processes refused" if report["limit"] == "pids" else ""
        return f"a limit was reached ({option}{refused}): {how}"
    return how


def _how(report: Any) -> str:
    if (number := report["signal"]) is not None:
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            return f"killed by signal {number}"
    return f"exit code {report['exit_code']}"


def _option(limits: "Limits | None", name: str) -> str:
    value = getattr(limits, name, None)
    shown = "" if value is None else f" {value:g}" if isinstance(value, float) else f" {value}"
    return f"--{name.replace('_', '-')}{shown}"


def kept(ended: Ended) -> list[str]:
    """A line for each artefact that was kept."""
    items = ended.report.get("kept") or ()
    return [
        f"kept {item['source']} as {item['target']}: {item['files']} files, {item['size']} bytes"
        for item in items
        if not item["error"]
    ]


def junit(title: str, ended: Ended, why: str) -> bytes:
    """A suite of one case: `failure` when the command failed, `error` when it could not be run."""
    report = ended.report
    seconds = f"{report.get('wall_seconds') or 0:.3f}"
    bad = "" if not why else "failure" if ended.was_launched else "error"
    name = _quoted(title)
    counts = f'tests="1" failures="{int(bad == "failure")}" errors="{int(bad == "error")}" time="{seconds}"'
    facts = {key: report.get(key) for key in ("mode", "engine", "level", "cause", "limit", "peak_memory_bytes")}
    properties = "".join(
        f"<property name={_quoted(key)} value={_quoted(str(value))}/>"
        for key, value in facts.items()
        if value is not None
    )
    command = escape(printable(" ".join(report.get("command", ()))))
    kind = report.get("limit") or report.get("cause") or "killed"
    told = f"<{bad} type={_quoted(str(kind))} message={_quoted(why)}>{command}</{bad}>" if bad else ""
    text = (
        f'<?xml version="1.0" encoding="utf-8"?>\n<testsuites {counts}>'
        f'<testsuite name="sandbox" timestamp={_quoted(str(report.get("started", "")))} {counts}>'
        f"<properties>{properties}</properties>"
        f'<testcase name={name} classname="sandbox" time="{seconds}">{told}</testcase></testsuite></testsuites>\n'
    )
    return text.encode("utf-8", "backslashreplace")


def _quoted(text: str) -> str:
    # What is printable has no character that XML forbids.
    return quoteattr(printable(text))


def markdown(title: str, ended: Ended, why: str) -> bytes:
    """For the summary of a job: a line, and what was used."""
    report = ended.report
    facts = [f"{report[key]:.1f} s {text}" for key, text in _TIMES.items() if report.get(key) is not None]
    if report.get("peak_memory_bytes") is not None:
        facts.append(f"{report['peak_memory_bytes'] >> 20} MiB of memory")
    line = f"- {'FAILED' if why else 'passed'}: {_code(title)}{': ' + _code(why) if why else ''} ({', '.join(facts)})\n"
    return line.encode("utf-8", "backslashreplace")


_TIMES = {"wall_seconds": "in all", "user_seconds": "of processor time"}


def _code(text: str) -> str:
    """Words of others are shown as they are: nothing in them is Markdown or HTML."""
    return f"`{printable(text).replace('`', chr(39))}`"
