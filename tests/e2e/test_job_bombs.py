"""Jobs that take what they get: each ends within its limits, with the cause in the report, and leaves nothing."""

import pytest

from tests.support import jobs, reports

_LOOP = "while :; do sleep 1; done"
_SOON = ("--timeout", "1", "--kill-after", "0.3s")
# Options, script, and how it ends: exit code, and cause with the limit.
BOMBS = {
    "ignores TERM": (_SOON, f"trap '' TERM; {_LOOP}", 124, "timeout"),
    "daemonises": (_SOON, f"(setsid sh -c 'trap \"\" TERM HUP; {_LOOP}' &); {_LOOP}", 124, "timeout"),
    "leaves daemons": ((), f"(setsid sh -c 'trap \"\" TERM HUP; {_LOOP}' >/dev/null 2>&1 &); exit 4", 4, "exited"),
    "closes everything": (_SOON, f"exec 0<&- 1>&- 2>&-; {_LOOP}", 124, "timeout"),
    "stops itself": (_SOON, "kill -STOP $$", 124, "timeout"),
    "writes a large file": (("--fsize", "1M"), "exec head -c 8M /dev/zero > f", -25, "limit fsize"),
    "fills its tmpfs": (("--tmpfs-size", "8M"), "head -c 64M /dev/zero > /tmp/f; test $? = 1 && exit 5", 5, "exited"),
    "uses the processor": (("--cpu-time", "1"), "while :; do :; done", -24, "limit cpu-time"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_it_ends_within_its_limits(launch, area, name):
    jobs.spare_python(launch)
    options, script, code, cause = BOMBS[name]
    done = launch(*options, "--report", "r.json", "--", "sh", "-c", script)
    told = reports.read(area.dir(launch.as_user) / "r.json")
    assert (done.returncode, " ".join(filter(None, (told["cause"], told["limit"])))) == (code, cause), done.stderr


def test_output_that_nobody_reads(launch, area):
    """The job waits for its reader, and the launcher for neither."""
    words = [*_SOON, "--report", "r.json", "--", "yes"]
    process = launch(*words, popen=True, stdout=-1)
    assert process.wait(60) == 124
    assert reports.read(area.dir(launch.as_user) / "r.json")["cause"] == "timeout"
