"""The versions of the plan's encoding: what each one brought. One line for each addition here, one in
`setuid-helper/src/plan/version.rs`.
"""

import enum
from typing import Any

from sandbox.errors import SandboxError
from sandbox.level_steps import (
    Allow,
    Audit,
    Bind,
    Cgroup,
    CountChanges,
    Dev,
    DropCapabilities,
    Expose,
    File,
    Hide,
    Hostname,
    Identity,
    Idmap,
    Init,
    KeepDescriptors,
    Label,
    Landlock,
    Limit,
    LockTree,
    Loopback,
    Name,
    Network,
    NewRoot,
    Nice,
    Node,
    PivotRoot,
    Proc,
    Procdir,
    Protect,
    Seccomp,
    Shift,
    Symlink,
    Terminal,
    Text,
    Timeout,
    UserNamespace,
)
from sandbox.plan import Attach, Erofs, Overlay, Part, Plan, Stack
from sandbox.plan_types import Attr, Mode, OverlayOption, PlanFlag
from sandbox.record import Record

FIRST, LAST = 1, 2


class Since(Record):
    """Something that version 1 had not: a kind of step, a mode, or one bit of the flags, attributes or overlay options.

    `feature` is what the user asked for. A plan flag or a step may be `optional`: without it the run is the same, if
    slower or less well described.
    """

    what: type[Any] | enum.IntFlag | Mode
    version: int
    feature: str
    optional: bool = False


_ISOLATION = (
    Init,
    LockTree,
    Procdir,
    Proc,
    Dev,
    Hide,
    Loopback,
    Hostname,
    Identity,
    DropCapabilities,
    Idmap,
    KeepDescriptors,
    Seccomp,
    CountChanges,
    Protect,
    Part,
)

SINCE = (
    Since(PlanFlag.KEEP_IMAGES, 2, "--cache", optional=True),
    Since(PlanFlag.ALLOW_NEW_PRIVS, 2, "--allow-new-privs"),
    *(Since(step, 2, "--isolation") for step in _ISOLATION),
    *(Since(step, 2, "--isolation strict") for step in (NewRoot, PivotRoot)),
    *(Since(step, 2, "--bind, --device, --file or --symlink") for step in (Bind, Text, File, Symlink, Node)),
    Since(Limit, 2, "a limit on processor time, files or descriptors, or --isolation"),
    Since(Nice, 2, "--nice"),
    Since(Timeout, 2, "--timeout"),
    Since(Cgroup, 2, "--memory, --pids or --cpus"),
    Since(Erofs, 2, "an erofs image"),
    Since(Stack, 2, "a tree of several layers"),
    Since(Mode.LANDLOCK, 2, "--mode landlock"),
    *(Since(step, 2, "--allow-read or --allow-write") for step in (Allow, Landlock)),
    Since(Network, 2, "--net private"),
    Since(Name, 2, "--name"),
    Since(Label, 2, "what sandbox ps shows", optional=True),
    Since(Expose, 2, "--keep"),
    Since(Audit, 2, "--audit"),
    Since(Terminal, 2, "--tty"),
    *(Since(step, 2, "--as-root") for step in (UserNamespace, Shift)),
)


# Since which version helpers do what no plan asks for: hand out trees, tell how a launch goes on, speak JSON, die with
# their parent.
BESIDE = 2


class TooNewError(SandboxError):
    """A plan that says something its version has not; `feature` is what the user asked for."""

    def __init__(self, since: Since, version: int) -> None:
        super().__init__(f"{since.feature} needs plans of version {since.version}, not {version}")
        self.feature = since.feature


def version_of(plan: Plan) -> int:
    """The oldest version that has all that the plan says."""
    return max((since.version for since in SINCE if _holds(plan, since.what)), default=FIRST)


def lowered(plan: Plan, version: int) -> Plan:
    """The plan without what is optional and newer than `version`. Raises TooNewError for what is not optional."""
    for since in SINCE:
        if since.version <= version or not _holds(plan, since.what):
            continue
        if not since.optional:
            raise TooNewError(since, version)
        if isinstance(since.what, PlanFlag):
            plan = plan.replace(flags=plan.flags & ~since.what)
        else:
            plan = plan.replace(steps=tuple(step for step in plan.steps if type(step) is not since.what))
    return plan


def _holds(plan: Plan, what: Any) -> bool:
    match what:
        case Mode():
            return plan.mode is what
        case PlanFlag():
            return bool(plan.flags & what)
        case Attr():
            return any(isinstance(step, Attach) and step.attrs & what for step in plan.steps)
        case OverlayOption():
            return any(isinstance(step, Overlay) and step.options & what for step in plan.steps)
        case _:
            return any(type(step) is what for step in plan.steps)
