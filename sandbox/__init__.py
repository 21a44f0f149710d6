"""sandbox: run a command with private, throw-away filesystems."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandbox.api.box import Sandbox, prepare, run, run_async
    from sandbox.api.executor import SandboxExecutor
    from sandbox.api.process import AsyncProcess, Process
    from sandbox.api.result import CommandFailedError, Result, TimeoutExpiredError
    from sandbox.api.wire import CallError
    from sandbox.errors import SandboxError
    from sandbox.spec import Spec

__version__ = "0.1.0"

# Where each public name is made. The command line is this package too, and starts without any of them.
_HOMES = {
    "AsyncProcess": "sandbox.api.process",
    "CallError": "sandbox.api.wire",
    "CommandFailedError": "sandbox.api.result",
    "Process": "sandbox.api.process",
    "Result": "sandbox.api.result",
    "Sandbox": "sandbox.api.box",
    "SandboxError": "sandbox.errors",
    "SandboxExecutor": "sandbox.api.executor",
    "Spec": "sandbox.spec",
    "TimeoutExpiredError": "sandbox.api.result",
    "prepare": "sandbox.api.box",
    "run": "sandbox.api.box",
    "run_async": "sandbox.api.box",
}

__all__ = [
    "AsyncProcess",
    "CallError",
    "CommandFailedError",
    "Process",
    "Result",
    "Sandbox",
    "SandboxError",
    "SandboxExecutor",
    "Spec",
    "TimeoutExpiredError",
    "__version__",
    "prepare",
    "run",
    "run_async",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
