"""A trace of whole launches: what runs while a capability is effective (docs/setuid.md says how to look by hand)."""

import re
import shutil

import pytest

from sandbox.plan import Attach, Mkdir, Tmpfs
from sandbox.setuid import HELPER
from tests.support.helper import WITH_BUILDER
from tests.support.launcher import below, source

# Calls that may stand between raising and lowering; a path among their arguments must be one of these.
ALLOWED = re.compile(
    r"""unshare\(CLONE_NEWNS\)
    |mount_setattr\(\d+,\ "",
    |open_tree\(\d+,\ "",
    |move_mount\(\d+,\ "",\ \d+,\ "",
    |fsopen\("(tmpfs|squashfs|overlay|fuse)",
    |fsconfig\(|fsmount\(
    |umount2\("/proc/self/fd/\d+",\ MNT_DETACH\)
    |openat\(\d+,\ "loop(-control|\d+)",\ O_(RDONLY|RDWR)\|(O_LARGEFILE\|)?O_NOFOLLOW\|O_CLOEXEC\)
    |unshare\(CLONE_NEW(IPC|PID|NET)(\|CLONE_NEW(IPC|PID|NET))*\)
    |setgroups\(0,|setresgid\(|setresuid\(
    |setfsuid\(|prctl\(PR_SET_DUMPABLE,\ SUID_DUMP_DISABLE\)
    |close\(\d+\)|---""",
    re.VERBOSE,
)


@pytest.mark.parametrize("image", ["roots", "rebuilt", "none"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_calls_with_effective_capabilities(helper, image, dynamic):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    helper.policy(WITH_BUILDER)
    more = (Tmpfs(9, 1 << 20, 0, 0o700), Mkdir(below("e"), 0o755), Attach(9, below("e"), 6))
    if image == "none":
        plan = helper.plan(*more)
    else:
        file = helper.roots_source() if image == "roots" else source(helper.own_image())
        plan = helper.image_plan(file, *more, dynamic=dynamic)
    assert sum(judge(lines) for lines in trace(helper, plan)) > (4 if image == "none" else 10)


def trace(helper, plan):
    """The calls of each process of a launch. strace changes to the user and starts the helper with its setuid bit, as
    only root's strace can."""
    (helper.area / "plan").write_bytes(plan)
    (helper.area / "env").write_bytes(b"PATH=/usr/bin:/bin\0")
    script = f'exec {HELPER} run 8 9 -- true 8<"{helper.area}/plan" 9<"{helper.area}/env"\n'
    (helper.area / "run.sh").write_text(script)
    ids = [f"--reuid={helper.uid}", f"--regid={helper.gid}", f"--groups={helper.group}"]
    strace = ["strace", "-ff", "-qq", "-v", "-s", "300", "-o", helper.area / "trace"]
    done = helper.private.root(*strace, "setpriv", *ids, "sh", helper.area / "run.sh")
    assert done.returncode == 0, done.stderr
    for file in helper.area.glob("trace.*"):
        yield file.read_text().splitlines()
        file.unlink()


def judge(lines):
    """How often a capability was raised in this process; every call in between is looked at."""
    start = next((number for number, line in enumerate(lines) if line.startswith(f'execve("{HELPER}"')), None)
    if start is None and not any("capset(" in line for line in lines):
        return 0
    effective, raised, door = start is not None, 0, start is not None
    for line in lines[0 if start is None else start + 1 :]:
        if line.startswith("capset("):
            # The first one closes the door behind root.
            effective = not re.search(r"effective=0[,}]", line)
            raised += effective and not door
            door = False
        elif line.startswith("execve("):
            assert not effective, line
            break
        elif door:
            # With root's rights: nothing that names a file.
            assert '"' not in line, line
        elif effective:
            assert ALLOWED.match(line), line
    return raised
