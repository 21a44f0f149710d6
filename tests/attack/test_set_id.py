"""A job that may write to the host's disk makes no program there that makes somebody else of whoever starts it."""

import errno
import os
import shutil
import stat
import struct
import textwrap

import pytest

from sandbox import auditing, seccomp, setid

# Every way to a set-id bit and to file capabilities that there is without a descriptor of a program that has them.
PROBE = textwrap.dedent("""
    import ctypes, os, struct
    libc = ctypes.CDLL(None, use_errno=True)
    def call(*words):
        words = [word if isinstance(word, bytes) else ctypes.c_long(word) for word in words]
        if libc.syscall(*words) < 0: raise OSError(ctypes.get_errno(), '')
    count = 0
    def attempt(name, what, first=0o644):
        global count
        count += 1
        try:
            with open(name, 'w') as made: os.fchmod(made.fileno(), first)
            what(os.fsencode(name))
        except OSError: pass
    def made(what):
        return lambda name: (os.unlink(name), what(name))
    def by_tmpfile(name):
        os.unlink(name)
        with open(os.open('.', os.O_TMPFILE | os.O_WRONLY, 0o4755)) as file:
            os.link(f'/proc/self/fd/{file.fileno()}', name, follow_symlinks=True)
    def by_fd(name):
        with open(name) as file: os.fchmod(file.fileno(), 0o4755)
    here, creating = -100, os.O_CREAT | os.O_WRONLY
    for bits in (0o4755, 0o2755, 0o6777, 0o104755, 0o2644):
        word = f'{bits:o}'
        attempt('chmod' + word, lambda name: os.chmod(name, bits))
        attempt('fchmodat' + word, lambda name: call(268, here, name, bits))
        attempt('high' + word, lambda name: call(268, here, name, bits | 7 << 32))
        attempt('fchmodat2' + word, lambda name: call(452, here, name, bits, 0))
        attempt('open' + word, made(lambda name: call(2, name, creating, bits)))
        attempt('openat' + word, made(lambda name: os.open(name, creating, bits)))
        attempt('creat' + word, made(lambda name: call(85, name, bits)))
        attempt('mknod' + word, made(lambda name: os.mknod(name, bits & 0o7777 | 0o100000)))
        attempt('old mknod' + word, made(lambda name: call(133, name, bits & 0o7777 | 0o100000, 0)))
        how = struct.pack('QQQ', creating, bits & 0o7777, 0)
        attempt('openat2' + word, made(lambda name: call(437, here, name, how, 24)))
    attempt('tmpfile', by_tmpfile)
    attempt('fchmod', by_fd)
    attempt('io_uring', lambda name: (call(425, 4, bytes(120)), os.chmod(name, 0o4755)))
    rights = struct.pack('<IIIII', 0x02000001, 1 << 7, 0, 0, 0)
    attempt('capabilities', lambda name: os.setxattr(name, 'security.capability', rights))
    attempt('nofollow', lambda name: os.setxattr(name, 'security.capability', rights, follow_symlinks=False))
    words = struct.pack('<QII', ctypes.addressof(ctypes.create_string_buffer(rights, 20)), 20, 0)
    attempt('setxattrat', lambda name: call(463, here, name, 0, b'security.capability', words, 16))
    os.chmod('chmod2755', 0o700)
    os.makedirs('made/below')
    print(count)
""")


def dangerous(where):
    """What of a tree gives rights to whoever executes it."""
    return [
        str(path.relative_to(where))
        for path in where.rglob("*")
        if not path.is_symlink()
        and (path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID) or "security.capability" in os.listxattr(path))
    ]


@pytest.mark.parametrize("level", ["job", "strict"])
def test_none_in_what_is_the_host_s(launch, area, level):
    """Files of the workspace are the job's own: started by root, what it makes there is root's on the disk."""
    where = area.dir(launch.as_user)
    shown = where / "shown"
    shown.mkdir(mode=0o777)
    shown.chmod(0o777)
    for options in (("--workspace", "rw"), ("--bind", f"{shown}:{shown}", "--chdir", str(shown))):
        for more in ((), ("--seccomp", "none"), *([] if launch.mode == "setuid" else [("--as-root",)])):
            words = ["--isolation", level, *options, *more, "--", "/usr/bin/python3", "-c", PROBE]
            done = launch(*words, cwd=where)
            assert (done.stdout, done.returncode) == ("56\n", 0), done.stderr
            assert dangerous(where) == []
            made = where if options[0] == "--workspace" else shown
            assert (made / "chmod2755").stat().st_mode & 0o7777 == 0o700
            # Owned by ids inside, where there are any: only root removes them.
            for path in [path for path in made.iterdir() if path != shown]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


