"""Which of the host's path sockets a run still shows: what the plan says, and what is so."""

import json
import os
import socket
import textwrap

import pytest

from sandbox import sockets
from sandbox.level_steps import Bind, Dev, Hide, NewRoot
from sandbox.plan import Attach, Overlay, Plan, Tmpfs, Tree
from sandbox.plan_types import Base, Mode, Place, PlanFlag, Source, SourceKind
from tests.support.modes import native_engine

HOME = Source(SourceKind.DIRECTORY, b"/h", 1, 2)
WORK = Source(SourceKind.DIRECTORY, b"/src/work", 1, 3)
PATHS = [b"/dev/log", b"/opt/a b", b"/run/x", b"/src/work/s", b"/srv/hidden/s", b"/srvx/s"]
TMPFS = Tmpfs(0, 1 << 20, 0, 0o755)


def at(path):
    return Place(Base.ROOT, path)


@pytest.mark.parametrize(
    ("steps", "shown"),
    [
        ((), PATHS),
        ((TMPFS, Attach(0, at(b"/run"), 0), Dev(), Hide(b"/srv/hidden")), [b"/opt/a b", b"/src/work/s", b"/srvx/s"]),
        ((TMPFS, Attach(0, at(b"/srv"), 0), Attach(0, at(b"/src"), 0)), [*PATHS[:3], b"/srvx/s"]),
        ((Tree(1, 0, 1), TMPFS, Attach(0, at(b"/src"), 0), Attach(1, at(b"/src/work"), 0)), PATHS),
        ((Tree(1, 0, 1), TMPFS, Overlay(2, (1,), 0, 0), Attach(2, at(b"/src/work"), 0), Hide(b"/")), []),
        ((TMPFS, NewRoot(0, 0), Bind(1, at(b"/opt")), Attach(1, at(b"/usr/opt"), 0)), [b"/usr/opt/a b"]),
    ],
    ids=["all", "covered", "a name that starts alike", "a clone shows them again", "an overlay does not", "a new root"],
)  # fmt: skip
def test_what_a_plan_shows(steps, shown):
    plan = Plan(Mode.ROOT, PlanFlag(0), 0, 0, HOME, (WORK,), steps)
    assert sockets.reachable(plan, PATHS) == shown


PROBE = textwrap.dedent("""
    import socket, sys
    for path in sys.argv[1:]:
        with socket.socket(socket.AF_UNIX) as one:
            try: print(one.connect(path) or 'connected')
            except OSError as error: print('refused')
""")


@pytest.mark.parametrize("engine", ["python", "native"])
@pytest.mark.parametrize(("workspace", "is_open"), [("ro", True), ("overlay", False)])
def test_what_is_listed_is_what_can_be_connected_to(engine, workspace, is_open, run_sandbox, who, area):
    """In the working directory, and in a place that is hidden: in the report, by --explain, and in truth."""
    if engine == "native" and native_engine() is None:
        pytest.skip("the native engine was not built here (no cargo)")
    where = area.dir(who.as_user)
    (where / "sub").mkdir(mode=0o755)
    inside, hidden = where / "sub" / "a socket", area.path / "hidden"
    report = where / "r.json"
    mode = "userns" if who.as_user else "root"
    head = ["run", "--engine", engine, "--mode", mode, "--isolation", "job", "--workspace", workspace]
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        for server, path in ((one, inside), (other, hidden)):
            server.bind(str(path))
            os.chmod(path, 0o777)
            server.listen()
        words = ["/usr/bin/python3", "-c", PROBE, str(inside), str(hidden)]
        done = run_sandbox([*head, "--report", str(report), "--", *words], as_user=who.as_user)
        explained = run_sandbox([*head, "--explain", "--", "true"], as_user=who.as_user)
    assert done.stdout.splitlines() == ["connected" if is_open else "refused", "refused"], done.stderr
    listed = json.loads(report.read_text())["sockets"]
    assert (str(inside) in listed, str(hidden) in listed) == (is_open, False)
    assert (str(inside) in explained.stdout, str(hidden) in explained.stdout) == (is_open, False)


def test_fifos_where_services_have_them(tmp_path, monkeypatch):
    """Two levels deep, whoever has them open; no link, nothing else, and nothing of a directory that is not there."""
    for name in ("here", "service/command", "service/deep/er"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("here")
    monkeypatch.setattr(sockets, "_OF_SERVICES", (os.fsencode(tmp_path), b"/nowhere"))
    monkeypatch.setattr(sockets, "_open_fifos", list)
    assert sockets.fifos() == [os.fsencode(tmp_path / name) for name in ("here", "service/command")]
