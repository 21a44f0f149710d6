"""What the administrator of a GitLab runner lets its jobs have: one TOML file, and the spec that it makes of a job."""

import os
import re
import stat
from collections.abc import Mapping
from typing import Any

from sandbox import jobfile, limits, toml_lines
from sandbox.api.options import make_spec
from sandbox.errors import SandboxError, UsageError, printable, reason
from sandbox.record import Record
from sandbox.spec import Spec

_KEYS = {"image": str, "net": str, "net-runner": str, "image-paths": list, "images": dict, "options": dict}
# What the stages themselves decide.
_OURS = {"root", "user", "chdir", "name", "run", "report", "trace", "workspace", "pass-fd"}
_STORE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
# The limits that a job may set for itself, as SANDBOX_TIMEOUT and so on.
_LIMITS = ("timeout", "cpu_time", "nofile", "fsize", "memory", "pids", "cpus")


class RefusedError(SandboxError):
    """The job asks for what it does not get: its own failure, and no trouble of the runner's."""


class Config(Record):
    """`images` maps what jobs say to what is taken; `options` are keys of sandbox.toml."""

    image: str = ""
    net: str = "private"
    net_runner: str = "private"
    image_paths: tuple[str, ...] = ()
    images: Mapping[str, str] = {}
    options: Mapping[str, Any] = {}

    def spec(self, variables: Mapping[str, str], *, for_runner: bool, **own: Any) -> Spec:
        """The spec of one stage, without a command; `variables` are the job's. Raises RefusedError, UsageError.

        Stages of the runner's own run on the host's programs, whatever image the job has.
        """
        options = {name.replace("-", "_"): value for name, value in self.options.items()}
        options = {"isolation": "job", "net": self.net_runner if for_runner else self.net} | options
        if for_runner:
            options["isolation"] = "job"
        elif root := self._root(variables.get("CI_JOB_IMAGE", "")):
            options |= {"isolation": "strict", "root": root}
        return make_spec({**options, **self._limits(variables), **own})

    def _root(self, image: str) -> str:
        """Where the root of a job comes from: a SRC, or nothing for the host's own programs."""
        image = image or self.image
        if image in self.images or not image:
            return self.images.get(image, "")
        what = f"image '{printable(image)}'"
        if image.startswith("/"):
            return self._path(image, what)
        if _STORE_NAME.fullmatch(image):
            return f"@{image}"
        known = ", ".join(map(printable, self.images)) or "none"
        raise RefusedError(f"{what}: this runner has no such image", hint=f"[images] of its configuration: {known}")

    def _path(self, image: str, what: str) -> str:
        path = os.path.realpath(image)
        allowed = [os.path.realpath(directory) for directory in self.image_paths]
        if not any(path.startswith(f"{directory.rstrip('/')}/") for directory in allowed):
            raise RefusedError(
                f"{what}: this runner takes no image from there", hint="image-paths of its configuration"
            )
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise RefusedError(f"{what} is no file", hint="name a squashfs image or an archive")
        except OSError as error:
            raise RefusedError(f"{what}: {reason(error)}") from None
        return path

    def _limits(self, variables: Mapping[str, str]) -> dict[str, str]:
        """What the job limits itself to. It may ask for less than the runner gives, and for no more."""
        asked = {name: text for name in _LIMITS if (text := variables.get(f"SANDBOX_{name.upper()}"))}
        given = {name: str(self.options[key]) for name in asked if (key := name.replace("_", "-")) in self.options}
        try:
            wanted, most = limits.parse(asked), limits.parse(given)
        except UsageError as error:
            raise RefusedError(f"limits of the job: {error.message}", hint=error.hint) from None
        for name, text in given.items():
            if getattr(wanted, name) > getattr(most, name):
                raise RefusedError(
                    f"SANDBOX_{name.upper()}: {printable(asked[name])} is more than this runner gives",
                    hint=f"at most {text}",
                )
        return asked


def read(path: str | None) -> Config:
    """The configuration; without a file the defaults. Raises UsageError."""
    if path is None:
        return Config()
    opened = jobfile.open_named(path, "--config")
    values, _ = toml_lines.parse(opened.data, opened.name)
    for key, value in values.items():
        kind = _KEYS.get(key)
        if kind is None:
            raise UsageError(f"{opened.name}: there is no key {printable(key)}", hint=f"one of {', '.join(_KEYS)}")
        if not isinstance(value, kind):
            raise UsageError(f"{opened.name}: {key} must be a {kind.__name__}", hint="docs/gitlab.md")
    _check(values, opened.name)
    fields: dict[str, Any] = {
        key.replace("-", "_"): tuple(v) if isinstance(v, list) else v for key, v in values.items()
    }
    return Config(**fields)


def _check(values: dict[str, Any], name: str) -> None:
    texts = [*values.get("image-paths", ()), *values.get("images", {}).values()]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{name}: images and image-paths hold strings", hint="docs/gitlab.md")
    if taken := _OURS & values.get("options", {}).keys():
        raise UsageError(f"{name}: options: {taken.pop()} is for the stages to decide", hint="leave it out")
    # Whatever the jobs say: a mistake of the administrator's is to be seen at once.
    Config(options=values.get("options", {}), net=values.get("net", "none")).spec({}, for_runner=False)
