"""Fixtures for every test. tests/support/__init__.py lists the helpers behind them.

A test that starts the command asks for `run_sandbox`, and for `who` when it should run once as root and once as an
ordinary user:

    def test_exit_code(run_sandbox, who):
        assert run_sandbox(["run", "--", "sh", "-c", "exit 42"], as_user=who.as_user).returncode == 42
"""

import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import prctl
import pytest

from sandbox.engine import syscalls
from tests.support import delegation, helper, install, jobs, leaks, modes, setuid, users, wheels
from tests.support.front import Front
from tests.support.helper import Helper
from tests.support.runner import Area, Runner
from tests.support.setuid import SetuidSystem
from tests.support.users import Identity

_RAN = pytest.StashKey[set[modes.Pair]]()
_EXPECTED = pytest.StashKey[set[modes.Pair]]()


def remove_tree(path: Path) -> None:
    """Also with 0555 directories in it, when the suite does not run as root."""
    if os.geteuid() != 0:
        for directory, _, _ in os.walk(path):
            os.chmod(directory, 0o700)
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def session_area() -> Iterator[Path]:
    """This session's own directory on a disk, that every identity can reach (0755). Gone at the end."""
    if os.geteuid() == 0:
        users.remove_abandoned("sbx-tests-*")
    path = Path("/var/tmp") / f"sbx-tests-{secrets.token_hex(4)}"
    path.mkdir(mode=0o755)
    # Orphans of what the tests start come to this process, where the leak check sees them.
    prctl.set_child_subreaper(1)
    lock = users.lock_directory(path, wait=True)
    yield path
    os.close(lock)
    mounted = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(path) in line]
    assert not mounted, f"still mounted, so nothing is removed: {mounted}"
    remove_tree(path)


@pytest.fixture(scope="session")
def identities(session_area: Path) -> Iterator[Mapping[bool, Identity]]:
    """Identity by `as_user`. Root has both; an ordinary user has only itself."""
    if os.geteuid() != 0:
        yield {True: users.current()}
        return
    with users.unprivileged(session_area / "home") as user:
        yield {False: users.current(), True: user}


@pytest.fixture(scope="session")
def user(identities: Mapping[bool, Identity]) -> Identity:
    """An unprivileged account with two supplementary groups (when not root: the caller's own)."""
    return identities[True]


@pytest.fixture(params=["root", "user"])
def who(request: pytest.FixtureRequest, identities: Mapping[bool, Identity]) -> Identity:
    """Root, then an ordinary user."""
    as_user = request.param == "user"
    if as_user not in identities:
        pytest.skip("the suite was not started as root")
    return identities[as_user]


@pytest.fixture(scope="session")
def installed(identities: Mapping[bool, Identity], session_area: Path) -> Path:
    """The `sandbox` command, executable by every identity."""
    return install.command_for(list(identities.values()), session_area)


@pytest.fixture
def area(identities: Mapping[bool, Identity], session_area: Path) -> Iterator[Area]:
    """Directories of this test: `area.path` (root's, 0755), `area.dir(as_user)`, `area.home(as_user)`."""
    path = session_area / secrets.token_hex(4)
    path.mkdir(mode=0o755)
    yield Area(path, identities)
    remove_tree(path)


@pytest.fixture
def run_sandbox(
    request: pytest.FixtureRequest,
    installed: Path,
    identities: Mapping[bool, Identity],
    area: Area,
    session_area: Path,
) -> Iterator[Runner]:
    """`run_sandbox(args, as_user=..., env=..., input=..., cwd=..., timeout=...) -> CompletedProcess[str]`.

    Each test has an own $SANDBOX_HOME per identity. What the test leaves on the host fails it.
    """
    uid = identities[True].uid if os.geteuid() == 0 else None
    before = leaks.Snapshot.take(session_area, uid)
    runner = Runner(installed, identities, area)
    yield runner
    runner.finish()
    left = leaks.appeared_since(before, session_area, uid)
    if not request.node.get_closest_marker("leaves_procdirs"):
        left += [f"procdir: {entry}" for entry in runner.left_procdirs()]
    if left:
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(params=jobs.COMBINATIONS, ids="-".join)
def launch(request: pytest.FixtureRequest, run_sandbox: Runner) -> Callable[..., Any]:
    """Starts a job, in each engine and mode: `launch(*words, popen=False, **options)`."""
    return jobs.starter(request, run_sandbox)


