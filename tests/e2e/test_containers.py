"""What containers withhold, in namespaces of the tests' own: each case works, or is one line with the flag that the
container needs. Real ones, made by podman, are in tests/vm/containers.py.
"""

import os

import pytest

from tests.support import archives
from tests.support.archives import Entry
from tests.support.modes import native_engine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make containers")

# A container's own /dev: a tmpfs, into which the kernel puts no new device.
DEV = """mount -t tmpfs -o mode=755 dev /mnt
for node in null zero full random urandom tty; do cp -a /dev/$node /mnt; done
mkdir /mnt/shm; ln -s /proc/self/fd /mnt/fd"""
CONTROL = "cp -a /dev/loop-control /mnt"
COVER = "mount --move /mnt /dev"
MASK = "mount -t tmpfs -o ro mask /proc/tty"
NO_NODES = ("setpriv", "--bounding-set=-mknod", "--inh-caps=-mknod")
NO_NETWORK = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
NO_MOUNTS = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
READ = 'cat "$SANDBOX_STATIC/t/f"'


class Container:
    """A mount namespace that `setup` has changed. `system` of a runner."""

    enters = False

    def __init__(self, *setup, wrapper=()):
        self.script, self.wrapper = "; ".join(("set -e", *setup, 'exec "$@"')), wrapper

    def command(self, argv, *, who, cwd):
        ids = ["--reuid", str(who.uid), "--regid", str(who.gid), "--clear-groups"]
        become = ["setpriv", *ids] if who.as_user else []
        return ["unshare", "--mount", "sh", "-c", self.script, "sh", *self.wrapper, *become, *map(os.fspath, argv)]


@pytest.fixture(params=["python", "native"])
def engine(request):
    if request.param == "native" and native_engine() is None:
        pytest.skip("the native engine was not built")
    return request.param


@pytest.fixture
def run(engine, run_sandbox, area, monkeypatch):
    """run(container, options, script, as_user): the finished command, with an image at {i}."""
    image = area.path / "tree.sfs"
    archives.make_squashfs(image, [Entry("f", b"hello\n")])

    def start(container, options, script=READ, *, as_user=False):
        run_sandbox.system = container
        # A user's command is started by root, who makes the container.
        monkeypatch.setattr(run_sandbox, "_options", _as_root(run_sandbox))
        filled = [option.replace("{i}", str(image)) for option in options]
        return run_sandbox(["run", "--engine", engine, *filled, "--", "sh", "-c", script], as_user=as_user)

    return start


def _as_root(runner):
    def options(as_user, env, cwd):
        where = runner.area.dir(as_user) if cwd is None else cwd
        text = {"encoding": "utf-8", "errors": "surrogateescape"}
        return {**text, "env": runner.environment(as_user, env), "cwd": where}

    return options


def refused(done, *texts):
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1), done.stderr
    for text in texts:
        assert text in done.stderr, done.stderr


def test_missing_nodes_of_loop_devices_are_made(run):
    done = run(Container(DEV, CONTROL, COVER), ["-s", "t:{i}"], f"{READ}; ls /dev | grep -c '^loop[0-9]'")
    assert (done.stdout, done.stderr) == ("hello\n1\n", "")


def test_nodes_that_may_not_be_made(run):
    done = run(Container(DEV, CONTROL, COVER, wrapper=NO_NODES), ["-s", "t:{i}"])
    refused(done, "cannot open /dev/loop", "--device-cgroup-rule", "--mode userns")


def test_no_loop_control(run):
    refused(run(Container(DEV, COVER), ["-s", "t:{i}"]), "/dev/loop-control", "--device /dev/loop-control")


def test_a_name_in_the_place_of_a_node(run):
    """What is no loop device is not taken for one."""
    fake = "for i in $(seq 0 63); do echo x >/mnt/loop$i; done"
    refused(run(Container(DEV, CONTROL, fake, COVER), ["-s", "t:{i}"]), "loop")


def test_root_that_may_not_mount(run):
    """Without CAP_SYS_ADMIN even root gets a user namespace, where the kernel gives one."""
    done = run(Container(wrapper=NO_MOUNTS), ["-s", "t:{i}"], f"{READ}; wc -l </proc/self/uid_map")
    assert (done.stdout, done.stderr) == ("hello\n1\n", "")
    refused(run(Container(wrapper=NO_MOUNTS), ["--mode", "root"]), "CAP_SYS_ADMIN")


def test_a_masked_proc(run):
    """The kernel gives no new /proc to a user namespace that sees only part of one."""
    done = run(Container(MASK), ["--isolation", "job"], "true", as_user=True)
    refused(done, "--security-opt unmask=ALL", "--isolation none")
    done = run(Container(MASK), ["-s", "t:{i}"], as_user=True)
    assert (done.stdout, done.stderr) == ("hello\n", "")


def test_no_user_namespaces_at_all(run, engine, installed, area):
    """What a job's own filter forbids, a container's forbids likewise."""
    inner = f"{installed} run --engine {engine} --mode userns -- true"
    # It may be installed below /var/tmp, which a job has for itself.
    shown = ["--ro-bind", str(installed.parents[1])]
    done = run(None, ["--isolation", "job", *shown], f"SANDBOX_HOME=$HOME/s {inner}")
    refused(done, "a seccomp filter is on", "--security-opt seccomp=unconfined", "--seccomp none")


