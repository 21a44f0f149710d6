"""The setuid helper, installed for real and used, and attacked, by users without any privilege.

    PYTHONPATH=. python3 setuid-helper/tests/setuid.py [-v] [CLASS[.TEST] ...]

Needs root, cargo, mksquashfs, sqfs2tar, tar2sqfs and strace. Builds a helper that reads the policy of its own test
directory, so that the machine's is left alone; users and groups are numbers that nobody has. Leaves nothing behind.
"""

# ruff: noqa: N802, PLW1510, PT009, PT027, S311
import contextlib
import ctypes
import hashlib
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
import unittest
from pathlib import Path

import launches
from launches import TOP, USER, below, source

from sandbox.codec import encode
from sandbox.plan import (
    Attach,
    Base,
    Extract,
    Guard,
    IdMap,
    Image,
    Mkdir,
    Mode,
    Overlay,
    Place,
    Plan,
    PlanFlag,
    Scratch,
    SetPropagation,
    Source,
    SourceKind,
    Tmpfs,
    Tree,
    Unshare,
)
from tests.support import leaks

GROUP, BUILDER, OTHER = 23456, 23457, 12346
CRATE = Path(__file__).resolve().parent.parent
# The policy's place is compiled in, so it is the same for each run of one clone, and no other clone's.
INSTALLED = Path(f"/usr/local/libexec/sandbox-test-{hashlib.sha256(bytes(CRATE)).hexdigest()[:8]}")
HELPER = INSTALLED / "sandbox-helper"
POLICY = INSTALLED / "policy.toml"
WITH_BUILDER = f"builder_uid = {BUILDER}\nbuilder_gid = {BUILDER}\n"
MEMORY = Source(SourceKind.MEMORY, b"")


def setUpModule() -> None:
    target = CRATE / "target/setuid-test"
    env = {**os.environ, "SANDBOX_POLICY": str(POLICY)}
    build = ["cargo", "build", "--release", "--quiet", "--bin", "sandbox-helper", "--target-dir", target]
    subprocess.run(build, cwd=CRATE, env=env, check=True)
    INSTALLED.parent.mkdir(exist_ok=True)
    INSTALLED.mkdir()  # somebody else's run of this: FileExistsError
    unittest.addModuleCleanup(shutil.rmtree, INSTALLED)
    shutil.copy(target / "release/sandbox-helper", HELPER)
    os.chown(HELPER, 0, GROUP)
    HELPER.chmod(0o4750)
    unittest.addModuleCleanup(lambda: unittest.TestCase().assertEqual(loops(), []))


def loops() -> list[str]:
    """Loop devices that launches of this program left attached."""
    attached: list[str] = []
    for _ in range(100):  # autoclear is asynchronous
        attached = []
        for path in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                text = path.read_text()
                ours = str(INSTALLED) in text or "/sbx-launches-" in text
                if ours or ("/memfd:sandbox-image" in text and not leaks.is_mounted(path.parts[3])):
                    attached.append(f"{path} {text}")
        if not attached:
            break
        time.sleep(0.02)
    return attached


def squashfs(tree: Path, path: Path, *options: str) -> Path:
    subprocess.run(
        ["mksquashfs", tree, path, "-quiet", "-no-progress", *options], check=True, stdout=subprocess.DEVNULL
    )
    return path


