"""User namespaces with maps of ranges, made before the fork: what writes such maps has to stay outside of them."""

import contextlib
import os
from collections.abc import Callable, Iterator

import prctl

from sandbox import fsops
from sandbox.engine import syscalls as sys
from sandbox.errors import StepError, printable, reason
from sandbox.host import userns_remedy
from sandbox.level_steps import Identity, UserNamespace
from sandbox.plan import Plan

_ENVIRONMENT = {b"PATH": b"/usr/sbin:/usr/bin:/sbin:/bin", b"LC_ALL": b"C.UTF-8"}
_LONGEST = 4096


def lines(words: tuple[int, ...]) -> bytes:
    """Ranges as the kernel reads them: user_namespaces(7)."""
    return b"".join(b"%d %d %d\n" % words[at : at + 3] for at in range(0, len(words), 3))


@contextlib.contextmanager
def namespaces(plan: Plan) -> Iterator[tuple[int, ...]]:
    """Those of all UserNamespace steps, each in the one before, open in their order. Raises StepError."""
    owner = next(((step.uid, step.gid) for step in plan.steps if isinstance(step, Identity)), None)
    with contextlib.ExitStack() as stack:
        made: list[int] = []
        for step in plan.steps:
            if isinstance(step, UserNamespace):
                fd = _nested(step, owner, made[-1]) if made else _namespace(step, owner)
                made.append(stack.enter_context(fsops.closing(fd)))
        yield tuple(made)


def _namespace(step: UserNamespace, owner: tuple[int, int] | None) -> int:
    def enter() -> None:
        if owner is not None:
            os.setgroups([])
            os.setresgid(owner[1], owner[1], owner[1])
            os.setresuid(owner[0], owner[0], owner[0])
        sys.unshare(sys.CLONE_NEWUSER)
        prctl.set_dumpable(1)

    return _of_process(enter, lambda pid: _write_maps(step, pid))


def _nested(step: UserNamespace, owner: tuple[int, int] | None, outer: int) -> int:
    """Its maps are written by a process of the outer one, which has every right there."""

    def enter() -> None:
        sys.setns(outer, sys.CLONE_NEWUSER)
        with fsops.closing(_namespace(step, owner)) as inner:
            sys.setns(inner, sys.CLONE_NEWUSER)

    return _of_process(enter, lambda _: None)


def _of_process(enter: Callable[[], None], then: Callable[[int], None]) -> int:
    """The user namespace that a process has entered, which waits until `then` is done with it."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    ready, tell = os.pipe2(os.O_CLOEXEC)
    if (pid := os.fork()) == 0:
        try:
            os.close(writer)
            os.close(ready)
            os.write(tell, _done(enter))
            os.read(reader, 1)
        finally:
            os._exit(0)
    try:
        os.close(tell)
        if (said := os.read(ready, _LONGEST)) != b"ok":
            message, _, hint = said.decode("utf-8", "replace").partition("\0")
            raise StepError(f"cannot make a user namespace: {message or 'its process has died'}", hint=hint)
        then(pid)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StepError(f"cannot map the ids of a user namespace: {reason(error)}") from None
    finally:
        for fd in (reader, writer, ready):
            os.close(fd)
        os.waitpid(pid, 0)


def _done(enter: Callable[[], None]) -> bytes:
    try:
        enter()
    except OSError as error:
        return f"{reason(error)}\0{userns_remedy(error.errno or 0)}".encode()
    except StepError as error:
        return f"{error.message}\0{error.hint}".encode()
    return b"ok"


def _write_maps(step: UserNamespace, pid: int) -> None:
    for index, (name, words) in enumerate((("uid_map", step.uids), ("gid_map", step.gids))):
        if step.programs:
            _run(step.programs[index], pid, words)
        else:
            write_map(pid, name, lines(words))


def write_map(pid: int, name: str, text: bytes) -> None:
    """`uid_map` or `gid_map` of the user namespace of a process."""
    with fsops.closing(os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)) as fd:
        os.write(fd, text)


def _run(program: bytes, pid: int, words: tuple[int, ...]) -> None:
    import subprocess

    argv = [program, b"%d" % pid, *(b"%d" % word for word in words)]
    done = subprocess.run(argv, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        said = printable((done.stderr or done.stdout).strip()) or f"exit code {done.returncode}"
        raise StepError(
            f"--as-root: {printable(program)} does not give this user its subordinate ids: {said}",
            hint="mend this user's lines in /etc/subuid and /etc/subgid, or remove them: then there is one id inside",
        )
