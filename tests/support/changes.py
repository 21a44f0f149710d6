"""Two hundred changes to a real tree, and what a tree looks like to somebody who compares."""

import hashlib
import os
import subprocess
from pathlib import Path

from tests.support.wheels import cache_directory

EACH = 25  # of eight kinds
Seen = dict[str, tuple[str, ...]]

# Run as `python3 - WHERE < this` in the sandbox; prints what it changed, a line `+path`, `-path` or `*path` each.
SCRIPT = r"""
import os, shutil, sys
top, each = sys.argv[1], int(sys.argv[2])
files, directories = [], []
for at, names, own in os.walk(top):
    names.sort()
    here = [os.path.join(at, n) for n in sorted(own)]
    files += [f for f in here if os.path.isfile(f) and not os.path.islink(f) and os.stat(f).st_nlink == 1]
    plain = not names and own and all(os.path.isfile(f) and not os.path.islink(f) for f in here)
    if plain and len(own) < 9:
        directories.append(at)
replaced, renamed = directories[:each], directories[each:2 * each]
taken = set(replaced + renamed)
files = [f for f in files if os.path.dirname(f) not in taken][:: max(len(files) // (each * 8), 1)]
pick = lambda: files.pop(0)
told = []
def tell(sign, path): told.append(sign + os.path.relpath(path, top))
for n in range(each):
    path = pick(); open(path, "ab").write(b"more\n"); tell("*", path)
    path = pick(); os.chmod(path, 0o711 if os.stat(path).st_mode & 0o777 != 0o711 else 0o600); tell("*", path)
    path = pick(); os.unlink(path); tell("-", path)
    path = pick(); os.rename(path, path + ".moved"); tell("-", path); tell("+", path + ".moved")
    path = os.path.join(os.path.dirname(pick()), "new %d" % n); open(path, "w").write("new"); tell("+", path)
    path = pick(); os.unlink(path); os.mkdir(path); open(path + "/in", "w").close()
    tell("*", path); tell("+", path + "/in")
    path = replaced[n]
    for name in os.listdir(path): tell("-", os.path.join(path, name))
    shutil.rmtree(path); open(path, "w").close(); tell("*", path)
    path = renamed[n]
    tell("-", path); tell("+", path + ".moved")
    for name in os.listdir(path): tell("-", os.path.join(path, name)); tell("+", os.path.join(path + ".moved", name))
    shutil.move(path, path + ".moved")
print("\n".join(told))
"""
LOOK = r"""
import hashlib, os, stat, sys
top = os.fsencode(sys.argv[1])
for at, names, own in os.walk(top):
    for name in names + own:
        path = os.path.join(at, name)
        s = os.lstat(path)
        if stat.S_ISREG(s.st_mode): what = hashlib.sha256(open(path, "rb").read()).hexdigest()
        elif stat.S_ISLNK(s.st_mode): what = os.fsdecode(os.readlink(path))
        else: what = ""
        mode = "" if stat.S_ISLNK(s.st_mode) else oct(s.st_mode & 0o777)
        print(ascii(os.fsdecode(os.path.relpath(path, top))), oct(stat.S_IFMT(s.st_mode)), mode, ascii(what), sep="\t")
"""


def parse(listing: str) -> Seen:
    """What LOOK printed."""
    found = {}
    for line in listing.splitlines():
        path, *facts = line.split("\t")
        found[path] = tuple(facts)
    return found


def differences(before: Seen, after: Seen) -> set[str]:
    """In the words of SCRIPT."""
    found = {"+" + path for path in after.keys() - before.keys()} | {"-" + p for p in before.keys() - after.keys()}
    return found | {"*" + path for path in before.keys() & after.keys() if before[path] != after[path]}


def quoted(told: str) -> set[str]:
    """What SCRIPT printed, with the paths as LOOK prints them."""
    return {line[0] + ascii(line[1:]) for line in told.splitlines()}


def debian_root(*packages: str) -> Path:
    """A minimal Debian, with these packages, as a tar, made once with what this machine's own apt is configured for."""
    which = f"-{hashlib.sha256(' '.join(sorted(packages)).encode()).hexdigest()[:12]}" if packages else ""
    path = cache_directory() / f"debian-minbase{which}.tar"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.tar")
        release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
        suite = release["VERSION_CODENAME"]
        own = sorted(Path("/etc/apt/sources.list.d").glob("debian.sources")) or [Path("/etc/apt/sources.list")]
        options = ["--quiet", "--variant=minbase", *([f"--include={','.join(packages)}"] if packages else [])]
        command = ["mmdebstrap", *options, suite, str(draft), *map(str, own)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        draft.rename(path)
    return path
