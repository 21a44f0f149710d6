"""One `sandbox run`, from Spec to Result: opens, asks the image services, compiles, hands over to an engine."""

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from sandbox import outputs, records, sources, versions
from sandbox.engine import Launch, Result
from sandbox.errors import HostError, UsageError, printable, reason, remedy, speak
from sandbox.home import Home
from sandbox.images import formats
from sandbox.materials import Say
from sandbox.plan import Plan
from sandbox.plan_types import Mode
from sandbox.preparing import Calling, Prepared, prepare
from sandbox.spec import Spec, is_watched, validate

if TYPE_CHECKING:
    from sandbox.capturing import Capture
    from sandbox.report import Reporter

_AS_IT_IS = (None, formats.Kind.SQUASHFS, formats.Kind.EROFS)


def run(
    spec: Spec,
    environ: dict[bytes, bytes],
    *,
    say: Say,
    hint: Say,
    calling: Calling = Calling(),  # noqa: B008 (frozen)
) -> Result:
    """Run the command of a spec. Raises SandboxError when it could not be started."""
    speak(spec.log_format)
    _refuse_shared(spec, calling)
    wanted = (spec.report, spec.trace, spec.status_fd, calling.account)
    if not calling.verbose and all(target is None for target in wanted):
        return _logged(spec, environ, None, calling, say=say, hint=hint)
    from sandbox.report import Reporter

    made = Reporter(spec.report, spec.trace, spec.command, calling.account, spec.status_fd)
    with contextlib.closing(made) as reporter:
        try:
            return _logged(spec, environ, reporter, calling, say=say, hint=hint)
        except BaseException as error:
            reporter.failed(error)
            raise


def _refuse_shared(spec: Spec, calling: Calling) -> None:
    """A report of this refusal would itself take the place of another file: who listens is told, and no file."""
    try:
        outputs.refuse_shared(spec, calling.cwd or b"")
    except UsageError as error:
        from sandbox.report import Reporter

        with contextlib.closing(Reporter(None, None, spec.command, calling.account, spec.status_fd)) as reporter:
            reporter.failed(error)
        raise


def _logged(
    spec: Spec, environ: dict[bytes, bytes], reporter: "Reporter | None", calling: Calling, *, say: Say, hint: Say
) -> Result:
    """The run, with its log if there is to be one: that is opened before anything else is done."""
    if spec.log is None:
        return _run(spec, environ, reporter, calling, None, say=say, hint=hint)
    from sandbox import capturing

    validate(spec)
    with contextlib.closing(capturing.Capture(capturing.Log(spec.log, spec.log_size))) as capture:
        return capture.finish(_run(spec, environ, reporter, calling, capture, say=say, hint=hint))


def _run(
    spec: Spec,
    environ: dict[bytes, bytes],
    reporter: "Reporter | None",
    calling: Calling,
    capture: "Capture | None",
    *,
    say: Say,
    hint: Say,
) -> Result:
    with contextlib.ExitStack() as stack:
        # What is made for the run has the mode it is meant to have; the command gets the caller's umask.
        umask = os.umask(0)
        try:
            prepared = prepare(spec, environ, stack, say=say, hint=hint, calling=calling)
        finally:
            os.umask(umask)
        if calling.cwd is not None:
            _enter(calling.cwd)
        plan = prepared.compiled.plan
        engine = choose_engine(spec.engine, plan.mode)
        launch = prepared.launch
        if reporter is not None:
            reporter.phase("Prepare")
            reporter.describe(plan, engine, spec.isolation, prepared.trees, prepared.home.fd)
            reporter.phase("Digest the images")
            if calling.verbose:
                from sandbox.explain import steps

                reporter.tell_steps([line.encode() + b"\n" for line in steps(plan)])
            launch = launch.replace(report=reporter)
            facts = {"mode": plan.mode.name.lower(), "engine": engine, "level": spec.isolation}
            reporter.event("ready", pid=os.getpid(), **facts)
        if spec.name is not None:
            # A dead run gives its name back at once.
            with contextlib.suppress(OSError):
                records.clean_one(prepared.home, spec.name)
        say(f"mode {plan.mode.name.lower()}, engine {engine}, {len(plan.steps)} steps")
        if engine == "native":
            run_engine = _native(spec, plan, prepared, calling, environ)
        else:
            run_engine = _python(spec, plan, prepared, reporter, say)
        if prepared.wanted is not None:
            from sandbox import attending

            result = attending.run(plan, launch, prepared.wanted.replace(umask=umask), run_engine, capture)
        elif capture is not None or (engine == "native" and prepared.changes is not None):
            from sandbox import attending

            result = attending.beside(plan, lambda: run_engine(launch), capture)
        else:
            result = run_engine(launch)
        result = _saved(spec, prepared, result)
        if engine == "python":
            _start_reaper(spec, prepared.home)
        return result


