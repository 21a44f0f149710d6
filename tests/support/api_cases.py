"""What must hold of the Python API, as a program: `api_cases.py ENGINE MODE`, run by the user that it is about.

It imports nothing of the tests. Each case is a function; after each, the process and the home are as they were before.
"""

import asyncio
import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

from sandbox import (
    CallError,
    CommandFailedError,
    Sandbox,
    SandboxError,
    SandboxExecutor,
    TimeoutExpiredError,
    prepare,
    run,
    run_async,
)
from sandbox.api import process
from sandbox.errors import CommandError, UsageError

ENGINE, MODE = sys.argv[1:]
HOW = {"engine": ENGINE, "mode": MODE}
STUBBORN = "trap '' TERM HUP INT; (trap '' TERM; exec sleep 987) & setsid sleep 987 & echo started; sleep 987"


def archive(name, **files):
    with zipfile.ZipFile(name, "w") as file:
        for entry, text in files.items():
            file.writestr(entry, text)
    return name


def case_what_is_captured():
    done = run(["sh", "-c", "cat; echo err >&2; exit 3"], input="in", text=True, capture_output=True, **HOW)
    assert (done.returncode, done.stdout, done.stderr) == (3, "in", "err\n"), done
    assert (done.report["mode"], done.report["engine"], done.cause) == (MODE, ENGINE, "exited")
    assert done.report["command"][0] == "sh"
    done = run([b"printf", b"\\377"], stdout=subprocess.PIPE, **HOW)
    assert (done.stdout, done.stderr) == (b"\xff", b"")


def case_ends():
    assert run(["sh", "-c", "kill -9 $$"], **HOW).returncode == -9
    with contextlib.suppress(CommandFailedError):
        run(["false"], check=True, **HOW)
        raise AssertionError
    try:
        run(["sh", "-c", "echo out; exit 7"], check=True, capture_output=True, **HOW)
    except subprocess.CalledProcessError as error:
        assert isinstance(error, SandboxError)
        assert (error.returncode, error.stdout, str(error)) == (7, b"out\n", "sh -c echo out; exit 7: ended with 7")
    for name, code in (("no-such-command", 127), ("/etc/passwd", 126)):
        try:
            run([name], capture_output=True, **HOW)
        except CommandError as error:
            assert error.exit_code == code
            assert name in str(error)
        else:
            raise AssertionError(name)


def case_where_it_runs():
    Path("sub").mkdir()
    box = Sandbox(**HOW)
    env = {"PATH": os.environ["PATH"], "ONE": "1"}
    shown = ["sh", "-c", "pwd; env | grep -c ^ONE=; env | grep -c ^HOME="]
    assert box.run(shown, cwd="sub", env=env, text=True, capture_output=True).stdout == f"{os.getcwd()}/sub\n1\n0\n"
    assert box.run(shown, text=True, capture_output=True).stdout == f"{os.getcwd()}\n0\n1\n"
    assert Sandbox(env={"ONE": "x"}, **HOW).run(shown, text=True, capture_output=True).stdout.split()[1:] == ["1", "1"]
    job = Sandbox(isolation="job", **HOW)
    assert job.run(["pwd"], cwd="sub", text=True, capture_output=True).stdout == f"{os.getcwd()}/sub\n"
    Path("sub").rmdir()
    for bad in ("sub", "/etc/passwd"):
        with contextlib.suppress(UsageError):
            box.run(["true"], cwd=bad)
            raise AssertionError(bad)
    box.close()
    job.close()


def case_time_is_up():
    for level in ("none", "job"):
        try:
            run(["sh", "-c", STUBBORN], timeout=0.6, capture_output=True, isolation=level, **HOW)
        except subprocess.TimeoutExpired as error:
            assert isinstance(error, TimeoutExpiredError)
            assert error.output in (b"", b"started\n"), error.output
        else:
            raise AssertionError(level)
    done = Sandbox(timeout=0.3, **HOW).run(["sleep", "987"], capture_output=True)
    assert (done.returncode, done.timed_out) == (124, True)


