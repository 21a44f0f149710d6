"""Launches of the native engine with plans from the Python codec, as root and as an unprivileged user.

    PYTHONPATH=. python3 setuid-helper/tests/launches.py [-v] [CLASS[.TEST] ...]

Needs root, and leaves nothing behind. $ENGINE is the program, setuid-helper/target/release/sandbox-engine if unset.
"""

# ruff: noqa: N802, PLW1510, PT009, PT027, S108
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from sandbox.codec import encode
from sandbox.plan import (
    Attach,
    Base,
    Chdir,
    DeathSignal,
    Extract,
    Fuse,
    Guard,
    IdMap,
    Image,
    Mkdir,
    Mode,
    NoNewPrivs,
    Overlay,
    Place,
    PlaceEnv,
    Plan,
    PlanFlag,
    Run,
    Scratch,
    SetPropagation,
    Source,
    SourceKind,
    Tmpfs,
    Tree,
    UnsetEnv,
    Unshare,
)

ENGINE = Path(os.environ.get("ENGINE") or Path(__file__).resolve().parent.parent / "target/release/sandbox-engine")
USER = 12345
TOP = Place(Base.PROCDIR, b"")
MARKER = "sandbox:"


def below(path: str) -> Place:
    return Place(Base.PROCDIR, path.encode())


def source(path: Path) -> Source:
    status = path.stat()
    if path.is_dir():
        return Source(SourceKind.DIRECTORY, bytes(path), status.st_dev, status.st_ino)
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return Source(SourceKind.FILE, bytes(path), status.st_dev, status.st_ino, status.st_size, *times)


