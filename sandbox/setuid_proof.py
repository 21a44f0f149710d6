"""The proof that an installed helper works: a sandbox run by an ordinary user who is in the group."""

import contextlib
import os
import signal
import zipfile
from io import BytesIO
from typing import NoReturn

# What the child needs is loaded before it gives its rights away: it may not be able to read this package then.
from sandbox import codec, fsops, home, launch, policy, setuid  # noqa: F401
from sandbox.engine import native  # noqa: F401
from sandbox.errors import HostError, SandboxError, reason
from sandbox.images import convert, formats
from sandbox.journal import Journal, Say
from sandbox.spec import Spec, Tree, TreeKind

# Nobody's: the id that stands for no user at all, so what runs as it has no rights but the group's.
_UID = 65534
_SECONDS = 120
_IMAGE = b"proof.sfs"
_WORD = b"a file in an image of the user's\n"
_SCRIPT = """\
id -u && cat /proc/self/uid_map && grep -E '^(NoNewPrivs|CapPrm|CapEff):' /proc/self/status && test -d "$SANDBOX_TMPDIR"
"""
_READ_IMAGE = 'cat "$SANDBOX_STATIC/proof/f"\n'


def prove(log: Journal, gid: int, *, images: str, say: Say) -> None:
    """Run a sandbox with nothing in it, then one with an image, if the policy's `images` lets a user's be mounted.

    Raises SandboxError with what did not hold.
    """
    path = f"/var/tmp/sandbox-proof-{os.urandom(8).hex()}"  # noqa: S108  (made anew, never taken as it is)
    entry = log.note("temporary", path=path)
    with contextlib.ExitStack() as stack:
        stack.callback(log.forget, entry)
        stack.callback(remove_temporary, path)
        with _parent(path) as parent:
            fd = stack.enter_context(fsops.closing(fsops.make_new_dir(parent, _name(path))))
        # What the child makes in it is the user's, and so is what it finds there.
        os.fchown(fd, _UID, _UID)
        _check_plain(_run_as_user(path, gid, Spec(command=(b"sh", b"-c", _SCRIPT.encode()), mode="setuid")))
        say("proved it: an ordinary user's sandbox has its own uid, no user namespace, no capabilities, no_new_privs")
        if images == "trusted":
            return
        if missing := policy.missing_programs():
            say(f"not tried with an image: there is no {' and no '.join(missing)} (see sandbox doctor)")
            return
        _make_image(fd)
        tree = Tree(TreeKind.STATIC, b"proof:%s/%s" % (os.fsencode(path), _IMAGE))
        spec = Spec(command=(b"sh", b"-c", _READ_IMAGE.encode()), mode="setuid", trees=(tree,))
        if _run_as_user(path, gid, spec) != _WORD:
            raise HostError("the image shows something else than what is in it")
        say("proved it: an image of the user's is mounted")


def remove_temporary(path: str) -> None:
    """A directory that `prove` made, by its name."""
    with _parent(path) as parent:
        fsops.remove_tree(parent, _name(path), keep=lambda status: status.st_uid not in (0, _UID))


def _parent(path: str) -> contextlib.AbstractContextManager[int]:
    return fsops.closing(os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def _name(path: str) -> bytes:
    return os.fsencode(os.path.basename(path))


def _check_plain(output: bytes) -> None:
    uid, _, rest = output.decode(errors="replace").partition("\n")
    if uid != str(_UID):
        raise HostError(f"the command's uid is {uid!r}, not {_UID}")
    with open("/proc/self/uid_map") as file:
        if not rest.startswith(file.read()):
            raise HostError("the command is in a user namespace of its own")
    fields = dict(line.split(":\t", 1) for line in rest.splitlines() if ":\t" in line)
    if fields.get("NoNewPrivs") != "1":
        raise HostError("the command runs without no_new_privs")
    if any(int(fields.get(name, "1"), 16) for name in ("CapPrm", "CapEff")):
        raise HostError("the command has capabilities")


def _make_image(directory: int) -> None:
    """A squashfs that belongs to the user, so that the policy for users' images applies to it."""
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("f", _WORD)
    source = os.memfd_create("sandbox-proof")
    with fsops.closing(source):
        os.write(source, archive.getvalue())
        image = convert.image_in_memory(
            source, formats.Kind.ZIP, label="the proof's archive", max_unpacked=1 << 20, uid=_UID, gid=_UID
        )
    with fsops.closing(image), fsops.closing(fsops.new_file(directory, _IMAGE)) as out:
        fsops.copy_file(image, out)
        os.fchown(out, _UID, _UID)


def _run_as_user(directory: str, gid: int, spec: Spec) -> bytes:
    """What the command of the spec writes. Raises HostError with its last words when it fails."""
    reader, writer = os.pipe()
    error_reader, error_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_user_and_launch(directory, gid, spec, writer, error_writer)
    os.close(writer)
    os.close(error_writer)
    with open(reader, "rb") as out, open(error_reader, "rb") as err:
        # Both are smaller than a pipe holds, or the alarm ends it.
        output, complaint = out.read(), err.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        words = " ".join(complaint.decode(errors="replace").split()).removeprefix("sandbox: ")
        ending = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise HostError(words or f"it ended with {ending} and said nothing")
    return output


def _become_user_and_launch(directory: str, gid: int, spec: Spec, out: int, err: int) -> NoReturn:
    with contextlib.suppress(BaseException):
        try:
            # Survives exec: whatever comes, the installation does not wait for ever.
            signal.alarm(_SECONDS)
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.setgroups([gid])
            os.setresgid(_UID, _UID, _UID)
            os.setresuid(_UID, _UID, _UID)
            os.chdir("/")
            environ = {b"PATH": b"/usr/bin:/bin", b"SANDBOX_HOME": os.fsencode(directory) + b"/home"}
            launch.run(spec, environ, say=lambda _: None, hint=lambda _: None)
        except SandboxError as error:
            os.write(2, str(error).encode())
        except OSError as error:
            os.write(2, reason(error).encode())
    os._exit(125)
