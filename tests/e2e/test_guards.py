"""--require-mount and sandbox guard, in mount namespaces and on file systems that the tests make."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import racing

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
pytestmark = ROOT_ONLY
ODD = "share\n\x1b[1m\x7f é"


class Place:
    """A shell in a mount namespace of its own, in a directory of the test: an ext4 is mounted at fs, P is a point."""

    def __init__(self, run, area) -> None:
        self.run, self.where = run, area.path / "guards"
        self.where.mkdir()
        subprocess.run(["truncate", "-s", "8M", self.where / "disk"], check=True)
        subprocess.run(["mkfs.ext4", "-q", self.where / "disk"], check=True)
        self.home = area.home(False)

    def __call__(self, script: str, name: str = "point") -> subprocess.CompletedProcess[str]:
        start = (
            'set -e; mkdir -p fs; mount -o loop disk fs; export P="fs/$NAME"; mkdir -p "$P";'
            f's() {{ {self.run.command} "$@"; }}; storage() {{ mount -t tmpfs none "$P"; }};'
        )
        env = {**self.run.environment(False), "NAME": name}
        return subprocess.run(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", start + script],
            cwd=self.where,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def index(self) -> list[dict]:
        path = self.home / "guards.json"
        return json.loads(path.read_text())["guards"] if path.exists() else []


@pytest.fixture
def place(run_sandbox, area):
    return Place(run_sandbox, area)


def check(done, *lines: str) -> None:
    assert (done.returncode, done.stdout.splitlines()) == (0, list(lines)), done.stderr


def test_a_run_needs_what_it_requires(place):
    done = place(
        's run --require-mount "$P" -- echo ran || echo refused $?; s guard add "$P" >/dev/null;'
        's run --require-mount "$P" -- echo ran || echo refused $?; storage; s run --require-mount "$P" -- echo ran;'
        "s run --require-mount fs -- echo ran; s run --require-mount / -- echo ran;"
        's run --require-mount "$P/none" -- echo ran || echo refused $?'
    )
    check(done, "refused 125", "refused 125", "ran", "ran", "ran", "refused 125")
    assert done.stderr.count("--require-mount: nothing is mounted on fs/point") == 2
    assert len(done.stderr.splitlines()) == 3


@pytest.mark.parametrize("name", ["point", ODD])
@pytest.mark.parametrize("kind", ["bind", "immutable"])
def test_a_round_trip(place, kind, name):
    done = place(
        'before=$(lsattr -d "$P"); mode=$(stat -c "%a %u %g" "$P");'
        f's guard add --with {kind} "$P"; s guard add --with {kind} "$P";'
        'echo x 2>/dev/null >"$P/f" && echo written; s guard ls --json >&2;'
        's guard clear "$P"; s guard clear "$P"; echo x >"$P/f" && rm "$P/f";'
        '[ "$before" = "$(lsattr -d "$P")" ] && [ "$mode" = "$(stat -c "%a %u %g" "$P")" ] && echo same',
        name,
    )
    shown = f"fs/{name}" if name == "point" else "fs/share\\n\\x1b[1m\\x7f é"
    check(
        done,
        f"{shown}: guarded ({kind})",
        f"{shown}: is guarded already",
        f"{shown}: cleared ({kind})",
        f"{shown}: is not in the index: nothing to clear",
        "same",
    )
    (told,) = json.loads(done.stderr)
    assert (Path(told["path"]).name, told["kind"], told["state"]) == (name, kind, "in force")
    assert place.index() == []


@pytest.mark.parametrize("kind", ["bind", "immutable"])
def test_what_is_covered_is_kept(place, kind):
    done = place(
        f's guard add --with {kind} "$P" >/dev/null; storage; echo x >"$P/f";'
        's guard clear "$P" || echo $?; s guard clear || echo $?; s guard ls; cat "$P/f"; umount "$P"; s guard clear'
    )
    real = f"{place.where}/fs/point"
    check(
        done,
        "fs/point: is covered by a mount: kept",
        "125",
        f"{real}: is covered by a mount: kept",
        "125",
        f"{real}\t{kind}\tcovered by a mount",
        "x",
        f"{real}: cleared ({kind})",
    )


@pytest.mark.parametrize("kind", ["bind", "immutable"])
def test_a_dry_run_changes_nothing(place, kind):
    done = place(
        f's guard add -n --with {kind} "$P"; lsattr -d "$P"; grep -c point /proc/self/mountinfo || :;'
        f's guard add --with {kind} "$P" >/dev/null; s guard clear -n "$P"; s guard ls; s guard clear >/dev/null'
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "fs/point: would be guarded"
    assert "i" not in lines[1].split()[0].replace("------I", "")
    assert lines[2:4] == ["0", "fs/point: would be cleared"]
    assert lines[4].endswith(f"{kind}\tin force")


@pytest.mark.parametrize("kind", ["bind", "immutable"])
def test_through_a_linked_parent_and_after_a_swap(place, kind):
    """A link on the way is followed to the same directory; another directory, or a link, in its place is left alone."""
    done = place(
        f'ln -sfn fs linked; mkdir -p other; s guard add --with {kind} "$P" >/dev/null; s guard clear linked/point;'
        f"s guard add --with {kind} linked/point;"
        # Swapped: what the path means now is not what the index says.
        + ('umount "$P"; ' if kind == "bind" else 'chattr -i "$P"; ')
        + 'mv "$P" fs/moved; mkdir "$P"; s guard clear "$P" || echo $?;'
        'rmdir "$P"; ln -s "$PWD/other" "$P"; s guard clear "$P"; rm "$P"; mv fs/moved "$P"; lsattr -d other;'
        "s guard clear"
    )
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        f"linked/point: cleared ({kind})",
        f"linked/point: guarded ({kind})",
        "fs/point: is another directory now: kept",
        "125",
    ], done.stderr
    assert lines[4] == "fs/point: is not in the index: nothing to clear"
    assert "i" not in lines[5].split()[0].replace("I", "")
    assert place.index() == []


def test_what_was_immutable_stays_so(place):
    done = place(
        'chattr +i "$P"; s guard add --with immutable "$P"; s guard clear "$P"; lsattr -d "$P"; chattr -i "$P"'
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "fs/point: is immutable already, and not by us"
    assert "i" in lines[2].split()[0].replace("I", "")


@pytest.mark.parametrize("damage", ["rm -f", "truncate -s 10", "sh -c 'echo [[[ >\"$0\"'"])
def test_a_missing_or_damaged_index(place, damage):
    done = place(
        f's guard add --with immutable "$P" >/dev/null; {damage} "$SANDBOX_HOME/guards.json"; s guard ls;'
        's guard clear "$P"; mkdir fs/second; s guard add --with immutable fs/second; s guard ls >/dev/null;'
        's guard clear fs/second; chattr -i "$P"'
    )
    check(
        done,
        "fs/point: is not in the index: nothing to clear",
        "fs/second: guarded (immutable)",
        "fs/second: cleared (immutable)",
    )
    assert ("is damaged" in done.stderr) == (damage != "rm -f")


def test_after_a_restart_and_after_a_crash(place):
    """A bind is gone with the kernel that had it; what was written before it was set is undone as far as it went."""
    place('s guard add --with bind "$P"')
    index = place.home / "guards.json"
    index.write_text(index.read_text().replace('"boot_id": "', '"boot_id": "x'))
    real = f"{place.where}/fs/point"
    check(
        place("s guard ls; s guard clear"),
        f"{real}\tbind\tlost: add it again, or clear it",
        f"{real}: is gone since a restart: forgotten",
    )
    place('s guard add --with immutable "$P"')
    crashed = index.read_text().replace('"is_set": true', '"is_set": false')
    index.write_text(crashed)
    # The flag is on the disk, which a restart does not change.
    index.write_text(crashed.replace('"boot_id": "', '"boot_id": "x'))
    check(place('s guard clear; echo x >"$P/f" && echo written'), f"{real}: cleared (immutable)", "written")


# Adds and clears again and again; what a refusal leaves is nothing.
RACE = """
import contextlib, os, sys
from sandbox import guards, home
from sandbox.errors import SandboxError
told = []
with home.open_home(dict(os.environb), say=print) as where:
    for _ in range(int(sys.argv[2])):
        with guards.opened(where) as index, contextlib.suppress(SandboxError):
            told.append(guards.add(index, b"fs/point", sys.argv[1], dry=False))
        with guards.opened(where) as index, contextlib.suppress(SandboxError):
            told.append(guards.clear(index, b"fs/point", dry=False)[1])
