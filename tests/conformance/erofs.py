"""Cases of erofs images, for the list in cases.py: root's kernel mounts them from their files, nobody else has them."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.conformance.cases import Case
from tests.support import archives
from tests.support.archives import Entry


def obstacle(where: Path) -> str:
    """Why these cases cannot be tried with images in that directory; empty: they can."""
    if not shutil.which("mkfs.erofs"):
        return "needs mkfs.erofs (erofs-utils)"
    if "\terofs\n" not in Path("/proc/filesystems").read_text():
        return "this kernel has no erofs, or has not loaded it"
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12):
        return "kernels before 6.12 mount no erofs from a file"
    kind = subprocess.run(["stat", "-f", "-c", "%T", where], capture_output=True, text=True, check=True).stdout
    return "erofs is not mounted from a file in a tmpfs" if kind.strip() == "tmpfs" else ""


def make_inputs(where: Path) -> None:
    """An image, one of it that is damaged, and a layer for it."""
    if obstacle(where):
        return
    tree = archives.make_tree(where / "erofs", [Entry("f", b"erofs\n"), Entry.directory("sub"), Entry("sub/g", b"g\n")])
    for name, compression in (("plain", ()), ("packed", ("-zlz4",))):
        command = ["mkfs.erofs", "--quiet", "--all-root", *compression, where / f"{name}.erofs", tree]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    whole = (where / "plain.erofs").read_bytes()
    (where / "damaged.erofs").write_bytes(whole[:1028] + bytes(len(whole) - 1028))
    archives.make_squashfs(where / "above.sfs", [Entry("f", b"above\n")])


def _case(name: str, script: str, options: tuple[str, ...], stdout: str = "", code: int = 0, stderr: str = "") -> Case:
    refusal = "an erofs image is mounted in mode root only"
    return Case(name, script, options, stdout, code, stderr, refused_in="userns setuid", refusal=refusal)


_READ = 'cd "$SANDBOX_STATIC/t" && cat f sub/g && (touch x 2>/dev/null || echo kept)'
_WRITE = 'cd "$SANDBOX_DYNAMIC/t" && echo new > f && rm -r sub && cat f && ls'
_JOB = ("--isolation", "job")

CASES = [
    _case("erofs", _READ, ("-s", "t:{d}/plain.erofs"), "erofs\ng\nkept\n"),
    _case("erofs, compressed", _READ, ("--cache", "-s", "t:{d}/packed.erofs"), "erofs\ng\nkept\n"),
    _case("writable erofs", _WRITE, ("-d", "t:{d}/plain.erofs"), "new\nf\n"),
    _case("job: erofs", _READ, (*_JOB, "-s", "t:{d}/packed.erofs"), "erofs\ng\nkept\n"),
    _case("job: writable erofs", _WRITE, (*_JOB, "-d", "t:{d}/plain.erofs"), "new\nf\n"),
    _case("stack on erofs", _READ, ("-s", "t:{d}/plain.erofs+{d}/above.sfs"), "above\ng\nkept\n"),
    _case("damaged erofs", "true", ("-s", "t:{d}/damaged.erofs"), code=125, stderr="is the image damaged"),
    _case("save of erofs", "true", ("-d", "t:{d}/plain.erofs", "--save", "t=n"), code=125, stderr="cannot be told"),
]