class Launches(unittest.TestCase):
    """Both modes; `Userns` runs the same cases again."""

    mode = Mode.ROOT
    uid = 0

    def setUp(self) -> None:
        self.area = Path(tempfile.mkdtemp(prefix="sbx-launches-", dir="/var/tmp"))
        self.area.chmod(0o755)
        self.addCleanup(shutil.rmtree, self.area)
        self.engine = self.area / "engine"
        shutil.copy(ENGINE, self.engine)
        self.home = self.area / "home"
        for directory in (self.home, self.home / "procdirs", self.home / "records", self.area / "disk"):
            directory.mkdir(mode=0o700)
            os.chown(directory, self.uid, self.uid)
        self.tree = self.area / "tree"
        (self.tree / "sub").mkdir(parents=True)
        (self.tree / "f").write_text("hello\n")
        (self.tree / "sub/g").write_text("g\n")
        (self.tree / "tool").write_text('#!/bin/sh\necho "${0##*/}" "$@"\n')
        (self.tree / "tool").chmod(0o755)
        (self.tree / "broken").write_text("#!/no/such/interpreter\n")
        (self.tree / "broken").chmod(0o755)
        for path in (self.tree, *self.tree.rglob("*")):
            os.chown(path, self.uid, self.uid)

    def doCleanups(self) -> bool:
        """What every launch must leave: nothing."""
        if hasattr(self, "home") and self.home.exists():
            self.assertEqual(os.listdir(self.home / "procdirs"), [])
            self.assertEqual([n for n in os.listdir(self.home / "records") if not n.startswith(".")], [])
            self.assertNotIn(str(self.area), Path("/proc/self/mountinfo").read_text())
        return super().doCleanups()

    # -- plans ------------------------------------------------------------------------------------------------

    def plan(self, *steps: object, sources: tuple[Source, ...] = (), flags: int = 0, death: bool = True) -> bytes:
        names = [Unshare(0x20000)]
        if self.mode == Mode.USERNS:
            names = [Unshare(0x10020000), IdMap(self.uid, self.uid, self.uid, self.uid)]
        start = [*names, SetPropagation(1), Guard(), Tmpfs(0, 1 << 26, 0, 0o700), Attach(0, TOP, 6)]
        end = [NoNewPrivs()] if self.mode == Mode.USERNS else []
        if death:
            end.append(DeathSignal(9))
        every = (*start, *steps, PlaceEnv(b"T", TOP), *end)
        return encode(Plan(self.mode, PlanFlag(flags), self.uid, self.uid, source(self.home), sources, every))

    def start(
        self, plan: bytes, *command: str, fds: dict[int, int] | None = None, **options: object
    ) -> subprocess.Popen[str]:
        fd = os.memfd_create("plan")
        os.write(fd, plan)
        pairs = [f"{index}={number}" for index, number in (fds or {}).items()]
        ids = {"user": self.uid, "group": self.uid, "extra_groups": []} if self.uid else {}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        argv = [str(self.engine), "run", str(fd), "-", *pairs, "--", *command]
        keep = [fd, *(fds or {}).values()]
        process = subprocess.Popen(argv, text=True, pass_fds=keep, cwd="/", **{**pipes, **ids, **options})
        os.close(fd)
        return process

    def run_plan(self, plan: bytes, *command: str, **options: object) -> tuple[int, str, str]:
        process = self.start(plan, *command, **options)
        out, err = process.communicate(timeout=20)
        return process.returncode, out, err

    def check(self, plan: bytes, script: str, expected: str, code: int = 0, **options: object) -> None:
        got = self.run_plan(plan, "sh", "-c", script, **options)
        self.assertEqual(got, (code, expected, ""))

    # -- how it ends ------------------------------------------------------------------------------------------

    def test_exit_codes(self) -> None:
        self.check(self.plan(), "exit 42", "", 42)
        for argv, code, text in (
            (["no-such-command"], 127, "command not found"),
            (["/nowhere/at/all"], 127, "command not found"),
            ([str(self.tree / "f/x")], 127, "command not found"),
            ([str(self.tree / "broken")], 126, "interpreter"),
            ([str(self.tree / "f")], 126, "Permission denied"),
            (["/tmp"], 126, "Permission denied"),
            ([], 125, "no command"),
        ):
            got, out, err = self.run_plan(self.plan(), *argv)
            self.assertEqual((got, out, err.count("\n")), (code, "", 1), err)
            self.assertTrue(err.startswith("sandbox: ") and text in err, err)

    def test_death_by_signal(self) -> None:
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGRTMIN):
            self.check(self.plan(), f"kill -{int(number)} $$", "", -number)

    def test_signals_are_forwarded(self) -> None:
        script = "trap 'echo usr1; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
        process = self.start(self.plan(), "sh", "-c", script)
        self.assertEqual(process.stdout.readline(), "ready\n")
        process.send_signal(signal.SIGUSR1)
        self.assertEqual((process.communicate(timeout=10)[0], process.returncode), ("usr1\n", 3))

    def test_stop_and_continue(self) -> None:
        process = self.start(self.plan(), "sh", "-c", "echo ready; kill -STOP $$; echo again")
        self.assertEqual(process.stdout.readline(), "ready\n")
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        self.assertTrue(os.WIFSTOPPED(status))
        process.send_signal(signal.SIGCONT)
        self.assertEqual((process.communicate(timeout=10)[0], process.returncode), ("again\n", 0))

    def test_what_is_left_is_ended(self) -> None:
        before = time.monotonic()
        self.check(self.plan(), "setsid sh -c 'trap \"\" TERM; sleep 1000 & sleep 1000' & sleep 0.2; exit 3", "", 3)
        self.assertLess(time.monotonic() - before, 5)

    def test_leave_running(self) -> None:
        script = "(echo x >$T/f; sleep 0.7; cat $T/f >$1/out) >/dev/null 2>&1 & exit 3"
        plan = self.plan(flags=1, death=False)
        self.assertEqual(self.run_plan(plan, "sh", "-c", script, "sh", str(self.area / "disk"))[0], 3)
        self.check(self.plan(), "true", "")  # cleans nothing that lives
        self.assertEqual(len(os.listdir(self.home / "procdirs")), 1)
        deadline = time.monotonic() + 5
        while os.listdir(self.home / "records") and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual((self.area / "disk/out").read_text(), "x\n")
        self.assertEqual(self.run_plan(plan, "true"), (0, "", ""))

    def test_dispositions(self) -> None:
        ignored = lambda: [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)]  # noqa: E731
        got, out, _ = self.run_plan(self.plan(), "grep", "-E", "Sig(Ign|Blk)", "/proc/self/status", preexec_fn=ignored)
        # What the suite itself was started with ignored (a CI's wrapper may do that) stays so, but for PIPE and XFSZ.
        status = Path("/proc/self/status").read_text()
        before = int(status.split("SigIgn:")[1].split()[0], 16) & ~(1 << 12 | 1 << 24)
        self.assertEqual((got, out), (0, f"SigBlk:\t{0:016x}\nSigIgn:\t{before | 1 | 1 << 16:016x}\n"))

    # -- what the command gets --------------------------------------------------------------------------------

    def test_descriptors(self) -> None:
        reader, writer = os.pipe()
        fd = os.memfd_create("plan")
        os.write(fd, self.plan())
        argv = [str(self.engine), "run", str(fd), "-", "--", "sh", "-c", "ls -x /proc/$$/fd"]
        got = subprocess.run(
            argv, pass_fds=(fd, writer), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, **self.ids()
        )
        self.assertEqual(got.stdout.split(), ["0", "1", "2", str(writer)])
        for number in (fd, reader, writer):
            os.close(number)

    def ids(self) -> dict[str, object]:
        return {"user": self.uid, "group": self.uid, "extra_groups": []} if self.uid else {}

    def test_closed_standard_descriptors(self) -> None:
        argv = (
            f'exec {self.engine} run 9 - -- sh -c \'ls -x /proc/$$/fd > "{self.area}/disk/out"\' 9<"$1" 0<&- 1>&- 2>&-'
        )
        (self.area / "plan").write_bytes(self.plan())
        got = subprocess.run(["sh", "-c", argv, "sh", self.area / "plan"], **self.ids())
        self.assertEqual(got.returncode, 0)
        self.assertNotIn("3", (self.area / "disk/out").read_text().split())

    def test_environment(self) -> None:
        env = os.memfd_create("env")
        os.write(env, b"A=1\0B=x\ny\0GONE=1\0PATH=/usr/bin:/bin\0")
        plan = os.memfd_create("plan")
        os.write(plan, self.plan(UnsetEnv(b"GONE")))
        argv = [str(self.engine), "run", str(plan), str(env), "--", "env", "-0"]
        got = subprocess.run(argv, pass_fds=(plan, env), stdout=subprocess.PIPE, **self.ids())
        names = [entry.partition(b"=")[0] for entry in got.stdout.split(b"\0")]
        self.assertEqual(names, [b"A", b"B", b"PATH", b"T", b""])
        os.close(plan)
        os.close(env)

    def test_run_and_chdir(self) -> None:
        tree = source(self.tree)
        steps = [Tree(1, 0, 0), Mkdir(below("s/t"), 0o755), Attach(1, below("s/t"), 7)]
        plan = self.plan(*steps, Run(below("s/t"), b"tool"), Chdir(below("s/t")), sources=(tree,))
        self.assertEqual(self.run_plan(plan, "a", "b c"), (0, "tool a b c\n", ""))
        plan = self.plan(*steps, Chdir(below("s/t/sub")), sources=(tree,))
        self.check(plan, "cat g; touch x 2>/dev/null || echo ro", "g\nro\n")
        for path, code in ((b"f", 126), (b"sub", 126), (b"none", 127), (b"../../../../../bin/sh", 127)):
            got, _, err = self.run_plan(self.plan(*steps, Run(below("s/t"), path), sources=(tree,)))
            self.assertEqual((got, err.count("\n")), (code, 1), err)

    # -- mounts -----------------------------------------------------------------------------------------------

    def test_overlay_of_a_directory(self) -> None:
        steps = [
            Tree(1, 0, 1),
            Tmpfs(2, 1 << 24, 0, 0o700),
            Overlay(3, (1,), 2, 1 if self.mode == Mode.USERNS else 0),
            Mkdir(below("d"), 0o755),
            Attach(3, below("d"), 6),
            Attach(1, Place(Base.ROOT, bytes(self.area / "disk")), 7),
        ]
        script = f"""cd $T/d && echo x >f && rm -r sub && ls && cat {self.area}/disk/f; ls -A $T
            grep -c layers /proc/self/mountinfo"""
        self.check(self.plan(*steps, sources=(source(self.tree),)), script, "broken\nf\ntool\nhello\nd\n0\n", 1)
        self.assertEqual((self.tree / "f").read_text(), "hello\n")

    def test_many_layers(self) -> None:
        count = 25
        trees = [Tree(i, 0, 0) for i in range(1, count)]
        overlay = Overlay(100, tuple(range(1, count)), 0, 1 if self.mode == Mode.USERNS else 0)
        plan = self.plan(
            *trees, overlay, Mkdir(below("d"), 0o755), Attach(100, below("d"), 6), sources=(source(self.tree),)
        )
        got, out, err = self.run_plan(plan, "sh", "-c", "cat $T/d/f")
        self.assertIn((got, out), ((0, "hello\n"), (125, "")), err)  # overlay may refuse the same layer twice

    def test_scratch_on_disk(self) -> None:
        steps = [Scratch(0, 1, 2), Attach(1, TOP, 6), Tree(3, 1, 0)]
        if self.mode == Mode.ROOT:
            steps += [Overlay(4, (3,), 2, 0), Mkdir(below("d"), 0o755), Attach(4, below("d"), 6)]
        plan = self.plan(*steps, sources=(source(self.area / "disk"), source(self.tree)))
        self.check(plan, f"echo x > $T/x; ls {self.area}/disk | cut -c1-8; mkdir -m 0 $T/shut", "sandbox-\n")
        self.assertEqual(os.listdir(self.area / "disk"), [])

    def test_extract(self) -> None:
        archive = self.area / "a.tar"
        subprocess.run(["tar", "-cf", archive, "-C", self.tree, "."], check=True)
        argv = (b"/bin/sh", b"-c", b"exec tar -xf - -C /dev/fd/3")
        steps = [Tmpfs(1, 1 << 24, 0, 0o755), Extract(1, 0, argv), Mkdir(below("t"), 0o755), Attach(1, below("t"), 7)]
        self.check(self.plan(*steps, sources=(source(archive),)), "cat $T/t/f", "hello\n")
        steps[1] = Extract(1, 0, (b"/bin/sh", b"-c", b"echo no such thing; exit 3"))
        got, out, err = self.run_plan(self.plan(*steps, sources=(source(archive),)), "true")
        self.assertEqual((got, out, err), (125, "", f"sandbox: Extract: cannot unpack {archive}: no such thing\n"))

    def test_handed_over(self) -> None:
        fd = os.memfd_create("archive")
        os.write(fd, b"content")
        argv = (b"/bin/sh", b"-c", b"cat > /dev/fd/3/f")
        steps = [Tmpfs(1, 1 << 24, 0, 0o755), Extract(1, 0, argv), Mkdir(below("t"), 0o755), Attach(1, below("t"), 7)]
        memory = (Source(SourceKind.MEMORY, b""),)
        self.check(self.plan(*steps, sources=memory), "cat $T/t/f", "content", fds={0: fd})
        got, _, err = self.run_plan(self.plan(*steps, sources=memory), "true")
        self.assertEqual((got, "not handed over" in err), (125, True), err)
        os.close(fd)

    def test_places_that_were_swapped(self) -> None:
        tree, disk = source(self.tree), self.area / "disk"
        for place in (Place(Base.ROOT, bytes(disk), tree.dev, tree.ino), Place(Base.ROOT, b"/proc/self/fd/0/..")):
            got, _, err = self.run_plan(self.plan(Tree(1, 0, 0), Attach(1, place, 7), sources=(tree,)), "true")
            self.assertEqual((got, err.startswith("sandbox: Attach: ")), (125, True), err)
        (self.tree / "f").write_text("changed\n")
        moved = tree.replace(ino=tree.ino + 1)
        got, _, err = self.run_plan(self.plan(Tree(1, 0, 0), sources=(moved,)), "true")
        self.assertEqual((got, "is not what it was" in err), (125, True), err)

    def test_guard(self) -> None:
        self.check(self.plan(), "touch $T/../x 2>&1 | grep -o Read-only", "Read-only\n")

    # -- what the dead leave ----------------------------------------------------------------------------------

    def test_stale_runs_are_cleaned(self) -> None:
        plan = self.plan(Scratch(0, 1, 2), sources=(source(self.area / "disk"),), death=False)
        process = self.start(plan, "sh", "-c", "echo ready; exec sleep 1000")
        process.stdout.readline()
        command = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        process.kill()
        process.wait()  # its orphan holds the other ends of the pipes
        process.stdout.close()
        process.stderr.close()
        self.assertEqual(len(os.listdir(self.home / "procdirs")), 1)
        self.assertEqual(len(os.listdir(self.area / "disk")), 1)
        self.check(self.plan(), "true", "")
        self.assertEqual(os.listdir(self.area / "disk"), [])
        with contextlib.suppress(FileNotFoundError):
            self.assertIn("State:\tZ", Path(f"/proc/{command}/status").read_text())

    def test_records(self) -> None:
        process = self.start(self.plan(), "sh", "-c", "echo ready; sleep 1000", 'a\nb"\u00e9')
        process.stdout.readline()
        (name,) = os.listdir(self.home / "records")
        self.assertEqual((name, os.listdir(self.home / "procdirs")), (str(process.pid), [name]))
        with open(self.home / "records" / name, "rb") as file:
            facts = json.loads(file.read())
            with self.assertRaises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.assertEqual(facts["command"][-1], 'a\nb"\u00e9')
        self.assertEqual((facts["pid"], facts["mode"], facts["scratch"]), (process.pid, self.mode.name.lower(), []))
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        self.assertEqual(facts["start_time"], int(fields[19]))
        self.check(self.plan(), "true", "")  # cleans nothing that lives
        self.assertEqual(os.listdir(self.home / "procdirs"), [name])
        process.terminate()
        process.communicate()
        self.assertEqual(process.returncode, -signal.SIGTERM)

    def test_names_that_are_taken(self) -> None:
        script = 'mkdir "$1/procdirs/$$"; exec "$2" run 9 - -- sh -c "echo \\${T##*/}" 9<"$3"'
        (self.area / "plan").write_bytes(self.plan())
        argv = ["sh", "-c", script, "sh", self.home, self.engine, self.area / "plan"]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, **self.ids())
        self.assertEqual(process.communicate()[0], f"{process.pid}.1\n")
        os.rmdir(self.home / "procdirs" / str(process.pid))

    # -- refusals ---------------------------------------------------------------------------------------------

    def test_refusals(self) -> None:
        def refused(data: bytes, text: str) -> None:
            got, out, err = self.run_plan(data, "true")
            self.assertEqual((got, out, err.count("\n")), (125, "", 1), err)
            self.assertTrue(err.startswith("sandbox: ") and text in err, err)

        good = self.plan()
        refused(good[:-1], "cannot decode")
        refused(b"", "cannot decode")
        refused(bytes(3 << 20), "longer than")
        refused(good[:10] + b"\2" + good[11:], "setuid mode")
        refused(good[:12] + b"\1\0\0\0" + good[16:], "is for user 1")
        for argv in (
            [],
            ["run"],
            ["run", "x", "-", "--"],
            ["run", "99", "-", "--", "true"],
            ["run", "0", "0", "--"],
            ["run", "0"],
        ):
            got = subprocess.run([self.engine, *argv], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            self.assertEqual((got.returncode, got.stderr.startswith("sandbox: ")), (125, True), argv)


class Images(Launches):
    """Root only: the kernel's own squashfs."""

    def image(self) -> Path:
        path = self.area / "tree.sfs"
        subprocess.run(["mksquashfs", self.tree, path, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
        return path

    def test_images_share_a_loop_device(self) -> None:
        sources = (source(self.image()),)
        steps = [
            Image(1, 0),
            Tmpfs(2, 1 << 24, 0, 0o700),
            Overlay(3, (1,), 2, 0),
            Mkdir(below("s"), 0o755),
            Attach(1, below("s"), 7),
            Mkdir(below("d"), 0o755),
            Attach(3, below("d"), 6),
        ]
        script = "cat $T/s/f; cd $T/d; echo x >f; cat f; grep -o '/dev/loop[0-9]*' /proc/self/mountinfo; read x"
        plan = self.plan(*steps, sources=sources)
        runs = [self.start(plan, "sh", "-c", script, stdin=subprocess.PIPE) for _ in range(4)]
        devices = set()
        for run in runs:
            self.assertEqual([run.stdout.readline() for _ in range(2)], ["hello\n", "x\n"])
            devices.add(run.stdout.readline())
        self.assertEqual(len(devices), 1, devices)
        for run in runs:
            run.communicate("\n")
        self.assertFalse(Path(f"/sys/block/{devices.pop().strip()[5:]}/loop").exists())

    def test_memory_image(self) -> None:
        fd = os.memfd_create("image")
        os.write(fd, self.image().read_bytes())
        memory = (Source(SourceKind.MEMORY, b""),)
        plan = self.plan(Image(1, 0), Mkdir(below("s"), 0o755), Attach(1, below("s"), 7), sources=memory)
        self.check(plan, "cat $T/s/f", "hello\n", fds={0: fd})
        os.close(fd)

    def test_no_image(self) -> None:
        path = self.area / "bad.sfs"
        path.write_bytes(b"hsqs" + bytes(8192))
        got, _, err = self.run_plan(self.plan(Image(1, 0), sources=(source(path),)), "true")
        self.assertEqual((got, err.startswith(f"sandbox: Image: {path}: cannot mount")), (125, True), err)


class Userns(Launches):
    mode = Mode.USERNS
    uid = USER


class RootUserns(Images):
    """A user namespace of root's: FUSE, where /dev/fuse is root's alone."""

    mode = Mode.USERNS

    def test_fuse(self) -> None:
        program = shutil.which("squashfuse_ll")
        if program is None:
            self.skipTest("squashfuse_ll is not installed")
        sources = (source(self.image()),)
        steps = [Fuse(1, 0, program.encode()), Mkdir(below("s"), 0o755), Attach(1, below("s"), 7)]
        self.check(self.plan(*steps, sources=sources), "cat $T/s/f $T/s/sub/g", "hello\ng\n")

    test_images_share_a_loop_device = test_memory_image = None


if __name__ == "__main__":
    unittest.main()