@pytest.fixture(name="front")
def _front(run_sandbox: Runner, who: Identity, area: Area) -> Front:
    """The native front, with no Python behind it that could help."""
    area.home(who.as_user)
    return Front(run_sandbox, who, area)


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_nothing(session_area: Path) -> Iterator[None]:
    """The same check for tests that call the code without the command."""
    before = leaks.Snapshot.take(session_area, None)
    yield
    left = leaks.appeared_since(before, session_area, None)
    leaks.reap_orphans()
    if left:
        pytest.fail("this module left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture
def delegated(user: Identity) -> Iterator[Path]:
    """A cgroup (version 2) of the user's, with this process in a leaf of it; skips where there is none to be had."""
    with delegation.subtree(user) as own:
        yield own


@pytest.fixture(scope="session")
def zig_wheel(session_area: Path) -> Path:
    """The ziglang wheel (101 MB, 375 MB unpacked), readable by every identity. Do not change it."""
    return wheels.place(wheels.zig_wheel(), session_area)


@pytest.fixture
def zig_cache(who: Identity, session_area: Path) -> dict[str, str]:
    """Variables for the compiler in that wheel: it builds its C library once for each identity (half a minute)."""
    path = session_area / f"zig-cache-{who.uid}"
    path.mkdir(exist_ok=True)
    os.chown(path, who.uid, who.gid)
    return dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), str(path))


@pytest.fixture(scope="session")
def ran(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`ran(engine, mode)`: record that a conformance case ran with this engine in this mode."""
    seen = request.config.stash[_RAN]
    return lambda engine, mode: seen.add((engine, mode))


@pytest.fixture(scope="session")
def setuid_system(
    request: pytest.FixtureRequest, identities: Mapping[bool, Identity], installed: Path, session_area: Path
) -> Iterator[SetuidSystem]:
    """The setuid helper, installed where only this session sees it (`run_sandbox.system = setuid_system`).

    Without root: the host's own installation, if it may be used. Skips, and says why, where neither is to be had.
    """
    with setuid.installed(identities, installed, session_area / "setuid-system") as system:
        request.config.stash[_EXPECTED].add(("native", "setuid"))
        yield system


@pytest.fixture(scope="session")
def helper_system(identities: Mapping[bool, Identity], installed: Path, session_area: Path) -> Iterator[SetuidSystem]:
    """Another one, whose policy tests may change: use it through `helper`."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to install a helper with policies of the tests")
    with setuid.installed(identities, installed, session_area / "helper-system") as system:
        helper.prepare(system)
        yield system


@pytest.fixture(name="helper")
def _helper(helper_system: SetuidSystem, user: Identity, area: Area) -> Iterator[Helper]:
    """The setuid helper in the hands of an unprivileged user of its group."""
    launcher = Helper(helper_system, user, area.path)
    yield launcher
    launcher.finish()


@pytest.fixture(scope="session", autouse=True)
def _expected_modes(request: pytest.FixtureRequest, identities: Mapping[bool, Identity]) -> None:
    """Probed while the test account exists; judged when the session ends."""
    request.config.stash[_EXPECTED] = modes.expected(identities[True])


def pytest_configure(config: pytest.Config) -> None:
    # How long examples take is the machine's affair: it may be loaded, or emulated.
    patient = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("sandbox", deadline=None, suppress_health_check=patient)
    hypothesis.settings.load_profile("sandbox")
    config.stash[_RAN] = set()
    config.stash[_EXPECTED] = set()
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        # One of several workers (pytest-xdist): what another one mounts is nothing that a test here left behind.
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.set_propagation(b"/", syscalls.MS_REC | syscalls.MS_SLAVE)
    # A shell starts what it puts in the background with these ignored, and what is ignored stays so across exec.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    # nohup(1) and an init do the same with this one; a handler of ours is gone in what the tests start.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker ended: what it ran and what it found."""
    told = getattr(node, "workeroutput", {})  # of one that crashed there is none
    for key, name in ((_RAN, "ran"), (_EXPECTED, "expected")):
        node.config.stash[key].update(map(tuple, told.get(name, ())))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A mode that this machine supports and that no conformance case ran in fails the suite."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput.update(ran=[*config.stash[_RAN]], expected=[*config.stash[_EXPECTED]])
    elif _missing(config) and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for engine, mode in sorted(_missing(config)):
        terminalreporter.write_line(f"FAILED: engine {engine} in mode {mode} works here, and no test ran it", red=True)


def _missing(config: pytest.Config) -> set[modes.Pair]:
    """Only a run of the whole suite can be blamed for what it did not run."""
    option = config.option
    whole = config.args == config.getini("testpaths") and not option.keyword and not option.markexpr
    return config.stash[_EXPECTED] - config.stash[_RAN] if whole and not option.collectonly else set()
