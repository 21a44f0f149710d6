"""/dev/fuse open to everybody, as most distributions ship it, without a change to this machine's own."""

import os
from collections.abc import Sequence

from tests.support.users import Identity

# In a mount namespace of its own: a node of mode 0666 on a tmpfs, bound over the real one.
_SCRIPT = """mount -t tmpfs -o mode=755 sbx-fuse /mnt && mknod -m 666 /mnt/fuse c 10 229 &&
mount --bind /mnt/fuse /dev/fuse && umount -l /mnt && exec "$@\""""


def with_open_fuse(who: Identity, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` as `who` with a usable /dev/fuse; to be started by root."""
    become: list[str] = []
    if who.uid != 0:
        groups = ",".join(map(str, who.groups)) or str(who.gid)
        become = ["setpriv", "--reuid", str(who.uid), "--regid", str(who.gid), "--groups", groups]
    return ["unshare", "-m", "sh", "-c", _SCRIPT, "sh", *become, *command]


def possible() -> bool:
    """Whether this process may do that, and the kernel has FUSE at all."""
    return os.geteuid() == 0 and os.path.exists("/dev/fuse")
