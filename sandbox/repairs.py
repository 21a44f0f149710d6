"""`sandbox doctor --fix`: what can be mended without taking anything from anybody, and without asking.

Only modules of the kernel are loaded, and what dead runs left is removed. Nothing is installed, and no setting that an
administrator may have chosen (a sysctl, a mode of a device, a profile of AppArmor) is changed: for these there are
remedies to read.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator

from sandbox import cleanup
from sandbox.doctor import Check
from sandbox.home import open_home

# By the name of the check that fails without it.
_MODULES = {
    "loop devices": "loop",
    "squashfs": "squashfs",
    "overlay": "overlay",
    "fuse": "fuse",
    "/dev/fuse": "fuse",
    "--net private": "tun",
}
_SECONDS = 30


def mend(checks: list[Check]) -> Iterator[str]:
    """Do it; a line for each thing done, or not done and why. Raises SandboxError for a home that cannot be used."""
    wanted = {_MODULES[check.name]: check.name for check in checks if not check.ok and check.name in _MODULES}
    for module, name in wanted.items():
        yield f"{name}: {_load(module)}"
    with open_home(dict(os.environb), say=lambda _: None) as home:
        for finding in cleanup.clean(home, dry=False):
            what = f"{finding.kind} {finding.name} of a dead run"
            yield f"not removed: {what}: {finding.failure}" if finding.failure else f"removed: {what}"


def _load(module: str) -> str:
    if os.geteuid() != 0:
        return f"not done: loading the module {module} takes root"
    program = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        return "not done: there is no modprobe"
    done = subprocess.run([program, "--", module], capture_output=True, text=True, timeout=_SECONDS, check=False)
    said = done.stderr.strip().splitlines()
    return (
        f"loaded the module {module}"
        if done.returncode == 0
        else f"not done: {said[-1] if said else 'modprobe failed'}"
    )