def case_it_streams():
    box = prepare(**HOW)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with box.spawn(["cat"], text=True, **pipes) as started:
        for word in ("one\n", "two\n"):
            started.stdin.write(word)
            started.stdin.flush()
            assert started.stdout.readline() == word
        assert started.poll() is None
    assert started.returncode == -signal.SIGTERM
    with box.spawn(["sh", "-c", STUBBORN], stdout=subprocess.PIPE) as started:
        assert started.stdout.readline() == b"started\n"
        started.kill()
        assert started.wait(30) == -signal.SIGKILL
    with box.spawn(["sh", "-c", "exit 5"]) as started:
        assert started.result().returncode == 5
    box.close()
    with contextlib.suppress(UsageError):
        box.run(["true"])
        raise AssertionError


def case_many_threads_and_one_archive():
    name = archive("many.zip", **{f"f{n}": f"{n}\n" * 500 for n in range(40)})
    with Sandbox(dynamic=f"t:{name}", **HOW) as box:
        seen = []

        def work():
            script = "cd $SANDBOX_DYNAMIC/t && cat f* | wc -l && rm -r * && ls | wc -l"
            seen.extend(box.run(["sh", "-c", script], text=True, capture_output=True).stdout.split() for _ in range(2))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [["20000", "0"]] * 8, seen
    os.unlink(name)


def case_what_changes_is_noticed():
    archive("changing.zip", text="old")
    with Sandbox(static="t:changing.zip", **HOW) as box:
        show = ["sh", "-c", "cat $SANDBOX_STATIC/t/text"]
        assert box.run(show, capture_output=True).stdout == b"old"
        archive("next.zip", text="new")
        os.rename("next.zip", "changing.zip")
        assert box.run(show, capture_output=True).stdout == b"new"
        os.unlink("changing.zip")
        with contextlib.suppress(SandboxError):
            box.run(show)
            raise AssertionError


def case_isolated_at_once():
    with Sandbox(isolation="job", **HOW) as box:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        running = [box.spawn(["sh", "-c", "id -u; read x"], text=True, **pipes) for _ in range(3)]
        ids = [started.stdout.readline().strip() for started in running]
        if MODE == "root" and ENGINE == "native":
            assert len(set(ids)) == 3, "started by root, each is somebody else"
        for started in running:
            started.close()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            box.run(["true"])
        assert len(os.listdir("/proc/self/fd")) == before, "runs of an open sandbox keep nothing"


def case_asyncio():
    async def both():
        done = await asyncio.gather(*(run_async(["echo", str(n)], capture_output=True, **HOW) for n in range(3)))
        assert [result.stdout for result in done] == [b"0\n", b"1\n", b"2\n"]
        assert (await run_async(["cat"], input=b"in", capture_output=True, **HOW)).stdout == b"in"
        for level in ("none", "job"):
            box = Sandbox(isolation=level, **HOW)
            started = await box.spawn_async(["sh", "-c", STUBBORN], stdout=subprocess.PIPE)
            assert await started.stdout.readline() == b"started\n"
            waiting = asyncio.create_task(started.result())
            await asyncio.sleep(0.1)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
                raise AssertionError
            assert started.returncode == -signal.SIGKILL
            box.close()
        early = asyncio.create_task(run_async(["sleep", "987"], **HOW))
        await asyncio.sleep(0)
        early.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await early
        with contextlib.suppress(TimeoutExpiredError):
            await run_async(["sleep", "987"], timeout=0.2, **HOW)
            raise AssertionError

    asyncio.run(both())


def case_what_is_saved():
    if MODE == "setuid":
        return
    archive("base.zip", text="old")
    script = "cd $SANDBOX_DYNAMIC/t && echo new > text"
    run(["sh", "-c", script], check=True, dynamic="t:base.zip", save="t=saved", **HOW)
    shown = run(["sh", "-c", "cat $SANDBOX_STATIC/t/text"], static="t:base.zip+@saved", capture_output=True, **HOW)
    assert shown.stdout == b"new\n"
    with contextlib.suppress(TimeoutExpiredError):
        run(["sh", "-c", STUBBORN], dynamic="t:base.zip", save="t=never", timeout=0.6, stdout=subprocess.DEVNULL, **HOW)
        raise AssertionError
    os.unlink("base.zip")


class OwnError(Exception):
    pass


def inside(what, *values):
    """Called in a sandbox."""
    if what == "add":
        return sum(values)
    if what == "look":
        return os.getuid(), os.getcwd(), os.listdir("/tmp")
    raise {"value": ValueError, "own": OwnError}[what](*values)


