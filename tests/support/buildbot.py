"""A Buildbot master and worker from PyPI, on loopback: `force`, `stop`, `wait`, `log`."""

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.runner import PATH
from tests.support.users import Identity

PACKAGES = ("buildbot", "buildbot-worker", "buildbot-www", "setuptools")
SUCCESS, FAILURE, EXCEPTION, CANCELLED = 0, 2, 4, 6
_PATIENCE = 180

_HEAD = """
import sys
sys.path.insert(0, {package!r})
from buildbot.plugins import schedulers, steps, util, worker
from sandbox.ci.buildbot import shell_command
c = BuildmasterConfig = {{}}
c["workers"] = [worker.Worker("w", "pass", max_builds=4)]
c["protocols"] = {{"pb": {{"port": "tcp:{pb}:interface=127.0.0.1"}}}}
c["www"] = {{"port": "tcp:{www}:interface=127.0.0.1"}}
c["db"] = {{"db_url": "sqlite:///state.sqlite"}}
c["buildbotNetUsageData"] = None
c["buildbotURL"] = "http://127.0.0.1:{www}/"
SANDBOX = {command!r}
{steps}
c["builders"] = [
    util.BuilderConfig(name=name, workernames=["w"], factory=util.BuildFactory(made)) for name, made in BUILDS.items()
]
c["schedulers"] = [schedulers.ForceScheduler(name="force", builderNames=list(BUILDS))]
"""


def install(directory: Path) -> Path:
    """An environment with Buildbot in it. Returns its bin."""
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    pip = [directory / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    subprocess.run([*pip, *PACKAGES], check=True)
    return directory / "bin"


class Buildbot:
    """Both of them, as one user, in `directory`."""

    def __init__(self, programs: Path, directory: Path, who: Identity, command: Path, steps: str) -> None:
        self._programs, self._directory, self._who = programs, directory, who
        pb, self._port = _free_ports(2)
        self._environment = {"PATH": PATH, "HOME": str(who.home), "SANDBOX_HOME": str(directory / "sandbox-home")}
        self._environment["LANG"] = "C.UTF-8"
        self._run("buildbot", "create-master", "master")
        package = str(Path(__file__).resolve().parents[2])
        text = _HEAD.format(package=package, pb=pb, www=self._port, command=str(command), steps=steps)
        (directory / "master" / "master.cfg").write_text(text)
        self._run("buildbot-worker", "create-worker", "worker", f"127.0.0.1:{pb}", "w", "pass")
        self.build_directory = directory / "worker"

    def _run(self, *words: str) -> None:
        done = subprocess.run([self._programs / words[0], *words[1:]], **self._options(), check=False)
        if done.returncode != 0:
            logs = [path.read_text()[-3000:] for path in self._directory.glob("*/twistd.log")]
            raise AssertionError("\n".join([f"{words}: {done.stdout}", *logs]))

    def _options(self) -> dict[str, Any]:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return {**self._who.popen_options(), **streams, "env": self._environment, "cwd": self._directory}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        started = []
        try:
            for program, directory in (("buildbot", "master"), ("buildbot-worker", "worker")):
                self._run(program, "start", directory)
                started.append((program, directory))
            self._until(lambda: any(one["connected_to"] for one in self._get("workers")["workers"]))
            yield
        finally:
            # What a test failed for is more telling than that a master takes its time to stop.
            for program, directory in reversed(started):
                subprocess.run([self._programs / program, "stop", directory], **self._options(), check=False)

    def force(self, builder: str) -> int:
        """Start a build; its id."""
        known = {one["name"]: one["builderid"] for one in self._get("builders")["builders"]}
        told = self._post("forceschedulers/force", "force", builderid=known[builder])
        request = next(iter(told["result"][1].values()))
        return int(self._until(lambda: self._get(f"buildrequests/{request}/builds")["builds"])[0]["buildid"])

    def stop(self, build: int) -> None:
        self._post(f"builds/{build}", "stop", reason="test")

    def wait(self, build: int) -> int:
        """Its result, when it has ended."""
        found = self._until(lambda: [one for one in self._get(f"builds/{build}")["builds"] if one["complete"]])
        return int(found[0]["results"])

    def log(self, build: int) -> str:
        """What its last step has printed so far."""
        steps = self._get(f"builds/{build}/steps")["steps"]
        if not steps:
            return ""
        logs = self._get(f"steps/{steps[-1]['stepid']}/logs")["logs"]
        if not logs:
            return ""
        lines = self._get(f"logs/{logs[0]['logid']}/contents")["logchunks"][0]["content"].splitlines()
        # o: standard output, e: standard error, h: Buildbot's own words.
        return "\n".join(line[1:] for line in lines if line[:1] in "oe")

    def until_printed(self, build: int, word: str) -> None:
        self._until(lambda: word in self.log(build).splitlines())

    def _until(self, what: Any) -> Any:
        end = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                if found := what():
                    return found
            assert time.monotonic() < end, "Buildbot takes too long"
            time.sleep(0.2)

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v2/{path}", timeout=60) as answer:
            return json.load(answer)

    def _post(self, path: str, method: str, **parameters: Any) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).encode()
        url = f"http://127.0.0.1:{self._port}/api/v2/{path}"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in found]
