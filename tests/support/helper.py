"""The installed setuid helper, started with plans and policies of the tests by a user without any privilege."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sandbox import policy
from sandbox.plan import Attach, Image, Mkdir, Overlay, Step, Tmpfs
from sandbox.plan_types import Mode, Source
from sandbox.setuid import HELPER
from tests.support import leaks
from tests.support.launcher import Launcher, below, source, squashfs, wait_until_empty
from tests.support.setuid import SetuidSystem
from tests.support.users import Identity, processes_of

# Nobody's: whatever runs as this user is of this session.
BUILDER = 1_000_000_000 + os.getpid()
WITH_BUILDER = f"builder_uid = {BUILDER}\nbuilder_gid = {BUILDER}\n"
# A disk of the system's, as far as the helper can tell: root's images lie there. Unlike any other session's, because
# the kernel shows the names of images behind loop devices to everybody.
IMAGES = Path(f"/var/lib/sbx-images-{os.getpid()}")
TRUSTED = "does not allow the kernel to mount"

USE = """cat $T/s/f; touch $T/s/x 2>/dev/null || echo read-only; cd $T/d && echo x >f && cat f && mv sub other &&
    cat other/g && rm -r other && ls; grep -o 'squashfs /dev/loop[0-9]*' /proc/self/mountinfo | sort -u | cut -c1-18"""
USED = "hello\nread-only\nx\ng\nbroken\nf\ntool\nsquashfs /dev/loop\n"


def prepare(system: SetuidSystem) -> None:
    """Once for each installation."""
    assert system.private is not None
    mounted = system.private.root("sh", "-ec", f"mkdir {IMAGES}; mount -t tmpfs -o mode=755 sbx-tests {IMAGES}")
    assert mounted.returncode == 0, mounted.stderr


def can_raise_limits() -> bool:
    """Whether this kernel, or what holds this machine, lets root have more than a hard limit: CAP_SYS_RESOURCE."""
    bounding = re.search(r"CapBnd:\t(\w+)", Path("/proc/self/status").read_text())
    assert bounding is not None
    return bool(int(bounding[1], 16) >> 24 & 1)


def loops() -> list[str]:
    """Loop devices that launches left attached."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            text = backing.read_text().strip()
            # Of a memfd's device nobody can say whose it is; one that is mounted belongs to a live process.
            lost = "/memfd:sandbox-image" in text and not leaks.is_mounted(backing.parts[3])
            if str(IMAGES) in text or lost:
                found.append(f"{backing.parts[3]} {text}")
    return found


class Helper(Launcher):
    """Launches in setuid mode."""

    def __init__(self, system: SetuidSystem, who: Identity, area: Path) -> None:
        super().__init__(Path(HELPER), Mode.SETUID, who, area)
        assert system.private is not None
        self.private, self.group = system.private, system.gid
        self.images = self.private.inside(IMAGES)
        self.policy_file = self.private.inside(policy.PATH)
        self._made: list[Path] = []
        self.policy("")

    def policy(self, text: str | None) -> None:
        """Replace it; none at all with None."""
        self.policy_file.unlink(missing_ok=True)
        if text is not None:
            self.policy_file.write_text(text)

    # -- launches ---------------------------------------------------------------------------------------------

    def become(self, then: Callable[[], object] | None = None) -> dict[str, Any]:
        return self.become_with([*self.who.groups, self.group], then)

    def become_with(self, groups: Sequence[int], then: Callable[[], object] | None = None) -> dict[str, Any]:
        """The same with other groups than the helper's and the user's own."""

        def change() -> None:
            self.private.enter()
            os.setgroups(groups)
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
            if then is not None:
                then()

        return {"preexec_fn": change}

    def start(self, plan: bytes, *command: str, program_env: dict[str, str] | None = None, **options: Any) -> Any:
        # The helper gets no environment unless a test says which.
        return super().start(plan, *command, program_env=program_env or {}, **options)

    def attempt(self, argv: Sequence[str], **options: Any) -> tuple[int, str]:
        """Start it with this very argv, [0] included: exit code and errors."""
        ids = self.become(options.pop("then", None))
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        got = subprocess.run(argv, executable=HELPER, text=True, timeout=60, **{**pipes, **ids, **options})
        assert not got.stdout
        return got.returncode, got.stderr

    def as_user(self, *argv: Any, **options: Any) -> "subprocess.Popen[str]":
        """Any other program, by the same user in the same place."""
        process = subprocess.Popen(
            [*map(str, argv)],
            text=True,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            **{**self.become(), **options},
        )
        self._started.append(process)
        return process

    # -- images -----------------------------------------------------------------------------------------------

    def image_plan(self, image: Source, *more: Step, dynamic: bool = True, sources: Sequence[Source] = ()) -> bytes:
        """The image at $T/s, and writable at $T/d if `dynamic`."""
        steps: list[Step] = [Image(1, 0), Mkdir(below("s"), 0o755), Attach(1, below("s"), 7)]
        if dynamic:
            writable = [Tmpfs(2, 1 << 24, 0, 0o700), Overlay(3, (1,), 2, 2)]
            steps[1:1] = [*writable, Mkdir(below("d"), 0o755), Attach(3, below("d"), 6)]
        return self.plan(*steps, *more, sources=(image, *sources))

    def own_image(self, *options: str) -> Path:
        """An image of the user's."""
        path = squashfs(self.tree, self.area / "own.sfs", "-root-mode", "0755", *options)
        os.chown(path, self.uid, self.gid)
        return path

    def roots_image(self, name: str = "root.sfs") -> Path:
        """The name that this process has for an image of root's where only root can make one."""
        path = squashfs(self.tree, self.images / name, "-noappend")
        path.chmod(0o644)
        self._made.append(path)
        return path

    def roots_place(self, name: str) -> Path:
        """The same for a directory."""
        path = self.images / name
        path.mkdir(mode=0o755)
        self._made.append(path)
        return path

    def source(self, path: Path) -> Source:
        """Of a file beneath `images`, by the name that it has for the helper."""
        return source(path, seen_at=IMAGES / path.relative_to(self.images))

    def roots_source(self) -> Source:
        return self.source(self.roots_image())

    # -- afterwards -------------------------------------------------------------------------------------------

    def left(self) -> list[str]:
        builders = [f"builder {pid} {name}" for pid, name in processes_of(BUILDER).items()]
        mine = [f"process {pid} {name}" for pid, name in processes_of(self.uid).items()]
        return [*super().left(), *loops(), *builders, *mine]

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            for path in self._made:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def settled(helper: Helper) -> list[str]:
    """What is still left of launches after a moment."""
    return wait_until_empty(helper.left)