print(any(word.startswith("guarded") for word in told), any(word.startswith("cleared") for word in told))
"""


@pytest.mark.parametrize("kind", ["bind", "immutable"])
def test_a_link_between_check_and_use(place, kind):
    """The directory and a link to another one change places all the time: no guard is lost, or left, anywhere."""
    (place.where / "race").write_text(RACE)
    (place.where / "swap").write_text(racing.SWAPPER)
    rounds = 40 * int(os.environ.get("SANDBOX_SOAK", "1"))
    done = place(
        "mkdir fs/other; ln -s other fs/link;"
        'flags() { lsattr -d fs/* 2>/dev/null | cut -d" " -f1 | sort; }; before=$(flags);'
        f"{sys.executable} swap fs/point fs/link & swapper=$!; {sys.executable} race {kind} {rounds};"
        # What was guarded under the name that the link has now waits until it has that name again.
        "kill $swapper; wait $swapper || :; s guard clear >/dev/null || :;"
        "mv fs/point fs/kept; mv fs/link fs/point; mv fs/kept fs/link; s guard clear >/dev/null;"
        '[ "$before" = "$(flags)" ] && grep -c " [^ ]*guards/fs/" /proc/self/mountinfo || :'
    )
    check(done, "True True", "0")
    assert place.index() == []


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ('echo x >"$P/f"; s guard add "$P"', "is not empty"),
        ("s guard add fs", "something is mounted"),
        ("s guard add fs/none", "No such file"),
        ("echo x >fs/file; s guard add fs/file", "Not a directory"),
        ("s guard add /", "something is mounted"),
        (
            "mkdir -p fs/x; mount -t tmpfs none fs/x; mkdir fs/x/y; mount -t proc none fs/x/y; s guard add fs/x/y",
            "something is mounted",
        ),
    ],
)
def test_refusals_are_one_line(place, script, says):
    done = place(script)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1), done
    assert says in done.stderr
    assert place.index() == []


def test_a_user_cannot(run_sandbox, area):
    (area.dir(True) / "point").mkdir()
    os.chown(area.dir(True) / "point", run_sandbox.identities[True].uid, -1)
    done = run_sandbox(["guard", "add", "point"], as_user=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    assert "needs root" in done.stderr
    assert json.loads((area.home(True) / "guards.json").read_text())["guards"] == []
