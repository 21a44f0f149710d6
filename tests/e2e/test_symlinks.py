"""Symlink policies: links in a tree are kept and never followed out of it by us; with `deny` not at all."""

import os
import subprocess

import pytest

from tests.support import archives
from tests.support.archives import Entry
from tests.support.modes import native_engine
from tests.support.racing import swapping

LINKS = {
    "absolute": "/etc/passwd",
    "parents": "../../../../../../../../../../etc/passwd",
    "procroot": "/proc/self/root/etc/passwd",
    "loop": "loop",
    "loops": "looped",
    "looped": "loops",
    "etc": "/etc",
    "up": "../../../../../../../../../../etc",
    "proc": "/proc/self/root/etc",
    "inside": "f",
    "dir": "sub",
}
TREE = [
    Entry("f", b"inside\n"),
    Entry("sub/g", b"g\n"),
    Entry.program("bin/tool", "echo tool of the tree"),
    Entry.symlink("tool", "/bin/tool"),
    Entry.symlink("shell", "/bin/sh"),
    *(Entry.symlink(name, target) for name, target in LINKS.items()),
]
OUT = ("etc", "up", "proc")


@pytest.fixture(params=["python", "native"])
def engine(request):
    if request.param == "native" and native_engine() is None:
        pytest.skip("the native engine was not built here (no cargo)")
    return request.param


@pytest.fixture(params=["image", "archive", "directory"])
def source(request, who, area):
    """The same tree, each way a source can be one; in root mode for root, in a user namespace for the user."""
    where = area.dir(who.as_user)
    if request.param == "directory":
        archives.make_tree(where / "t", TREE)
        subprocess.run(["chown", "-hR", f"{who.uid}:{who.gid}", where / "t"], check=True)
        return where / "t"
    make = archives.make_squashfs if request.param == "image" else archives.make_tar
    return make(where / "t", TREE)


def shell(script):
    return ["--", "sh", "-c", script]


@pytest.mark.parametrize("kind", ["-s", "-d"])
def test_links_are_kept_and_followed_by_the_command(run_sandbox, who, source, engine, kind):
    base = "$SANDBOX_STATIC/t" if kind == "-s" else "$SANDBOX_DYNAMIC/t"
    script = "cd %s; for l in %s; do readlink $l; done; cat inside; head -c5 absolute; cat loop loops 2>&1 | wc -l"
    done = run_sandbox(
        ["run", "--engine", engine, kind, f"t:{source}", *shell(script % (base, " ".join(LINKS)))], as_user=who.as_user
    )
    assert done.stdout == "".join(f"{target}\n" for target in LINKS.values()) + "inside\nroot:2\n", done.stderr


@pytest.mark.parametrize("kind", ["-s", "-d"])
def test_denied_links_lead_nowhere(run_sandbox, who, source, engine, kind):
    base = "$SANDBOX_STATIC/t" if kind == "-s" else "$SANDBOX_DYNAMIC/t"
    names = " ".join(f"{name} {name}/passwd" for name in LINKS)
    script = f"cd {base} && for l in {names}; do cat $l 2>/dev/null && echo $l; done; readlink inside; cat f"
    args = ["run", "--engine", engine, kind, f"t:{source}", "--symlinks", "t=deny", *shell(script)]
    assert run_sandbox(args, as_user=who.as_user).stdout == "f\ninside\n"


def test_run_stays_in_the_tree(run_sandbox, who, source, engine):
    """An absolute link means the tree's own root; what is not in the tree does not run."""
    args = ["run", "--engine", engine, "-s", f"t:{source}"]
    done = run_sandbox([*args, "--run", "t/tool"], as_user=who.as_user)
    assert (done.returncode, done.stdout) == (0, "tool of the tree\n"), done.stderr
    for name in ("shell", "etc/../bin/sh", "proc/../bin/sh", "up/../bin/sh", "loop", "loops"):
        done = run_sandbox([*args, "--run", f"t/{name}"], as_user=who.as_user)
        assert done.returncode in (126, 127), (name, done)
        assert "in its tree" in done.stderr


def test_chdir_stays_in_the_tree(run_sandbox, who, source, engine):
    args = ["run", "--engine", engine, "-s", f"t:{source}"]
    for name in (*OUT, "loop", "dir", "etc/cron.d"):
        done = run_sandbox([*args, "--chdir", f"t/{name}", *shell("pwd")], as_user=who.as_user)
        assert (done.returncode, done.stdout) == (125, ""), (name, done)
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", [*OUT, "outside"])
def test_a_mount_point_in_a_tree_stays_in_it(run_sandbox, who, engine, area, name):
    """A tree mounted inside another: the outer one's links must not say where."""
    where = area.dir(who.as_user)
    for path in ("outside", "at"):
        (where / path).mkdir()
        os.chown(where / path, who.uid, who.gid)
    outer = archives.make_squashfs(where / "outer", [*TREE, Entry.symlink("outside", str(where / "outside"))])
    inner = archives.make_squashfs(where / "inner", [Entry("own", b"x")])
    at = where / "at"
    for more in ([], ["--mkdir"]):
        for below in ("", "/new"):
            args = ["run", "--engine", engine, *more, "-s", f"{at}:{outer}", "-s", f"{at}/{name}{below}:{inner}"]
            done = run_sandbox([*args, *shell("ls /etc/own; ls -R " + str(where / "outside"))], as_user=who.as_user)
            assert done.returncode == 125, done
            assert len(done.stderr.splitlines()) == 1
            assert os.listdir(where / "outside") == [], "setup wrote where a link of the image led"
    assert not os.path.exists("/etc/new")


def test_a_link_swapped_while_it_is_the_working_directory(run_sandbox, who, engine, area):
    """A directory as a tree, whose owner swaps a part of it with a link out of it."""
    where = area.dir(who.as_user)
    archives.make_tree(where / "t", [Entry("d/f", b"x"), Entry.symlink("link", "/bin")])
    subprocess.run(["chown", "-hR", f"{who.uid}:{who.gid}", where / "t"], check=True)
    args = ["run", "--engine", engine, "-s", f"t:{where}/t", "--chdir", "t/d", *shell("ls")]
    with swapping(where / "t/d", where / "t/link"):
        for _ in range(15):
            done = run_sandbox(args, as_user=who.as_user)
            assert (done.returncode, done.stdout) in ((0, "f\n"), (125, "")), done
