"""A user's program for `mypy --strict` (make lint), never run: what is right has its type, what is wrong is seen."""

import asyncio
import subprocess
from pathlib import Path

from sandbox import Process, Result, Sandbox, SandboxError, prepare, run, run_async


def text() -> str:
    done: Result[str] = run(["echo"], text=True, capture_output=True, input="x", isolation="job", memory="1G")
    return done.stdout


def raw() -> bytes:
    with Sandbox(static=[Path("a.zip"), "b:b.zip"], env={"A": "1"}, timeout="20m", nofile=100) as box:
        box.run(["make"], check=True, timeout=5.0, env={"PATH": "/bin"}, cwd=Path("src"))
        return box.run(["echo"], capture_output=True).stdout


def streams() -> list[str]:
    box: Sandbox = prepare(isolation="job")
    try:
        with box.spawn(["make"], text=True, stdout=subprocess.PIPE) as process:
            started: Process[str] = process
            return list(started.stdout)
    except SandboxError as error:
        return [error.message, error.hint, str(error.exit_code)]


async def later() -> int:
    first, second = await asyncio.gather(run_async(["a"]), Sandbox().run_async(["b"], input=b"x"))
    return first.returncode + second.returncode


Sandbox(isolaton="job")  # type: ignore[call-arg]
Sandbox(isolation="jobs")  # type: ignore[typeddict-item, arg-type, unused-ignore]
run(["x"], chek=True)  # type: ignore[call-overload]
run(["x"], text=True, input=b"bytes")  # type: ignore[call-overload]
number: int = run(["x"]).stdout  # type: ignore[assignment]
