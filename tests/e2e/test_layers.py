"""Stacked images, and saving what a command changed, as a user types it."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import archives, changes
from tests.support.archives import Entry
from tests.support.runner import Area, Runner
from tests.support.users import Identity, processes_of

COMBINATIONS = [
    ("python", "root"),
    ("native", "root"),
    ("python", "userns"),
    ("native", "userns"),
    ("native", "setuid"),
]
_CHANGE = """cd "$SANDBOX_DYNAMIC/t"; echo new > f; rm gone; rm -r old; mkdir -p old/deep; echo n > old/n; mv dir moved
chmod 700 sub; rm sub/a; mkdir sub/a; rm -r turn; echo > turn; ln f same; ln -s /etc/passwd link"""
_SHOWN = ["f", "link", "moved", "moved/x", "old", "old/deep", "old/n", "same", "sub", "sub/a", "turn"]


def own(area: Area, who: Identity, source: Path) -> Path:
    for path in [source, *source.rglob("*")]:
        os.chown(path, who.uid, who.gid, follow_symlinks=False)
    return source


def base(area: Area, who: Identity) -> Path:
    names = ("f", "gone", "old/x", "old/deep/y", "dir/x", "sub/a", "turn/z")
    return own(
        area, who, archives.make_tree(area.dir(who.as_user) / "base", [Entry(name, b"base\n") for name in names])
    )


@pytest.mark.parametrize(("engine", "mode"), COMBINATIONS)
def test_saved_changes_stack(run_sandbox: Runner, identities, area: Area, engine: str, mode: str, request) -> None:
    who = identities[mode != "root"]
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")

    def sandbox(*args: object, code: int = 0) -> str:
        done = run_sandbox(list(map(str, args)), as_user=who.as_user)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def shown(source: str) -> list[str]:
        script = 'cd "$SANDBOX_STATIC/t" && find . -mindepth 1 | cut -c3- | LC_ALL=C sort && test "$(cat f)" = new'
        return sandbox(*run, "-s", f"t:{source}", "--", "sh", "-c", script).splitlines()

    run = ("run", "--engine", engine, "--mode", mode)
    sandbox("image", "build", base(area, who), "-t", "base")
    saves = ("--save", "t=delta", "--save-full", "t=@all")
    assert sandbox(*run, "-d", "t:@base", *saves, "--", "sh", "-ec", _CHANGE) == ""
    assert shown("@base+@delta") == _SHOWN
    assert shown("@all") == _SHOWN
    assert sandbox("image", "diff", "@base+@delta", "@all") == ""
    listed = json.loads(sandbox("image", "diff", "--json", "base", "@base+@delta"))
    assert {"change": "changed", "path": "sub", "what": ["mode"]} in listed
    assert {"change": "changed", "path": "turn", "what": ["type", "mode", "content"]} in listed
    assert {"change": "removed", "path": "old/deep/y", "what": []} in listed
    # A layer on a stack, and a warning on the wrong one.
    more = 'cd "$SANDBOX_DYNAMIC/t"; echo new > f; rm -r old moved'
    sandbox(*run, "-d", "t:@base+@delta", "--save", "t=more", "--", "sh", "-ec", more)
    assert shown("@base+@delta+@more") == [name for name in _SHOWN if not name.startswith(("old", "moved"))]
    assert "warning" in sandbox("run", "-s", "t:@all+@more", "--", "true")
    # What failed is not saved, and nothing is left of it.
    assert "@no is not saved" in sandbox(*run, "-d", "t:@base", "--save", "t=no", "--", "false", code=1)
    assert "no image @no" in sandbox("run", "-s", "@no", "--", "true", code=125)
    assert not [name for name in os.listdir(area.home(who.as_user) / "cache") if name.startswith(".")]


@pytest.mark.parametrize(("engine", "mode"), COMBINATIONS)
def test_what_was_made_in_an_empty_tree_is_saved(
    run_sandbox: Runner, identities, area: Area, engine: str, mode: str, request
) -> None:
    who = identities[mode != "root"]
    if mode == "setuid":
        run_sandbox.system = request.getfixturevalue("setuid_system")
    run = ["run", "--engine", engine, "--mode", mode]
    script = 'cd "$SANDBOX_DYNAMIC/new"; mkdir d; echo x > d/f; ln d/f d/g; chmod 710 .; chmod 700 d'
    saves = ["--save", "new=delta", "--save-full", "new=all"]
    done = run_sandbox([*run, "--dynamic-empty", "new", *saves, "--", "sh", "-ec", script], as_user=who.as_user)
    assert (done.returncode, done.stderr) == (0, "")
    look = 'cd "$SANDBOX_STATIC/t"; find . | LC_ALL=C sort | xargs stat -c "%a %h %F %n"'
    shown = [
        run_sandbox([*run, "-s", f"t:{name}", "--", "sh", "-c", look], as_user=who.as_user, check=True).stdout
        for name in ("@delta", "@all")
    ]
    if mode != "userns":  # an image that is unpacked there is of the tmpfs's mode
        assert shown[0].startswith("710 ")
    assert [line.split()[-1] for line in shown[0].splitlines()] == [".", "./d", "./d/f", "./d/g"]
    assert shown[0] == shown[1]
    assert json.loads(run_sandbox(["image", "inspect", "--json", "delta"], as_user=who.as_user).stdout)["files"] == 3


def test_a_run_of_the_setuid_helper_ends_with_who_keeps_its_tree(
    run_sandbox: Runner, identities, area: Area, setuid_system
) -> None:
    run_sandbox.system = setuid_system
    args = ["run", "--mode", "setuid", "--dynamic-empty", "t", "--save", "t=x"]
    running = run_sandbox.popen(
        [*args, "--", "sh", "-c", "echo $$; exec sleep 1000"],
        as_user=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    command = int(running.stdout.readline())
    running.send_signal(signal.SIGKILL)
    assert running.wait() != 0
    while command in processes_of(identities[True].uid):
        time.sleep(0.01)
    assert "no image @x" in run_sandbox(["run", "-s", "@x", "--", "true"], as_user=True).stderr
    run_sandbox(["run", "--mode", "setuid", "--", "true"], as_user=True, check=True)  # clears up after the killed one


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-s", "t:{b}", "--save", "t=x"), "no dynamic tree"),
        (("-d", "t:{b}", "--save", "t"), "NAME=IMAGE"),
        (("-d", "t:{b}", "--save", "t=a/b"), "cannot be the name"),
        (("-d", "t:{b}", "--save", "t=x", "--leave-running"), "--leave-running"),
        (("-d", "t:{b}", "--save", "t=x", "--save-full", "t=x"), "one image"),
        (
            (
                "-s",
                "t:@none+@other",
            ),
            "no image @none",
        ),
    ],
)
def test_what_cannot_be_saved_is_refused_in_one_line(run_sandbox: Runner, who, area: Area, options, why: str) -> None:
    where = str(base(area, who))
    done = run_sandbox(["run", *(word.replace("{b}", where) for word in options), "--", "true"], as_user=who.as_user)
    assert done.returncode == 125
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1


def _two_hundred(run_sandbox: Runner, source: Path, as_user: bool) -> None:
    """Saved, stacked and run, a real tree with 200 changes shows these and no others."""

    def python(option: str, tree: str, script: str, *words: str) -> str:
        where = "DYNAMIC" if option == "-d" else "STATIC"
        command = ["sh", "-c", f'python3 - "$SANDBOX_{where}/t" "$@"', "sh", *words]
        saves = ["--save", "t=delta"] if option == "-d" else []
        args = ["run", option, f"t:{tree}", *saves, "--", *command]
        return run_sandbox(args, as_user=as_user, input=script, timeout=600, check=True).stdout

    run_sandbox(["image", "build", source, "-t", "real"], as_user=as_user, timeout=600, check=True)
    told = changes.quoted(python("-d", "@real", changes.SCRIPT, str(changes.EACH)))
    assert len(told) >= 8 * changes.EACH
    before, after = (changes.parse(python("-s", tree, changes.LOOK)) for tree in ("@real", "@real+@delta"))
    assert changes.differences(before, after) == told
    listed = json.loads(
        run_sandbox(
            ["image", "diff", "--json", "real", "@real+@delta"], as_user=as_user, timeout=600, check=True
        ).stdout
    )
    assert len(listed) == len(told)


def test_two_hundred_changes_to_a_real_tree(run_sandbox: Runner, who: Identity, area: Area) -> None:
    real = area.dir(who.as_user) / "real"
    shutil.copytree("/usr/share/doc", real, symlinks=True, ignore=shutil.ignore_patterns("[!a-l]*"))
    _two_hundred(run_sandbox, own(area, who, real), who.as_user)


@pytest.mark.skipif("SANDBOX_SOAK" not in os.environ, reason="makes a Debian root of 150 MB: make soak")
@pytest.mark.timeout(1800)
def test_two_hundred_changes_to_a_debian_root(run_sandbox: Runner, identities, session_area: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed")
    _two_hundred(run_sandbox, changes.debian_root(), as_user=False)