class Helper(launches.Launches):
    """The launches of every mode, in setuid mode."""

    mode = Mode.SETUID
    uid = USER

    def setUp(self) -> None:
        self.started: list[subprocess.Popen[str]] = []
        super().setUp()
        self.engine = HELPER
        self.policy("")

    def doCleanups(self) -> bool:
        for process in self.started:
            if process.poll() is None:  # a test that failed half-way
                process.terminate()
                process.communicate(timeout=10)
        self.started.clear()
        return super().doCleanups()

    def policy(self, text: str | None) -> None:
        POLICY.unlink(missing_ok=True)
        if text is not None:
            POLICY.write_text(text)

    def ids(self) -> dict[str, object]:
        return {"user": self.uid, "group": self.uid, "extra_groups": [GROUP]}

    def start(
        self,
        plan: bytes,
        *command: str,
        fds: dict[int, int] | None = None,
        env: bytes | None = None,
        pass_fds: tuple[int, ...] = (),
        env_of_helper: dict[str, str] | None = None,
        **options: object,
    ) -> subprocess.Popen[str]:
        plan_fd, env_fd = os.memfd_create("plan"), os.memfd_create("env")
        os.write(plan_fd, plan)
        os.write(env_fd, b"PATH=/usr/bin:/bin\0" if env is None else env)
        pairs = [f"{index}={number}" for index, number in (fds or {}).items()]
        argv = [str(self.engine), "run", str(plan_fd), str(env_fd), *pairs, "--", *command]
        options["env"] = {} if env_of_helper is None else env_of_helper
        keep = [plan_fd, env_fd, *(fds or {}).values(), *pass_fds]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(argv, text=True, pass_fds=keep, cwd="/", **{**pipes, **self.ids(), **options})
        self.started.append(process)
        os.close(plan_fd)
        os.close(env_fd)
        return process

    def refused(self, plan: bytes, *texts: str, **options: object) -> None:
        """One line, exit code 125, and nothing ran."""
        got, out, err = self.run_plan(plan, "echo", "ran", **options)
        self.assertEqual((got, out, err.count("\n")), (125, "", 1), err)
        for text in ("sandbox: ", *texts):
            self.assertIn(text, err)

    # What is refused in this mode, or handed over differently.
    test_overlay_of_a_directory = test_many_layers = test_scratch_on_disk = test_stale_runs_are_cleaned = None
    test_refusals = test_descriptors = test_closed_standard_descriptors = test_environment = None
    test_names_that_are_taken = None

    # -- what the command has ---------------------------------------------------------------------------------

    def test_facts(self) -> None:
        script = "cat /proc/self/uid_map; grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status; ulimit -Sc"
        core = lambda: resource.setrlimit(resource.RLIMIT_CORE, (4096, 8192))  # noqa: E731
        got, out, err = self.run_plan(self.plan(), "sh", "-c", script, preexec_fn=core)
        self.assertEqual((got, err), (0, ""))
        lines = [line.split() for line in out.splitlines()]
        self.assertEqual(lines[0], ["0", "0", "4294967295"])
        facts = {line[0]: line[1:] for line in lines[1:-1]}
        bounding = re.search(r"CapBnd:\t(\w+)", Path("/proc/self/status").read_text())
        for name, expected in {
            "Uid:": [str(USER)] * 4,
            "Gid:": [str(USER)] * 4,
            "Groups:": [str(GROUP)],
            **{name: ["0" * 16] for name in ("CapInh:", "CapPrm:", "CapEff:", "CapAmb:")},
            "CapBnd:": [bounding[1]],
            "NoNewPrivs:": ["1"],
        }.items():
            self.assertEqual(facts[name], expected, name)
        self.assertEqual(lines[-1], ["8" if os.readlink("/bin/sh").startswith("dash") else "4"])

    def test_supervisor_has_nothing(self) -> None:
        process = self.start(self.plan(), "sh", "-c", "echo ready; sleep 1000")
        process.stdout.readline()
        status = Path(f"/proc/{process.pid}/status").read_text()
        self.assertEqual(re.findall(r"Cap(?:Inh|Prm|Eff|Amb):\t(\w+)", status), ["0" * 16] * 4)
        self.assertIn(f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}", status)
        self.assertIn("NoNewPrivs:\t1", status)
        process.terminate()
        process.communicate()

    def test_environment_beside_the_plan(self) -> None:
        hostile = {
            "LD_PRELOAD": "/x.so",
            "LD_LIBRARY_PATH": "/x",
            "GCONV_PATH": "/x",
            "MALLOC_CHECK_": "3",
            "RUST_BACKTRACE": "1",
            "PATH": "/x",
            "HUGE": "x" * 100_000,
        }
        env = b"PATH=/usr/bin:/bin\0LD_LIBRARY_PATH=/opt/mine\0"
        got, out, err = self.run_plan(self.plan(), "env", env=env, env_of_helper=hostile)
        names = sorted(line.split("=")[0] for line in out.splitlines())
        self.assertEqual((got, names, err), (0, ["LD_LIBRARY_PATH", "PATH", "T"], ""))

    # -- images -----------------------------------------------------------------------------------------------

    def image_plan(self, image: Source, *more: object, dynamic: bool = True) -> bytes:
        steps = [Image(1, 0), Mkdir(below("s"), 0o755), Attach(1, below("s"), 7)]
        if dynamic:
            writable = [Tmpfs(2, 1 << 24, 0, 0o700), Overlay(3, (1,), 2, 2)]
            steps[1:1] = [*writable, Mkdir(below("d"), 0o755), Attach(3, below("d"), 6)]
        return self.plan(*steps, *more, sources=(image,))

    def own_image(self, *options: str) -> Path:
        path = squashfs(self.tree, self.area / "own.sfs", "-root-mode", "0755", *options)
        os.chown(path, USER, USER)
        return path

    def roots_image(self, name: str = "root.sfs", *options: str) -> Path:
        path = squashfs(self.tree, INSTALLED / name, *options)
        path.chmod(0o644)
        self.addCleanup(path.unlink)
        return path

    USE = """cat $T/s/f; touch $T/s/x 2>/dev/null || echo read-only; cd $T/d && echo x >f && cat f && mv sub other &&
        cat other/g && rm -r other && ls; grep -o 'squashfs /dev/loop[0-9]*' /proc/self/mountinfo |
        sort -u | cut -c1-18"""
    USED = "hello\nread-only\nx\ng\nbroken\nf\ntool\nsquashfs /dev/loop\n"

    def test_image_of_roots(self) -> None:
        self.check(self.image_plan(source(self.roots_image())), self.USE, self.USED)

    def test_images_of_roots_share_a_loop_device(self) -> None:
        plan = self.image_plan(source(self.roots_image()), dynamic=False)
        script = "grep -o '/dev/loop[0-9]*' /proc/self/mountinfo; read x"
        runs = [self.start(plan, "sh", "-c", script, stdin=subprocess.PIPE) for _ in range(6)]
        self.assertEqual(len({run.stdout.readline() for run in runs}), 1)
        for run in runs:
            run.communicate("\n")

    def test_image_is_rebuilt(self) -> None:
        self.policy(WITH_BUILDER)
        image = self.own_image()
        self.check(self.image_plan(source(image)), self.USE, self.USED)
        image.chmod(0o600)  # the builder needs no right to the original
        self.check(self.image_plan(source(image)), self.USE, self.USED)
        fd = os.open(image, os.O_RDONLY)
        self.check(self.image_plan(MEMORY), self.USE, self.USED, fds={0: fd})
        os.close(fd)

    def test_rebuilding_changes_the_bytes(self) -> None:
        self.policy(WITH_BUILDER)
        image = source(self.own_image("-comp", "gzip"))
        got, out, err = self.run_plan(
            self.image_plan(image, dynamic=False), "sh", "-c",
            "n=$(sed -n 's,.*/dev/loop\\([0-9]*\\).*,\\1,p' /proc/self/mountinfo); "
            "cat /sys/block/loop$n/loop/backing_file",
        )  # fmt: skip
        self.assertEqual((got, out, err), (0, "/memfd:sandbox-image (deleted)\n", ""))

    def test_any_and_trusted(self) -> None:
        image = source(self.own_image())
        self.refused(self.image_plan(image), "names no builder")
        self.policy('images = "trusted"\n' + WITH_BUILDER)
        self.refused(self.image_plan(image), "does not allow the kernel to mount")
        self.policy('images = "any"\n')
        self.check(self.image_plan(image, dynamic=False), "cat $T/s/f", "hello\n")
        self.refused(self.image_plan(image), "an option that is not allowed")

    def test_limits(self) -> None:
        self.policy(WITH_BUILDER + "image_bytes = 100\n")
        self.refused(self.image_plan(source(self.own_image())), "longer than the policy allows (100 bytes)")
        self.policy("[limits]\ntmpfs_bytes = 1048576\n")
        self.check(self.plan(), "head -c 2000000 /dev/zero >$T/x 2>/dev/null || echo full", "full\n")

    def test_what_is_not_trusted(self) -> None:
        self.policy('images = "trusted"\n')
        text = "does not allow the kernel to mount"
        image = self.roots_image("a.sfs")
        self.check(self.image_plan(source(image), dynamic=False), "cat $T/s/f", "hello\n")
        image.chmod(0o664)
        self.refused(self.image_plan(source(image)), text)
        image.chmod(0o644)
        os.chown(image, USER, 0)
        self.refused(self.image_plan(source(image)), text)
        os.chown(image, 0, 0)
        # Root's, in a directory in which the user can put anything in its place.
        for directory, mode, owner in (("theirs", 0o755, USER), ("open", 0o777, 0), ("sticky", 0o1777, 0)):
            place = INSTALLED / directory
            place.mkdir()
            self.addCleanup(shutil.rmtree, place)
            shutil.copy(image, place / "a.sfs")
            os.chown(place, owner, 0)
            place.chmod(mode)
            self.refused(self.image_plan(source(place / "a.sfs")), text)
            place.chmod(0o755)
            os.chown(place, 0, 0)
            self.check(self.image_plan(source(place / "a.sfs"), dynamic=False), "cat $T/s/f", "hello\n")
        # A link of the user's to an image of root's is only a name.
        link = self.area / "disk/link.sfs"
        link.symlink_to(image)
        self.check(self.image_plan(source(link), dynamic=False), "cat $T/s/f", "hello\n")

    def test_trusted_directories(self) -> None:
        trusted, prefix = self.area / "img", self.area / "img2"  # beneath /var/tmp, where anybody can make things
        for directory in (trusted, prefix):
            directory.mkdir()
            squashfs(self.tree, directory / "a.sfs").chmod(0o644)
        self.policy(f'images = "trusted"\ntrusted_directories = ["{trusted}"]\n')
        self.check(self.image_plan(source(trusted / "a.sfs"), dynamic=False), "cat $T/s/f", "hello\n")
        text = "does not allow the kernel to mount"
        self.refused(self.image_plan(source(prefix / "a.sfs")), text)
        user = trusted / "user"
        user.mkdir()
        os.chown(user, USER, USER)
        os.link(trusted / "a.sfs", user / "a.sfs")
        self.refused(self.image_plan(source(user / "a.sfs")), text)

    def test_image_inside_an_image_is_not_trusted(self) -> None:
        """Owner and directories are root's there, and the content is the user's."""
        self.policy(f'{WITH_BUILDER}images = "rebuild"\ntrusted_directories = ["{INSTALLED}"]\n')
        inner = squashfs(self.tree, self.area / "inner.sfs")
        box = self.area / "box"
        box.mkdir()
        shutil.copy(inner, box / "evil.sfs")
        outer = squashfs(box, self.area / "outer.sfs", "-all-root")
        place = INSTALLED / "mnt"
        place.mkdir()
        self.addCleanup(place.rmdir)
        steps = [Image(1, 0), Attach(1, Place(Base.ROOT, bytes(place)), 7)]
        plan = self.plan(*steps, sources=(source(outer),))
        process = self.start(plan, "sh", "-c", "echo ready; read x", stdin=subprocess.PIPE)
        self.assertEqual(process.stdout.readline(), "ready\n", process.poll() and process.stderr.read())
        command = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        inside = Path(f"/proc/{command}/root{place}/evil.sfs")
        self.assertEqual((inside.stat().st_uid, inside.read_bytes()), (0, inner.read_bytes()))
        self.policy(f'images = "trusted"\ntrusted_directories = ["{INSTALLED}", "/"]\n')
        text = "does not allow the kernel to mount"
        self.refused(self.image_plan(source(inside)), text)
        process.communicate("\n")

    def test_replaced_after_the_check(self) -> None:
        self.policy(WITH_BUILDER)
        image = self.own_image()
        plan = self.image_plan(source(image))
        os.rename(image, f"{image}.old")
        shutil.copy(f"{image}.old", image)
        self.refused(plan, "is not what it was when the plan was made")

    def test_crafted_images(self) -> None:
        self.policy(WITH_BUILDER)
        good = self.own_image().read_bytes()
        bad = self.area / "bad.sfs"
        chance = random.Random(1)
        ran = 0
        for round_ in range(60):
            data = bytearray(good)
            places = range(96) if round_ % 2 else range(len(data) // 2, len(data))
            for _ in range(1 + round_ % 4):
                data[chance.choice(places)] = chance.randrange(256)
            bad.write_bytes(data if round_ % 5 else data[: chance.randrange(len(data))])
            got, _, err = self.run_plan(self.image_plan(source(bad), dynamic=False), "true")
            self.assertIn((got, err.count("\n")), ((0, 0), (125, 1)), err)
            ran += got == 0
        self.assertLess(ran, 60)

    # -- rules ------------------------------------------------------------------------------------------------

    def raw(self, *steps: object, mode: Mode = Mode.SETUID, uid: int = USER, sources: tuple[Source, ...] = ()) -> bytes:
        return encode(Plan(mode, PlanFlag(0), uid, uid, source(self.home), sources, steps))

    def test_rules(self) -> None:
        tree, start = source(self.tree), (Unshare(0x20000), SetPropagation(1))
        tmpfs = Tmpfs(0, 1 << 20, 0, 0o700)
        top = Attach(0, TOP, 6)
        image = source(self.roots_image())
        for plan, text in (
            (self.raw(), "makes no namespace"),
            (self.raw(tmpfs, top), "starts with a mount namespace"),
            (self.raw(Unshare(0x20000), tmpfs, top), "starts with a mount namespace"),
            (self.raw(Unshare(0x10020000), SetPropagation(1)), "starts with a mount namespace"),
            (self.raw(Unshare(0), SetPropagation(1)), "starts with a mount namespace"),
            (self.raw(*start, Unshare(0x20000)), "starts with a mount namespace"),
            (self.raw(*start, IdMap(0, 0, 0, 0)), "no user namespace"),
            (self.raw(*start, Tmpfs(0, 0, 0, 0o700)), "a size is needed"),
            (self.raw(*start, tmpfs, top, top), "attached once"),
            (self.plan(Scratch(0, 1, 2), sources=(source(self.area / "disk"),)), "not supported"),
            (self.plan(Image(1, 0), sources=(tree,)), "an image is a file"),
            (self.plan(Tree(1, 0, 1), Tmpfs(2, 1 << 20, 0, 0o700), Overlay(3, (1,), 2, 0),
                       sources=(tree,)), "only an image"),
            (self.plan(Image(1, 0), Overlay(3, (1,), 0, 0), sources=(image,)), "attached nowhere"),
            (self.plan(Image(1, 0), Tmpfs(2, 1 << 20, 0, 0o700), Overlay(3, (1,), 2, 1),
                       sources=(image,)), "not allowed"),
            (self.plan(Image(1, 0), Tmpfs(2, 1 << 20, 0, 0o700), Overlay(3, (1,), 2, 0), Attach(2, below(""), 6),
                       sources=(image,)), "attached once"),
            (self.plan(Image(1, 0), Tmpfs(2, 1 << 20, 0, 0o700), Extract(2, 0, (b"/bin/true",)), Overlay(3, (1,), 2, 0),
                       sources=(image,)), "attached nowhere"),
            (self.plan(Image(1, 0), Tmpfs(2, 1 << 20, 0, 0o700), Overlay(3, (1,), 2, 0), Extract(2, 0, (b"/bin/true",)),
                       sources=(image,)), "no upper layer"),
            (self.plan(Image(1, 0), Extract(1, 0, (b"/bin/true",)), sources=(image,)), "unpacks into a tmpfs"),
            (self.raw(*start, mode=Mode.ROOT), "setuid mode only"),
            (self.raw(*start, mode=Mode.USERNS), "setuid mode only"),
            (self.raw(*start, uid=0), "is for user 0"),
            (self.raw(*start, uid=OTHER), f"is for user {OTHER}"),
        ):  # fmt: skip
            self.refused(plan, text)

    def test_places_that_are_never_covered(self) -> None:
        tree = source(self.tree)
        for place in (b"/proc", b"/proc/self", b"/proc/1/task", bytes(self.home / "procdirs")):
            plan = self.plan(Tree(1, 0, 1), Attach(1, Place(Base.ROOT, place), 7), sources=(tree,))
            self.refused(plan, "does not mount over")
        # /dev may be covered, but not before an image needs it.
        image = source(self.roots_image())
        over = (Tree(1, 0, 1), Attach(1, Place(Base.ROOT, b"/dev"), 7))
        self.refused(self.plan(*over, Image(2, 1), sources=(tree, image)), "over /dev")

    def test_covered_files_stay_covered(self) -> None:
        """A clone without its submounts would show what an administrator hid by mounting over it."""
        hidden = self.area / "hidden"
        (hidden / "sub").mkdir(parents=True)
        (hidden / "sub/secret").write_text("secret\n")
        subprocess.run(["mount", "-t", "tmpfs", "none", hidden / "sub"], check=True)
        try:
            for unbindable in (False, True):
                if unbindable:
                    subprocess.run(["mount", "--make-unbindable", hidden / "sub"], check=True)
                for recursive in (0, 1):
                    steps = [Tree(1, 0, recursive), Mkdir(below("t"), 0o755), Attach(1, below("t"), 7)]
                    self.check(self.plan(*steps, sources=(source(hidden),)), "ls -A $T/t/sub", "")
        finally:
            subprocess.run(["umount", hidden / "sub"], check=True)

    def test_nothing_is_gained_by_covering_etc(self) -> None:
        etc = self.area / "etc"
        etc.mkdir()
        (etc / "passwd").write_text("root::0:0:root:/root:/bin/sh\n")
        plan = self.plan(Tree(1, 0, 1), Attach(1, Place(Base.ROOT, b"/etc"), 6), sources=(source(etc),))
        self.check(plan, "su -c id 2>&1 | grep -c uid=0", "0\n", 1)

    def test_policy_that_others_can_change(self) -> None:
        self.policy("")
        for change, undo in (
            (lambda: os.chown(POLICY, USER, 0), lambda: os.chown(POLICY, 0, 0)),
            (lambda: POLICY.chmod(0o666), lambda: POLICY.chmod(0o644)),
            (lambda: POLICY.chmod(0o664), lambda: POLICY.chmod(0o644)),
            (lambda: INSTALLED.chmod(0o777), lambda: INSTALLED.chmod(0o755)),
            (lambda: os.chown(INSTALLED, USER, 0), lambda: os.chown(INSTALLED, 0, 0)),
        ):
            change()
            self.refused(self.plan(), "could be changed by somebody else than root")
            undo()
        for text in ('images = "all"\n', "x = 1\n", "allow_new_privs = true\n"):
            self.policy(text)
            self.refused(self.plan(), "line 1 is not understood")
        POLICY.unlink()
        POLICY.symlink_to("/dev/zero")
        self.refused(self.plan(), "policy.toml")
        POLICY.unlink()
        self.check(self.plan(), "echo ran", "ran\n")  # none: the defaults

    def test_groups(self) -> None:
        self.policy(f"groups = [{OTHER}]\n")
        self.refused(self.plan(), "does not allow you")
        self.policy(f"groups = [{OTHER}, {GROUP}]\n")
        self.check(self.plan(), "echo ran", "ran\n")
        with self.assertRaises(PermissionError):  # the kernel's own gate
            subprocess.run([HELPER, "version"], user=USER, group=USER, extra_groups=[])

    def test_refusals_are_logged(self) -> None:
        if os.path.lexists("/dev/log"):
            self.skipTest("/dev/log is in use")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            log.bind("/dev/log")
            self.addCleanup(os.unlink, "/dev/log")
            os.chmod("/dev/log", 0o666)
            log.settimeout(5)
            self.refused(self.raw(), "makes no namespace")
            self.assertEqual(
                log.recv(2000), b"<84>sandbox-helper: user %d: setuid mode: the plan makes no namespace" % USER
            )


class Attacks(Helper):
    """What a hostile user of the group does."""

    def attempt(self, argv: list[str], **options: object) -> tuple[int, str]:
        got = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, text=True,
                             executable=HELPER, timeout=20, **{**self.ids(), **options})  # fmt: skip
        self.assertEqual(got.stdout, "")
        return got.returncode, got.stderr

    def test_no_arguments(self) -> None:
        pid = os.fork()
        if pid == 0:
            os.setgroups([GROUP])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
            libc = ctypes.CDLL(None)
            none = (ctypes.c_char_p * 1)(None)
            libc.execve(bytes(HELPER), none, none)
            os._exit(1)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 125)

    def test_bad_descriptors(self) -> None:
        reader, writer = os.pipe()
        directory = os.open("/", os.O_RDONLY)
        plan, huge, empty = (os.memfd_create(name) for name in ("plan", "huge", "empty"))
        os.write(plan, self.plan())
        os.ftruncate(huge, 1 << 40)
        for plan_fd, env_fd, text in (
            (reader, empty, "must be handed over as a file"),
            (directory, empty, "must be handed over as a file"),
            (huge, empty, "longer than"),
            (empty, plan, "cannot decode"),
            (plan, reader, "must be handed over as a file"),
            (plan, huge, "longer than"),
            (plan, plan, "named twice"),
            (plan, 999, "descriptor"),
            (plan, "-", "must be handed over in a descriptor"),
        ):
            keep = (reader, directory, plan, huge, empty)
            code, err = self.attempt(["x", "run", str(plan_fd), str(env_fd), "--", "id"], pass_fds=keep)
            self.assertEqual((code, err.count("\n")), (125, 1), err)
            self.assertIn(text, err)
        for fd in (reader, writer, directory, plan, huge, empty):
            os.close(fd)

    def test_truncated_and_changed_plans(self) -> None:
        good = self.image_plan(source(self.roots_image()))
        chance = random.Random(2)
        for length in chance.sample(range(len(good)), 40):
            self.refused(good[:length], "cannot decode")
        for _ in range(150):
            bad = bytearray(good)
            bad[chance.randrange(12, len(bad))] ^= 1 << chance.randrange(8)
            got, _, err = self.run_plan(bytes(bad), "true")
            self.assertIn((got, err.count("\n")), ((0, 0), (125, 1)), err)

    def test_limits_at_their_minimum(self) -> None:
        names = ("NOFILE", "FSIZE", "NPROC", "STACK", "CORE", "AS", "DATA", "MEMLOCK", "CPU", "SIGPENDING", "LOCKS")
        plan = self.image_plan(source(self.roots_image()))
        for name in names[:-1]:
            number = getattr(resource, f"RLIMIT_{name}", 11)
            for limit in (0, 1, 8):
                minimum = lambda n=number, v=limit: resource.setrlimit(n, (v, v))  # noqa: E731
                try:
                    got, _, err = self.run_plan(plan, "true", preexec_fn=minimum)
                except OSError:
                    continue  # exec itself was refused
                except subprocess.TimeoutExpired:
                    raise
                except subprocess.SubprocessError:
                    continue  # Python's own part failed before exec
                self.assertTrue(got in (0, 125, 126) or got < 0 or got == 127, (name, limit, got, err))

    def test_many_descriptors(self) -> None:
        many = [os.open("/dev/null", os.O_RDONLY) for _ in range(900)]
        got, out, err = self.run_plan(self.plan(), "sh", "-c", "ls /proc/$$/fd | wc -l", pass_fds=tuple(many))
        self.assertEqual((got, err), (0, ""))
        self.assertGreaterEqual(int(out), 900)
        self.assertLess(int(out), 906)
        for fd in many:
            os.close(fd)

    def test_nothing_leaks(self) -> None:
        image = source(self.roots_image())
        self.check(self.image_plan(image), "ls -x /proc/$$/fd", "0  1  2\n")

    def test_closed_standard_descriptors(self) -> None:
        def close() -> None:
            for number in (0, 1, 2):
                os.close(number)

        plan = self.image_plan(source(self.roots_image()))
        process = self.start(plan, "sh", "-c", f"echo $T >{self.area}/disk/out", preexec_fn=close)
        process.communicate()
        self.assertEqual(process.returncode, 0)
        self.assertTrue((self.area / "disk/out").read_text().startswith(str(self.home)))

    def test_foreign_and_odd_homes(self) -> None:
        good = source(self.home)
        link = self.area / "disk/link"
        link.symlink_to(self.home)
        foreign = self.area / "foreign"
        for directory in (foreign, foreign / "procdirs", foreign / "records"):
            directory.mkdir(mode=0o777)

        def launch(home: Source) -> None:
            start = (Unshare(0x20000), SetPropagation(1), Guard(), Tmpfs(0, 1 << 20, 0, 0o700), Attach(0, TOP, 6))
            self.refused(encode(Plan(Mode.SETUID, PlanFlag(0), USER, USER, home, (), start)))

        launch(good.replace(path=bytes(link)))
        launch(source(foreign))
        launch(source(Path("/")))
        launch(good.replace(path=b"/proc/self/fd/0"))
        procdirs = self.home / "procdirs"
        procdirs.rmdir()
        procdirs.symlink_to("/etc")
        launch(good)
        procdirs.unlink()
        procdirs.mkdir()
        os.chown(procdirs, USER, USER)

    def test_what_the_user_cannot_read(self) -> None:
        secret = self.area / "secret"
        secret.mkdir(mode=0o700)
        (secret / "sub").mkdir()
        for path in (secret / "sub", Path("/root")):
            plan = self.plan(Tree(1, 0, 1), Mkdir(below("t"), 0o755), Attach(1, below("t"), 7), sources=(source(path),))
            got, out, _ = self.run_plan(plan, "ls", str(path))
            self.assertNotEqual((got, out), (0, ""))

    def test_tracing(self) -> None:
        """Nobody reads or steers the helper while it sets up."""
        self.policy(WITH_BUILDER)
        tracer = (
            "import ctypes, os, sys, time\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "pids = sys.argv[1:]; print('go', flush=True); got = tried = 0\n"
            "end = time.monotonic() + 4\n"
            "while time.monotonic() < end:\n"
            "    for pid in [int(p) for p in os.listdir('/proc') if p.isdigit()]:\n"
            "        try: exe = open(f'/proc/{pid}/comm').read()\n"
            "        except OSError: continue\n"
            "        if exe != 'sandbox-helper\\n': continue\n"
            "        tried += 1\n"
            "        if libc.ptrace(0x4206, pid, 0, 0) == 0:\n"
            "            try: got += os.readlink(f'/proc/{pid}/exe').endswith('sandbox-helper')\n"
            "            except OSError: pass\n"
            "    try:\n"
            "        while os.waitpid(-1, 0x40000001)[0]: pass\n"
            "    except OSError: pass\n"
            "    for pid in [int(p) for p in os.listdir('/proc') if p.isdigit()]:\n"
            "        try: exe = open(f'/proc/{pid}/comm').read()\n"
            "        except OSError: continue\n"
            "        if exe != 'sandbox-helper\\n': continue\n"
            "        for name in ('mem', 'environ', 'fd/0', 'maps'):\n"
            "            try: os.close(os.open(f'/proc/{pid}/{name}', os.O_RDONLY))\n"
            "            except OSError: continue\n"
            "            try: got += os.readlink(f'/proc/{pid}/exe').endswith('sandbox-helper')\n"
            "            except OSError: pass\n"
            "print(tried, got)\n"
        )
        spy = subprocess.Popen(["python3", "-c", tracer], stdout=subprocess.PIPE, text=True, **self.ids())
        spy.stdout.readline()
        image = source(self.own_image())
        end = time.monotonic() + 8
        while spy.poll() is None and time.monotonic() < end:
            self.run_plan(self.image_plan(image), "true")
        tried, got = map(int, spy.communicate(timeout=5)[0].split())
        self.assertGreater(tried, 10)
        self.assertEqual(got, 0)

    def test_killed_at_any_moment(self) -> None:
        self.policy(WITH_BUILDER)
        chance = random.Random(3)
        plans = [self.image_plan(source(self.roots_image())), self.image_plan(source(self.own_image()))]
        for round_ in range(80):
            process = self.start(plans[round_ % 2], "true")
            time.sleep(chance.random() * (0.004 if round_ % 2 == 0 else 0.06))
            process.kill()
            process.communicate()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.leftover_processes():
            time.sleep(0.05)
        self.assertEqual(self.leftover_processes(), [])
        self.check(self.plan(), "true", "")  # cleans up after the dead
        self.assertEqual(loops(), [])

    def leftover_processes(self) -> list[str]:
        left = []
        for path in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                text = path.read_text()
                if re.search(rf"Uid:\t({USER}|{BUILDER})\t", text) and "State:\tZ" not in text:
                    left.append(text)
        return left

    def test_stopped_while_it_sets_up(self) -> None:
        """Who stops a launch at a bad moment delays nobody else for long."""
        plan = self.image_plan(source(self.roots_image()))
        stopped = []
        for round_ in range(30):
            process = self.start(plan, "true", preexec_fn=os.setsid)
            time.sleep(round_ * 0.0002)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGSTOP)
            stopped.append(process)
            begin = time.monotonic()
            self.check(plan, "echo ran", "ran\n")
            self.assertLess(time.monotonic() - begin, 2)
        for process in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
            process.communicate(timeout=10)

    def test_tree_swapped_while_launching(self) -> None:
        """A directory that becomes a link to what the user cannot reach is never mounted."""
        secret = self.area / "secret"
        (secret / "x").mkdir(parents=True)
        (secret / "x/f").write_text("secret\n")
        secret.chmod(0o700)
        play = self.area / "play"
        (play / "a/x").mkdir(parents=True)
        (play / "a/x/f").write_text("mine\n")
        for path in (play, play / "a", play / "a/x"):
            os.chown(path, USER, USER)
        (play / "l").symlink_to(secret)
        swap = f"import ctypes; r = ctypes.CDLL(None).renameat2\nwhile 1: r(-100, b'{play}/a', -100, b'{play}/l', 2)"
        steps = [Tree(1, 0, 1), Mkdir(below("t"), 0o755), Attach(1, below("t"), 7)]
        plan = self.plan(*steps, sources=(source(play / "a/x"),))
        swapper = subprocess.Popen(["python3", "-c", swap], **self.ids())
        try:
            end, seen = time.monotonic() + 10, set()
            while time.monotonic() < end:
                seen.add(self.run_plan(plan, "sh", "-c", "cat $T/t/f")[:2])
        finally:
            swapper.kill()
            swapper.wait()
        self.assertLessEqual(seen, {(0, "mine\n"), (125, "")})

    def test_setuid_programs_and_devices_in_images(self) -> None:
        self.policy(WITH_BUILDER)
        box = self.area / "box"
        box.mkdir()
        shutil.copy("/usr/bin/id", box / "id")
        (box / "id").chmod(0o4755)
        os.mknod(box / "null", 0o666 | 0o020000, os.makedev(1, 3))
        os.mknod(box / "disk", 0o666 | 0o060000, Path("/").stat().st_dev)
        (box / "null").chmod(0o666)
        (box / "disk").chmod(0o666)
        image = squashfs(box, self.area / "box.sfs")
        script = "$T/s/id -u; cat $T/s/null; head -c1 $T/d/disk; $T/d/id -u"
        got, out, err = self.run_plan(self.image_plan(source(image)), "sh", "-c", script)
        self.assertEqual((got, out, err.count("Permission denied")), (0, f"{USER}\n{USER}\n", 2), err)


