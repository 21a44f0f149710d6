"""Start `sandbox` as a user would, with a clean environment and a home of its own."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.setuid import SetuidSystem
from tests.support.users import Identity

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Argument = str | bytes | os.PathLike[str]


class Area:
    """Directories of one test, reachable by every identity (pytest's own tmp_path is not)."""

    def __init__(self, path: Path, identities: Mapping[bool, Identity]) -> None:
        self.path = path
        self._identities = identities

    def dir(self, as_user: bool) -> Path:
        """A directory that belongs to the identity, 0755, made at the first use."""
        where = self.path / ("user" if as_user else "root")
        if not where.exists():
            who = self._identities[as_user]
            where.mkdir(mode=0o755)
            os.chown(where, who.uid, who.gid)
        return where

    def home(self, as_user: bool) -> Path:
        """The identity's $SANDBOX_HOME for this test. `sandbox` makes it."""
        return self.dir(as_user) / "sandbox-home"


class Runner:
    """`run_sandbox(args, as_user=...)`; `popen` for tests that talk to it while it runs.

    With `system` set, everything starts where the setuid helper is installed, the user being a member of its group.
    """

    def __init__(self, command: Path, identities: Mapping[bool, Identity], area: Area) -> None:
        self.command = command
        self.identities = identities
        self.area = area
        self.system: SetuidSystem | None = None
        # Programs that do a subcommand in place of the command.
        self.instead: dict[Argument, Path] = {}
        self._started: list[subprocess.Popen[Any]] = []

    def environment(self, as_user: bool, changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """What the command sees unless a test says otherwise; a value of None removes a variable."""
        who = self.identities[as_user]
        env: dict[str, str | None] = {"PATH": PATH, "HOME": str(who.home), "USER": who.name, "LOGNAME": who.name}
        env |= {"LANG": "C.UTF-8", "SANDBOX_HOME": str(self.area.home(as_user)), **(changes or {})}
        return {key: value for key, value in env.items() if value is not None}

    def __call__(
        self,
        args: Sequence[Argument],
        *,
        as_user: bool,
        env: Mapping[str, str | None] | None = None,
        input: str | None = None,  # noqa: A002  (subprocess.run's own word)
        cwd: Argument | None = None,
        timeout: float = 60,
        check: bool = False,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end. Output is text in which undecodable bytes survive as surrogates."""
        stdin = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
        output = {} if {"stdout", "stderr"} & options.keys() else {"capture_output": True}
        done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
            self._command(args, as_user, cwd),
            **{**self._options(as_user, env, cwd), **stdin, **output, **options},
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"exit {done.returncode} of sandbox {list(args)}\n{done.stdout}\n{done.stderr}")
        return done

    def popen(
        self,
        args: Sequence[Argument],
        *,
        as_user: bool,
        env: Mapping[str, str | None] | None = None,
        cwd: Argument | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start and return; killed and waited for at the end of the test if it is still there."""
        process: subprocess.Popen[str] = subprocess.Popen(
            self._command(args, as_user, cwd), **{**self._options(as_user, env, cwd), **options}
        )
        self._started.append(process)
        return process

    def _command(self, args: Sequence[Argument], as_user: bool, cwd: Argument | None) -> list[Argument]:
        command = [self.instead.get(args[0], self.command) if args else self.command, *args]
        if self.system is None:
            return command
        where = Path(os.fsdecode(cwd)) if cwd is not None else self.area.dir(as_user)
        return self.system.command(command, who=self.identities[as_user], cwd=where)

    def _options(self, as_user: bool, env: Mapping[str, str | None] | None, cwd: Argument | None) -> dict[str, Any]:
        text = {"encoding": "utf-8", "errors": "surrogateescape"}
        if self.system is not None and self.system.enters:
            return {**text, "env": self.environment(as_user, env), "cwd": "/"}
        where = self.area.dir(as_user) if cwd is None else cwd
        return {**text, **self.identities[as_user].popen_options(), "env": self.environment(as_user, env), "cwd": where}

    def finish(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            process.wait()

    def left_procdirs(self) -> list[Path]:
        """Per-run directories and records that are still in the homes of this test."""
        homes = [self.area.home(as_user) for as_user in self.identities]
        places = [home / name for home in homes for name in ("procdirs", "records")]
        return [entry for place in places if place.is_dir() for entry in place.iterdir()]