def case_executor():
    with SandboxExecutor(2, **HOW) as pool:
        assert list(pool.map(inside, ["add"] * 3, [1, 2], [10, 20])) == [11, 22]
        uid, where, private = pool.submit(inside, "look").result()
        assert (where, private) == (os.getcwd(), [])
        assert (uid != os.getuid()) == (MODE == "root")
        for what, kind, said in (("value", ValueError, "no"), ("own", CallError, "OwnError: no")):
            error = pool.submit(inside, what, "no").exception()
            assert (type(error), str(error)) == (kind, said), error
            assert "in inside" in (error.__cause__ or error).remote
        assert "lambda" in str(pool.submit(lambda: 1).exception())
        done = pool.submit_command(["sh", "-c", "echo $((6 * 7)); exit 2"]).result()
        assert (done.returncode, done.stdout) == (2, b"42\n")


def case_executor_of_level_strict():
    with SandboxExecutor(1, isolation="strict", **HOW) as pool:
        assert pool.submit(inside, "add", 1, 10).result() == 11
        # This Python and the modules may lie anywhere; nothing else of the host's does.
        needed = {Path(path).parts[1] for path in (sys.prefix, sys.base_prefix, *filter(None, sys.path))}
        assert not set(pool.submit(os.listdir, "/").result()) & {"boot", "opt", "srv"} - needed


def case_executor_with_odd_paths():
    top = Path(tempfile.mkdtemp(dir="/tmp"))
    top.chmod(0o755)
    (top / "link").symlink_to(".")
    for number, where in enumerate((top / "a:b", top / "link" / "plain")):
        where.mkdir()
        (where / f"from_there{number}.py").write_text("def found():\n    return __file__\n")
        sys.path.append(str(where))
        found = importlib.import_module(f"from_there{number}").found
        for level in ("job", "strict"):
            with SandboxExecutor(1, isolation=level, **HOW) as pool:
                assert pool.submit(found).result() == f"{where}/from_there{number}.py"
    del sys.path[-2:]
    shutil.rmtree(top)


def case_executor_from_the_root_directory():
    here = os.getcwd()
    os.chdir("/")
    try:
        for level in ("job", "strict"):
            with SandboxExecutor(1, isolation=level, **HOW) as pool:
                assert pool.submit(len, "abc").result() == 3
    finally:
        os.chdir(here)


def case_files_of_an_account():
    os.umask(0o027)
    run(["true"], report="r.json", trace="t.json", **HOW)
    assert Path("r.json").stat().st_mode & 0o777 == 0o640
    assert '"cause": "exited"' in Path("r.json").read_text()
    os.unlink("r.json")
    os.unlink("t.json")
    try:
        run(["true"], report="r.json", trace="./r.json", **HOW)
        raise AssertionError
    except SandboxError as error:
        assert "one and the same file" in str(error), error
    assert not Path("r.json").exists()


def state():
    """What a call must leave as it was."""
    home = Path(os.environ["SANDBOX_HOME"])
    masks = Path("/proc/self/status").read_text().splitlines()
    return {
        "directory": os.getcwd(),
        "signals": [(number, signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "masks": [line for line in masks if line.startswith(("SigBlk", "SigIgn", "SigCgt", "Umask"))],
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "left": [
            str(entry)
            for name in ("procdirs", "records")
            if (home / name).is_dir()
            for entry in (home / name).iterdir()
        ],
        "children": Path("/proc/thread-self/children").read_text(),
        "sleeping": subprocess.run(["pgrep", "-U", str(os.getuid()), "-fx", "sleep 987"], capture_output=True).stdout,
    }


def main():
    process.GRACE = 0.2
    run(["true"], isolation="job", **HOW)  # what is imported and remembered once
    asyncio.run(run_async(["true"], **HOW))
    for name, case in [*globals().items()]:
        if not name.startswith("case_"):
            continue
        if name == "case_files_of_an_account":
            os.umask(0o027)
        before = state()
        case()
        deadline = time.monotonic() + 10
        while (after := state()) != before and time.monotonic() < deadline:
            time.sleep(0.05)
        different = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
        assert not different, (name, different)
        print("ok", name, flush=True)


if __name__ == "__main__":
    main()