# What is written through a mapping the kernel does not see: no bit is taken away for it, as write(2) takes them.
REWRITE = textwrap.dedent("""
    import mmap, os, shutil
    def attempt(what, *words):
        try: what(*words)
        except OSError: pass
    def map_over(name):
        with open(name, "r+b") as file, mmap.mmap(file.fileno(), 4096) as memory: memory[:4] = b"EVIL"
    def write(name):
        with open(name, "r+b") as file: file.write(b"EVIL")
    for name in ("program", "below/deep/program", "able", "other name"):
        for what in (map_over, write, os.unlink): attempt(what, name)
        attempt(os.truncate, name, 4)
        attempt(os.chmod, name, 0o777)
        attempt(os.link, name, "linked")
        attempt(os.rename, name, "moved")
        attempt(os.rename, "plain", name)
        attempt(os.setxattr, name, "user.x", b"x")
    attempt(os.rename, "below", "elsewhere")
    attempt(map_over, "elsewhere/deep/program")
    attempt(shutil.rmtree, "elsewhere")
    map_over("plain")
    print("done")
""")


def test_one_that_is_there_stays_as_it_is(launch, area):
    """In what root works on: the job's user is the owner of all of it, and everybody on the host may start it."""
    if launch.mode != "root":
        pytest.skip("whoever starts it would be the job's own user")
    where = area.dir(as_user=False)
    (where / "below/deep").mkdir(parents=True)
    names = ["program", "below/deep/program", "able", "plain"]
    for name in names:
        (where / name).write_bytes(bytes(4096))
        (where / name).chmod(0o755)
    (where / "program").chmod(0o4755)
    (where / "below/deep/program").chmod(0o2755)
    os.setxattr(where / "able", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 7, 0, 0, 0))
    os.link(where / "program", where / "other name")
    (where / "loop").symlink_to(".")
    for options in ((), ("--workspace-unprotected",), ("--seccomp", "none")):
        done = launch("--workspace", "rw", *options, "--", "/usr/bin/python3", "-c", REWRITE)
        assert done.stdout == "done\n", done.stderr
        if (where / "elsewhere").exists():
            (where / "elsewhere").rename(where / "below")
        assert [(where / name).read_bytes()[:4] for name in names] == [*[bytes(4)] * 3, b"EVIL"]
        assert sorted(dangerous(where)) == ["able", "below/deep/program", "other name", "program"]
    os.makedirs(where / "/".join("d" * 300))
    refused = launch("--workspace", "rw", "--", "true")
    assert (refused.returncode, "nested deeper than" in refused.stderr) == (125, True), refused.stderr


def test_the_filter_looks_at_every_bit():
    """Modes and flags in all combinations, alone and before the default filter; what is not making a file passes."""
    library = seccomp.bindings()
    alone = setid.compile_filter(frozenset(), attributes=True)
    filters = (alone, setid.joined(alone, seccomp.compile_filter(())))

    def judge(words, name, *arguments):
        number = library.resolve_syscall(library.Arch.NATIVE, name)
        machine = 0xC000003E if os.uname().machine == "x86_64" else 0xC00000B7
        data = auditing._DATA.pack(number, machine, 0, *arguments, *[0] * (6 - len(arguments)))
        return auditing.judge(words, data)

    allowed, denied = 0x7FFF0000, 0x00050000 | errno.EPERM
    for words in filters:
        for mode in (0, 0o755, 0o1777, 0o4000, 0o2010, 0o6755, 0o104755, 0xFFFFFFFF, 0xFFFFFFFF00000000):
            wanted = denied if mode & 0o6000 else allowed
            assert judge(words, "fchmodat", 0, 0, mode) == wanted
            assert judge(words, "fchmod", 0, mode) == wanted
            assert judge(words, "mknodat", 0, 0, mode) == wanted
            for flags in (0, os.O_RDWR, os.O_DIRECTORY, os.O_CREAT, os.O_TMPFILE, os.O_CREAT | os.O_TMPFILE | 1 << 40):
                making = flags & (os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY)
                assert judge(words, "openat", 0, 0, flags, mode) == (wanted if making else allowed)
        assert judge(words, "setxattr") == 0x00050000 | errno.EOPNOTSUPP
        assert judge(words, "read") == allowed
    opened = setid.compile_filter(frozenset({"fchmodat"}), attributes=False)
    assert judge(opened, "fchmodat", 0, 0, 0o4755) == judge(opened, "setxattr") == allowed
    assert judge(opened, "fchmod", 0, 0o4755) == denied