@pytest.mark.parametrize("as_user", [False, True], ids=["root", "user"])
@pytest.mark.parametrize("kind", ["-s", "-d"])
def test_a_sandbox_in_a_sandbox(run, engine, installed, area, as_user, kind):
    place = "$SANDBOX_STATIC" if kind == "-s" else "$SANDBOX_DYNAMIC"
    inner = f"{installed} run --engine {engine} {kind} t:{area.path}/tree.sfs -- sh -c 'cat \"{place}/t/f\"'"
    done = run(None, [kind, "t:{i}"], f"unset SANDBOX_HOME; cat {place}/t/f; {inner}", as_user=as_user)
    assert (done.stdout, done.stderr) == ("hello\nhello\n", "")


def test_overlays_on_overlays(run, area):
    """The kernel stacks two: a writable copy of a directory on one overlay works, on two it is one line."""
    layer = "mkdir {0}/u {0}/w {0}/m; mount -t overlay -o lowerdir={1},upperdir={0}/u,workdir={0}/w x {0}/m"
    tree = area.dir(False) / "tree"
    tree.mkdir()
    (tree / "f").write_text("hello\n")
    first, second = (f"mkdir {where}; mount -t tmpfs x {where}; {layer}" for where in ("/mnt/a", "/mnt/b"))
    one = ("mount -t tmpfs x /mnt", first.format("/mnt/a", tree))
    done = run(Container(*one), ["-d", "t:/mnt/a/m"], 'cat "$SANDBOX_DYNAMIC/t/f"')
    assert (done.stdout, done.stderr) == ("hello\n", "")
    two = (*one, second.format("/mnt/b", "/mnt/a/m"))
    refused(run(Container(*two), ["-d", "t:/mnt/b/m"]), "twice already")


def test_a_job_of_root_s_on_an_overlay(run, area):
    """The kernel shows no file of an overlay as another user's: the job has a copy, and writes nothing through."""
    tree = area.dir(False) / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "f").write_text("hello\n")
    (tree / "f").chmod(0o600)
    layers = "mount -t tmpfs x /mnt; mkdir /mnt/u /mnt/w"
    over = f"mount -t overlay -o lowerdir={tree},upperdir=/mnt/u,workdir=/mnt/w x {tree}; cd {tree}"
    system, job = Container(layers, over), ["--mode", "root", "--isolation", "job"]
    write = "echo more >>f && cat f"
    done = run(
        system,
        [*job, "-s", f"s:{tree}", "-d", f"d:{tree}"],
        f'cat "$SANDBOX_STATIC/s/f"; cd "$SANDBOX_DYNAMIC/d"; rmdir sub && {write}',
    )
    assert (done.stdout, done.returncode) == ("hello\nhello\nmore\n", 0), done.stderr
    done = run(system, job, write)
    assert (done.stdout, done.stderr.splitlines()[1:]) == ("hello\nmore\n", []), done.stderr
    assert "1 changed file of the working directory was discarded" in done.stderr
    done = run(system, [*job, "--workspace", "ro"], "cat f; echo x >f")
    assert (done.stdout, done.returncode) == ("hello\n", 2), done.stderr
    refused(
        run(system, [*job, "--workspace", "rw"], "true"), f"cannot show {tree} as a job's own", "ext4, xfs or btrfs"
    )
    assert (sorted(os.listdir(tree)), (tree / "f").read_text()) == (["f", "sub"], "hello\n")


def test_a_directory_on_an_overlay_of_two_filesystems(run, area):
    """Its files have other devices than its directories, and nothing is mounted in it all the same."""
    lower = area.dir(True) / "tree"
    lower.mkdir(mode=0o755)
    (lower / "f").write_text("hello\n")
    layers = "mount -t tmpfs x /mnt; mkdir /mnt/u /mnt/w; echo more >/mnt/u/g"
    system = Container(layers, f"mount -t overlay -o lowerdir={lower},upperdir=/mnt/u,workdir=/mnt/w x {lower}")
    script = 'cd "$SANDBOX_STATIC/t" && cat f g'
    for options in (["--cache", "-s", f"t:{lower}"], ["--mode", "userns", "-d", f"t:{lower}"]):
        done = run(system, options, script.replace("STATIC", "DYNAMIC") if "-d" in options else script, as_user=True)
        assert (done.stdout, done.stderr) == ("hello\nmore\n", "")
    done = run(Container(layers, f"touch {lower}/f; mount --bind /mnt/u/g {lower}/f"), options, "true", as_user=True)
    refused(done, "'f' is on another file system")


def test_a_home_that_forbids_programs(run, area):
    """What is kept on a noexec filesystem would be noexec as well."""
    archive = area.path / "tree.zip"
    archives.make_zip(archive, [Entry.program("tool", "echo ran")])
    own = area.dir(True) / "sandbox-home"
    own.mkdir(mode=0o700)
    os.chown(own, area.dir(True).stat().st_uid, area.dir(True).stat().st_gid)
    system = Container(f"mount -t tmpfs -o noexec,mode=700,uid={own.stat().st_uid} x {own}")
    done = run(system, ["--mode", "userns", "--cache", "-s", f"t:{archive}"], '"$SANDBOX_STATIC/t/tool"', as_user=True)
    assert (done.stdout, done.stderr) == ("ran\n", "")


def test_a_job_names_the_flag_that_its_network_needs(run):
    refused(run(Container(wrapper=NO_NETWORK), ["--isolation", "job"], "true"), "Loopback", "CAP_NET_ADMIN")