class Trace(Helper):
    """A trace of a whole launch: what runs while a capability is effective."""

    # Calls that may stand between raising and lowering; a path among their arguments must be one of these.
    ALLOWED = re.compile(
        r"""unshare\(CLONE_NEWNS\)
        |mount_setattr\(\d+,\ "",
        |open_tree\(\d+,\ "",
        |move_mount\(\d+,\ "",\ \d+,\ "",
        |fsopen\("(tmpfs|squashfs|overlay|fuse)",
        |fsconfig\(|fsmount\(
        |umount2\("/proc/self/fd/\d+",\ MNT_DETACH\)
        |openat\(\d+,\ "loop(-control|\d+)",\ O_(RDONLY|RDWR)\|(O_LARGEFILE\|)?O_NOFOLLOW\|O_CLOEXEC\)
        |unshare\(CLONE_NEW(IPC|PID|NET)(\|CLONE_NEW(IPC|PID|NET))*\)
        |setgroups\(0,|setresgid\(|setresuid\(
        |close\(\d+\)|---""",
        re.VERBOSE,
    )

    def test_calls_with_effective_capabilities(self) -> None:
        self.policy(WITH_BUILDER)
        for image in (self.roots_image(), self.own_image()):
            self.trace(self.image_plan(source(image), Tmpfs(9, 1 << 20, 0, 0o700), Mkdir(below("e"), 0o755),
                                       Attach(9, below("e"), 6)))  # fmt: skip

    def trace(self, plan: bytes) -> None:
        log = self.area / "trace"
        for name, data in (("plan", plan), ("env", b"PATH=/usr/bin:/bin\0")):
            (self.area / name).write_bytes(data)
        # strace changes to the user and starts the helper with its setuid bit, as only root's strace can.
        passwd = self.area / "run.sh"
        passwd.write_text(f'exec {HELPER} run 8 9 -- true 8<"{self.area}/plan" 9<"{self.area}/env"\n')
        ids = ["setpriv", f"--reuid={USER}", f"--regid={USER}", f"--groups={GROUP}"]
        subprocess.run(["strace", "-ff", "-qq", "-v", "-s", "300", "-o", log, *ids, "sh", passwd], check=True, cwd="/")
        raised = 0
        for file in self.area.glob("trace.*"):
            raised += self.judge(file.read_text().splitlines())
            file.unlink()
        self.assertGreater(raised, 10)

    def judge(self, lines: list[str]) -> int:
        """How often a capability was raised in this process; every call in between is looked at."""
        start = next((n for n, line in enumerate(lines) if line.startswith(f'execve("{HELPER}"')), None)
        begins = 0 if start is None else start + 1
        if start is None and not any("capset(" in line for line in lines):
            return 0
        effective, raised, door = start is not None, 0, start is not None
        for line in lines[begins:]:
            if line.startswith("capset("):
                # The first one closes the door behind root.
                effective = not re.search(r"effective=0[,}]", line)
                raised += effective and not door
                door = False
            elif line.startswith("execve("):
                self.assertFalse(effective, line)
                break
            elif door:
                # With root's rights: nothing that names a file.
                self.assertNotRegex(line, r'"', line)
            elif effective:
                self.assertRegex(line, self.ALLOWED)
        return raised


for case in (Attacks, Trace):
    for name in dir(launches.Launches) + dir(Helper):
        if name.startswith("test_") and name not in case.__dict__:
            setattr(case, name, None)  # each once


if __name__ == "__main__":
    unittest.main()
