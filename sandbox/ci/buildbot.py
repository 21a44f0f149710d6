"""Steps of Buildbot whose commands run in sandboxes on the worker: for a master's configuration (docs/buildbot.md).

Nothing here imports Buildbot. The worker needs the command `sandbox`, the master this package.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sandbox.api.options import words
from sandbox.errors import EXIT_LAUNCHER_FAILED

# buildbot.process.results. What is not listed is a failure.
_SUCCESS, _EXCEPTION = 0, 4
# What a step ends with whose command failed, in whatever way; the log has its own code.
_FAILED = 1
# How long a step that was asked to end has before it is killed; more than `sandbox ci run` waits itself. Seconds.
_TERM_SECONDS = 20


def shell_command(command: Sequence[Any], *, sandbox: str = "sandbox", **options: Any) -> Mapping[str, Any]:
    """Keyword arguments for `steps.ShellCommand` and its kin: `steps.ShellCommand(**shell_command(["make"]))`.

    `options` are those of `sandbox ci run`, `_` for `-`. Unless they say otherwise, steps share the build's directory:
    what one step writes there the next one finds. Words of the command may be renderables. Raises UsageError.
    """
    from sandbox.cli import ci

    _, actions, own = ci.make_parser()
    # A command that ends with the launcher's code is no trouble of the worker's.
    defaults = {"marks": "plain", "workspace": "rw", "failure_code": str(_FAILED)}
    asked = words(defaults | options, [*actions, *own])
    return {
        "command": [sandbox, "ci", "run", *asked, "--", *command],
        "decodeRC": {0: _SUCCESS, EXIT_LAUNCHER_FAILED: _EXCEPTION},
        "sigtermTime": _TERM_SECONDS,
    }
