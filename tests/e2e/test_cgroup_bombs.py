"""Jobs that take what they get, each with a cgroup (version 2) around all of it: `python -m tests.vm bombs`."""

import pytest

from tests.support import bombs, reports

pytestmark = pytest.mark.usefixtures("delegated")


@pytest.mark.parametrize("name", bombs.BOMBS)
def test_the_host_goes_on(launch, identities, area, name):
    has_cgroup = bombs.explode(name, launch, identities[launch.as_user], area)
    assert has_cgroup == (name in ("forks", "memory"))


@pytest.mark.parametrize("file", ["/tmp/f", "/dev/shm/f", "$SANDBOX_TMPDIR/f"])
def test_what_is_in_a_tmpfs_is_memory(launch, area, file):
    """Whose limit is reached first is the cause."""
    options = ["--memory", "48M", "--tmpfs-size", "1G", "--timeout", "120", "--report", "r.json"]
    done = launch(*options, "--", "sh", "-c", f"cat /dev/zero >{file}; echo survived", timeout=300)
    told = reports.read(area.dir(launch.as_user) / "r.json")
    assert (done.returncode, done.stdout, told["cause"]) == (-9, "", "oom"), done.stderr
    assert told["oom_kills"] > 0
