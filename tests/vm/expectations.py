"""The lines of tests/vm/matrix.py as tests; they run inside a machine of that variant (tests/vm/guest.py)."""

import contextlib
import json
import os
import stat
from pathlib import Path

import pytest

from sandbox import setuid, trials
from tests.support import archives
from tests.support.archives import Entry
from tests.vm import features, matrix
from tests.vm.variant import INSTALL

VARIANT = matrix.by_name(os.environ["SANDBOX_VM_VARIANT"])
TREE = [Entry("f", b"hello\n"), Entry.directory("sub"), Entry("sub/g", b"g\n")]
_READ = 'cat "$SANDBOX_STATIC/t/f"'
_WRITE = 'cd "$SANDBOX_DYNAMIC/t" && rm -r sub && echo more >>f && cat f'
# Name: the options, the script, what it prints.
FEATURES = {
    "scratch": ((), 'cd "$SANDBOX_TMPDIR" && echo x >f && cat f', "x\n"),
    "static image": (("-s", "t:{d}/tree.sfs"), _READ, "hello\n"),
    "static archive": (("-s", "t:{d}/tree.zip"), _READ, "hello\n"),
    "static directory": (("-s", "t:{d}/tree"), _READ, "hello\n"),
    "dynamic image": (("-d", "t:{d}/tree.sfs"), _WRITE, "hello\nmore\n"),
    "dynamic archive": (("-d", "t:{d}/tree.zip"), _WRITE, "hello\nmore\n"),
    "dynamic directory": (("-d", "t:{d}/tree"), _WRITE, "hello\nmore\n"),
    # At once, on a loop device each.
    "two images": (
        ("-s", "t:{d}/tree.sfs", "-s", "u:{d}/tree.zip"),
        'cd "$SANDBOX_STATIC" && cat t/f u/f',
        "hello\nhello\n",
    ),
    "kept archive": (("--cache", "-s", "t:{d}/tree.zip"), _READ, "hello\n"),
}


@pytest.fixture(scope="module")
def inputs(session_area: Path) -> Path:
    where = session_area / "expectations"
    where.mkdir(mode=0o755)
    archives.make_squashfs(where / "tree.sfs", TREE)
    archives.make_zip(where / "tree.zip", TREE)
    archives.make_tree(where / "tree", TREE)
    return where


@pytest.mark.parametrize("feature", VARIANT.features or FEATURES)
@pytest.mark.parametrize("mode", matrix.MODES)
def test_mode(mode, feature, inputs, run_sandbox, request, record_property):
    """What must work works, and what must fail says so in one line."""
    wanted = VARIANT.failure(mode, feature)
    if mode == "setuid" and not VARIANT.failure(INSTALL, ""):
        run_sandbox.system = request.getfixturevalue("setuid_system")
    options, script, output = FEATURES[feature]
    filled = [option.replace("{d}", str(inputs)) for option in options]
    done = run_sandbox(["run", "--mode", mode, *filled, "--", "sh", "-c", script], as_user=mode != "root")
    if not wanted:
        assert (done.stdout, done.returncode) == (output, 0), done.stderr
        return
    record_property("line", done.stderr.strip())
    assert done.returncode == 125, done.stdout + done.stderr
    assert wanted in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("mode", matrix.MODES)
def test_what_serves_an_image(mode, inputs, run_sandbox, request, record_property):
    """The kernel's squashfs; in mode userns FUSE where /dev/fuse is open to users, else a copy in a tmpfs."""
    if mode == "setuid" and not VARIANT.failure(INSTALL, ""):
        run_sandbox.system = request.getfixturevalue("setuid_system")
    script = 'stat -f -c %T "$SANDBOX_STATIC/t"'
    done = run_sandbox(
        ["run", "--mode", mode, "-s", f"t:{inputs}/tree.sfs", "--", "sh", "-c", script], as_user=mode != "root"
    )
    if VARIANT.failure(mode, "static image"):
        assert (done.returncode, done.stdout) == (125, "")
        return
    record_property("served by", done.stdout.strip())
    assert done.stdout == f"{VARIANT.images if mode == 'userns' else 'squashfs'}\n", done.stderr


def test_without_a_helper(run_sandbox):
    """`--mode auto` of an ordinary user: a user namespace, or the line that names the remedies."""
    done = run_sandbox(["run", "--", "true"], as_user=True)
    wanted = VARIANT.failure("userns", "scratch")
    assert done.returncode == (125 if wanted else 0), done.stderr
    assert wanted in done.stderr
    assert len(done.stderr.splitlines()) == bool(wanted)


@pytest.mark.skipif(not VARIANT.failure(INSTALL, ""), reason="it can be installed here: mode setuid was tried")
def test_install(run_sandbox, record_property):
    """What cannot work is told in one line, and no setuid program stays."""
    done = run_sandbox(["setuid", "install"], as_user=False)
    record_property("line", done.stderr.strip())
    assert done.returncode == 125, done.stdout
    assert VARIANT.failure(INSTALL, "") in done.stderr
    assert len(done.stderr.splitlines()) == 1
    helper = Path(setuid.HELPER)
    assert not helper.exists() or not helper.stat().st_mode & stat.S_ISUID


def test_doctor(run_sandbox, who):
    """Of the modes it must be right."""
    done = run_sandbox(["doctor", "--json"], as_user=who.as_user)
    report = json.loads(done.stdout)
    mode = "userns" if who.as_user else "root"
    assert report["modes"][mode] == (VARIANT.failure(mode, "scratch") == ""), done.stdout


@pytest.mark.skipif(VARIANT.name not in matrix.KERNELS, reason="a kernel's features are tried where nothing is off")
@pytest.mark.parametrize("feature", features.PROBES)
def test_kernel(feature, record_property):
    """What design and documents say of kernels, tried: a probe that raises OSError says that it is not there."""

    def attempt(found: trials.Trial) -> None:
        with contextlib.suppress(OSError), trials._step(found, feature):
            features.PROBES[feature][1]()

    failed = trials.failure(trials.trial(attempt), (feature,))
    record_property("kernel feature", failed[2] if failed else "works")
    release = tuple(map(int, os.uname().release.split("-")[0].split("+")[0].split(".")[:2]))
    assert (failed is None) == (release >= features.PROBES[feature][0]), failed
