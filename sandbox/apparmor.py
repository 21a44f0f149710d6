"""The AppArmor profile of the setuid helper, where AppArmor mediates user namespaces."""

import os
import subprocess

from sandbox.errors import HostError
from sandbox.host import find_program

PATH = "/etc/apparmor.d/sandbox-helper"
# The same text as packaging/apparmor/sandbox-helper, which distribution packages install; a test compares them.
PROFILE = """\
# Where AppArmor restricts unprivileged user namespaces (Ubuntu 23.10 and later), the setuid helper may still make them.
# Setuid mode itself needs none: this is for plans of mode userns that the helper carries out. See docs/setuid.md.
abi <abi/4.0>,
include <tunables/global>

profile sandbox-helper /usr/libexec/sandbox/sandbox-helper flags=(unconfined) {
  userns,

  include if exists <local/sandbox-helper>
}
"""


def mediates() -> bool:
    """Whether this kernel's AppArmor knows rules for user namespaces: elsewhere the profile does not even parse."""
    try:
        with open("/sys/module/apparmor/parameters/enabled") as file:
            enabled = file.read().strip() == "Y"
    except OSError:
        return False
    return enabled and os.path.exists("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")


def load(path: str = PATH) -> None:
    """Hand the profile to the kernel. Raises HostError."""
    _parser("--replace", "--write-cache", path)


def unload(path: str = PATH) -> None:
    """Take it away again. Raises HostError."""
    _parser("--remove", path)


def _parser(*arguments: str) -> None:
    program = find_program("apparmor_parser")
    if not program:
        raise HostError("cannot load the AppArmor profile: there is no apparmor_parser", hint="install apparmor")
    done = subprocess.run([os.fsdecode(program), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HostError(f"apparmor_parser {' '.join(arguments)}: {' '.join(done.stderr.split())}")
