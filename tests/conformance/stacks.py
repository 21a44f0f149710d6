"""Cases of stacked images, for the list in cases.py."""

import os
from pathlib import Path

from tests.conformance.cases import Case
from tests.support import archives
from tests.support.archives import Entry


def make_inputs(where: Path, uid: int, gid: int) -> None:
    """A base, and two layers that add, change, hide and replace. They belong to whom setuid mode lets write."""

    def own(*entries: Entry) -> list[Entry]:
        return [entry._replace(uid=uid, gid=gid) for entry in entries]

    def hidden(name: str) -> Entry:
        return Entry(name, kind="chardev", device=(0, 0), mode=0)

    files = [Entry(name, b"base\n") for name in ("f", "gone", "sub/a", "sub/b", "old/x", "old/y", "swap", "turn/z")]
    directories = [Entry.directory(name) for name in ("sub", "old", "turn")]
    archives.make_squashfs(where / "base.sfs", own(*directories, *files))
    archives.make_tar(where / "base.tar", own(*directories, *files))
    (where / "twin.tar").write_bytes((where / "base.tar").read_bytes())
    archives.make_tree(where / "base", [*directories, *files])
    changes = [Entry("f", b"one\n"), hidden("gone"), Entry.directory("sub"), hidden("sub/a"), Entry("sub/c", b"one\n")]
    replaced = [hidden("old/x"), hidden("old/y"), Entry("old/n", b"one\n"), Entry.directory("swap")]
    turned = [Entry("swap/in", b"one\n"), Entry("turn", b"one\n")]
    archives.make_squashfs(where / "one.sfs", own(*changes, Entry.directory("old"), *replaced, *turned))
    archives.make_squashfs(
        where / "two.sfs", own(Entry("gone", b"two\n"), Entry.directory("sub"), hidden("sub/b"), hidden("turn"))
    )


_LIST = "find . -mindepth 1 | LC_ALL=C sort | tr '\\n' ' ' && cat f"
_ONE = "./f ./old ./old/n ./sub ./sub/b ./sub/c ./swap ./swap/in ./turn one\n"
_TWO = "./f ./gone ./old ./old/n ./sub ./sub/c ./swap ./swap/in one\n"
_READ = f'cd "$SANDBOX_STATIC/t" && {_LIST} && (touch x 2>/dev/null || echo kept)'
_WRITE = f"""cd "$SANDBOX_DYNAMIC/t" && echo new > f && rm -r sub old && mkdir sub && echo n > sub/a && rm swap/in &&
{_LIST}"""
_WRITTEN = "./f ./gone ./sub ./sub/a ./swap new\n"
_TWICE = "in the stack twice (name each layer once)"
_JOB = ("--isolation", "job")
# What a tmpfs cannot mark before, an overlay in a user namespace cannot hide (tmpfs(5)).
_OLD = tuple(map(int, os.uname().release.split(".")[:2])) < (6, 6)
_REFUSED = {"refused_in": "userns" if _OLD else "", "refusal": "a writable stack in a user namespace needs Linux 6.6"}

CASES = [
    Case("stack of two", _READ, ("-s", "t:{d}/base.sfs+{d}/one.sfs"), _ONE + "kept\n"),
    Case("stack of three", _READ, ("-s", "t:{d}/base.sfs+{d}/one.sfs+{d}/two.sfs"), _TWO + "kept\n"),
    Case("stack on a tar", _READ, ("-s", "t:{d}/base.tar+{d}/one.sfs"), _ONE + "kept\n"),
    Case("stack on a cached tar", _READ, ("--cache", "-s", "t:{d}/base.tar+{d}/one.sfs"), _ONE + "kept\n"),
    Case(
        "stack on a directory",
        _READ,
        ("-s", "t:{d}/base+{d}/one.sfs"),
        _ONE + "kept\n",
        refused_in="setuid",
        refusal="images only",
    ),
    Case("writable stack", _WRITE, ("-d", "t:{d}/base.sfs+{d}/one.sfs+{d}/two.sfs"), _WRITTEN, **_REFUSED),
    Case("writable stack on a tar", _WRITE, ("-d", "t:{d}/base.tar+{d}/one.sfs+{d}/two.sfs"), _WRITTEN, **_REFUSED),
    Case("job: stack", _READ, ("--isolation", "job", "-s", "t:{d}/base.sfs+{d}/one.sfs"), _ONE + "kept\n"),
    Case(
        "job: writable stack",
        'cd "$SANDBOX_DYNAMIC/t" && echo new > f && rm tool && cat f && ls old && ls sub | tr "\\n" " "',
        ("--isolation", "job", "-d", "t:{d}/base.tar+{d}/tree.zip"),
        "new\nx\ny\na b g tool ",
        **_REFUSED,
    ),
    Case("name of a stack", 'ls "$SANDBOX_STATIC"', ("-s", "{d}/base.sfs+{d}/one.sfs"), "base\n"),
    Case("stack of one twice", "true", ("-s", "t:{d}/base.sfs+{d}/one.sfs+{d}/base.sfs"), code=125, stderr=_TWICE),
    Case("stack of one by two paths", "true", ("-d", "t:{d}/base.sfs+{d}/./base.sfs"), code=125, stderr=_TWICE),
    Case("stack of a tar twice", "true", ("-s", "t:{d}/base.tar+{d}/base.tar"), code=125, stderr=_TWICE),
    Case("job: stack of one twice", "true", (*_JOB, "-s", "t:{d}/base.sfs+{d}/base.sfs"), code=125, stderr=_TWICE),
    Case(
        "stack of twins in the cache",
        _READ,
        ("--cache", "-s", "t:{d}/base.tar+{d}/twin.tar"),
        "./f ./gone ./old ./old/x ./old/y ./sub ./sub/a ./sub/b ./swap ./turn ./turn/z base\nkept\n",
        refused_in="root setuid",
        refusal="twin.tar are the same, which is in the stack twice (name each layer once)",
    ),
    Case(
        "stack of a directory and one in it",
        _READ,
        ("-s", "t:{d}/base+{d}/base/sub"),
        code=125,
        stderr="a layer is in the stack twice, or lies in another one: name each once",
        refused_in="setuid",
        refusal="images only",
    ),
    Case(
        "stack with a missing layer",
        "true",
        ("-s", "t:{d}/base.sfs+{d}/none.sfs"),
        code=125,
        stderr="none.sfs: No such file",
    ),
]