def _native(
    spec: Spec, plan: Plan, prepared: Prepared, calling: Calling, environ: dict[bytes, bytes]
) -> "Callable[[Launch], Result]":
    """What becomes the native engine. Raises SandboxError when an installed helper cannot take the plan."""
    from sandbox.engine import native

    # The program of this package is as new as the package.
    version = versions.LAST
    if plan.mode is Mode.SETUID:
        from sandbox import setuid

        beside = beside_the_plan(spec) + ["-v"] * calling.verbose
        plan, version = setuid.acceptable(plan, prepared.home.fd, beside)
    _start_reaper(spec, prepared.home)
    if calling.keeper is not None:
        calling.keeper.keep(spec, prepared, plan, version, environ)
    return lambda launch: native.run(plan, launch, version)


def beside_the_plan(spec: Spec) -> list[str]:
    """The options that a native engine is told of on its command line."""
    asked = {
        "--save": spec.saves,
        "--status-fd": spec.status_fd is not None,
        "--log-format json": spec.log_format == "json",
    }
    return [option for option, is_asked in asked.items() if is_asked]


def _python(
    spec: Spec, plan: Plan, prepared: Prepared, reporter: "Reporter | None", say: Say
) -> "Callable[[Launch], Result]":
    from sandbox.engine import python

    records.clean_stale(prepared.home, say=say)

    def run_engine(launch: Launch) -> Result:
        try:
            return python.run(plan, launch, prepared.home)
        except BaseException as error:
            # An attended engine runs in a process of its own, and nobody else tells of its failure.
            if reporter is not None and is_watched(spec):
                reporter.failed(error)
            raise

    return run_engine


def _saved(spec: Spec, prepared: Prepared, result: Result) -> Result:
    """The same result, after what is to be kept of the run was. Raises SandboxError."""
    if prepared.changes is not None:
        from sandbox import saving

        compiled = prepared.compiled
        saving.finish(spec, compiled.plan, result, prepared.home, prepared.changes, compiled.saved, prepared.materials)
    return result


def _enter(path: bytes) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        raise UsageError(f"cannot work in {printable(path)}: {reason(error)}", hint=remedy(error)) from None


def choose_engine(wanted: str, mode: Mode) -> str:
    """The engine to use. Raises HostError when the native one was asked for and is not there."""
    from sandbox.engine import native

    if mode is Mode.SETUID:
        # The installed helper is that engine, whether or not this package has a native program of its own.
        return "native"
    if wanted == "python" or native.available():
        return "python" if wanted == "python" else "native"
    if wanted == "native":
        raise HostError(
            "--engine native: the program was not built into this installation",
            hint="install cargo and reinstall, or use --engine python; see sandbox doctor",
        )
    return "python"


def _start_reaper(spec: Spec, where: Home) -> None:
    """Only what may have filled the cache pays for looking whether it is time to empty it."""
    if spec.cache:
        from sandbox.images import reaper

        reaper.maybe_start(where.fd, clean_records=records.clean_at)


def explain(spec: Spec, environ: dict[bytes, bytes], *, say: Say) -> list[str]:
    """The plan for a person, a line per step. Converts and runs nothing."""
    with contextlib.ExitStack() as stack:
        prepared = prepare(spec, environ, stack, say=say, hint=say, build=False)
        from sandbox.explain import lines

        layers = [layer for tree in prepared.trees for layer in tree.layers]
        converted = {sources.absolute(layer.path) for layer in layers if layer.format not in _AS_IT_IS}
        plan = prepared.compiled.plan
        return [*lines(plan, spec.command, converted), *_open_to_all(plan, spec)]


def _open_to_all(plan: Plan, spec: Spec) -> list[str]:
    """What an isolated command can still connect to, and write to."""
    if spec.isolation == "none":
        return []
    from sandbox import sockets

    found = (("socket", "connected", sockets.bound()), ("fifo", "written", sockets.fifos()))
    return [
        f"{kind:<8} {printable(path)} can be {done} to"
        for kind, done, paths in found
        for path in sockets.reachable(plan, paths)
    ]
