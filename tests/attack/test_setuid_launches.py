"""Setuid mode used as it is meant to be: what the command and the supervisor have."""

import os
import re
import resource
from pathlib import Path

from tests.support.launcher import wait_until_empty


def test_facts(helper):
    script = "cat /proc/self/uid_map; grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status; ulimit -Sc"

    def core():
        resource.setrlimit(resource.RLIMIT_CORE, (4096, 8192))

    got, out, err = helper.run(helper.plan(), "sh", "-c", script, then=core)
    assert (got, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["0", "0", "4294967295"]
    facts = {line[0]: line[1:] for line in lines[1:-1]}
    bounding = re.search(r"CapBnd:\t(\w+)", Path("/proc/self/status").read_text())
    for name, expected in {
        "Uid:": [str(helper.uid)] * 4,
        "Gid:": [str(helper.gid)] * 4,
        **{name: ["0" * 16] for name in ("CapInh:", "CapPrm:", "CapEff:", "CapAmb:")},
        "CapBnd:": [bounding[1]],
        "NoNewPrivs:": ["1"],
    }.items():
        assert facts[name] == expected, name
    assert set(map(int, facts["Groups:"])) == {helper.group, *helper.who.groups}
    assert lines[-1] == ["8" if os.readlink("/bin/sh").startswith("dash") else "4"]


def test_supervisor_has_nothing(helper):
    process = helper.start(helper.plan(), "sh", "-c", "echo ready; exec sleep 1000")
    process.stdout.readline()
    capabilities = re.compile(r"Cap(?:Inh|Prm|Eff|Amb):\t(?!0{16})(\w+)")
    # The command may run before its parent gets to its next line; it is not supervised before.
    assert wait_until_empty(lambda: capabilities.findall(Path(f"/proc/{process.pid}/status").read_text())) == []
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert "Uid:\t" + "\t".join([str(helper.uid)] * 4) in status
    assert "NoNewPrivs:\t1" in status
    process.terminate()
    process.communicate()
