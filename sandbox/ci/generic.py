"""`sandbox ci run`: a run with marks in the log, and with summaries."""

import contextlib
import os
import shlex
from collections.abc import Mapping
from typing import Any

from sandbox import fsops, outputs
from sandbox.ci import marks, running, summary
from sandbox.ci.running import Ended
from sandbox.errors import EXIT_LAUNCHER_FAILED, SandboxError, complain, reason, warn
from sandbox.report import open_target, write_target
from sandbox.spec import Spec

_READABLE = 0o644
# Of a command that is a whole script, in characters; the report has all of it.
_LONGEST_TITLE = 200


def run(spec: Spec, environ: dict[bytes, bytes], *, kind: str, title: str | None, junit: bytes | None) -> Ended:
    """Run it, tell of it, and give how it ended. Raises SandboxError when there is no place for a summary."""
    outputs.refuse_shared(spec, junit=junit)
    kind = marks.choose(kind, environ)
    words = spec.command if spec.run is None else (spec.run, *spec.command)
    title = title or _brief(shlex.join(map(os.fsdecode, words)))
    with contextlib.ExitStack() as stack:
        target = None
        if junit is not None:
            target = open_target(junit, "--junit")
            stack.enter_context(fsops.closing(target.fd))
        log = marks.Marks(kind, title, _write)
        log.begin()
        ended, why = None, "the sandbox could not be started"
        try:
            grace = running.GRACE if spec.limits is None else spec.limits.kill_after
            ended = running.run(spec, environ, relay=log.relay if log.must_relay else None, grace=grace)
            why = summary.failure(ended, spec)
        finally:
            log.end(why)
        for line in summary.kept(ended):
            log.note(line)
        if target is not None:
            try:
                write_target(target, summary.junit(title, ended, why), _READABLE)
            except SandboxError as error:
                # A job that may write there can see to that: it is told apart from one that was not launched.
                complain(error)
                ended = ended.replace(returncode=EXIT_LAUNCHER_FAILED)
        if kind == "github":
            _add_to_summary(environ, summary.markdown(title, ended, why))
        return ended


def _brief(text: str) -> str:
    return text if len(text) <= _LONGEST_TITLE else f"{text[: _LONGEST_TITLE - 3]}..."


def _add_to_summary(environ: Mapping[bytes, bytes], line: bytes) -> None:
    """The page of a job's summary on GitHub: a file that its runner names."""
    path = environ.get(b"GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with fsops.closing(os.open(os.path.dirname(path) or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as parent:
            fsops.append(parent, os.path.basename(path), line)
    except OSError as error:
        warn(f"cannot add to $GITHUB_STEP_SUMMARY: {reason(error)}")


def _write(data: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]
