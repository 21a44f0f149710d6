"""What runs inside the machine: as its init, or as a service of systemd. Only the standard library, only this file.

Reads job.json beside the project, prepares the machine, runs the sessions, sends what they wrote, powers off.
"""

import contextlib
import ctypes
import json
import os
import pwd
import resource
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from pathlib import Path

PLACE = Path("/srv/sandbox")
RESULTS = Path("/run/vm-results")
USER = "tester"
# pyproject.toml's, but with JUnit.
_OPTIONS = "-ra --import-mode=importlib --strict-config --strict-markers -p no:cacheprovider"
_CGROUP = Path("/sys/fs/cgroup")
_RB_POWER_OFF = 0x4321FEDC
_WATCH_S = 60
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}


def sh(script: str) -> None:
    subprocess.run(["sh", "-ec", script], check=True, env=_ENVIRONMENT)


def say(text: str) -> None:
    print(f"vm: {time.monotonic():.1f} {text}", flush=True)


def prepare_as_init() -> None:
    """What an init does before anything else."""
    sh("""
    mount -t tmpfs -o mode=755,nosuid,nodev run /run
    mkdir -p /dev/pts /dev/shm /dev/mqueue /run/lock
    mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
    mount -t tmpfs -o mode=1777,nosuid,nodev shm /dev/shm
    mount -t tmpfs -o mode=1777,nosuid,nodev tmp /tmp
    mount -t mqueue mqueue /dev/mqueue
    mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
    mount -t securityfs securityfs /sys/kernel/security
    ln -sf /proc/self/fd /dev/fd; ln -sf fd/0 /dev/stdin; ln -sf fd/1 /dev/stdout; ln -sf fd/2 /dev/stderr
    ip link set lo up
    hostname vm
    """)
    # systemd's, and so what a session on Debian has; an init starts with the kernel's own 4,096.
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 524288))


def prepare(job: dict) -> None:
    for module in job["modules"]:
        subprocess.run(["modprobe", "-q", module], check=False, env=_ENVIRONMENT)
    for name, value in job["sysctls"].items():
        Path("/proc/sys", name.replace(".", "/")).write_text(value)
    subprocess.run(["useradd", "-m", "-d", f"/home/{USER}", "-s", "/bin/sh", USER], check=True, env=_ENVIRONMENT)
    for line in job["setup"]:
        sh(line)


def delegate() -> None:
    """Every controller for the root's children, and a subtree that belongs to the user: cgroups(7)."""
    enable = " ".join(f"+{name}" for name in (_CGROUP / "cgroup.controllers").read_text().split())
    own, leaf = _CGROUP / "delegated", _CGROUP / "delegated/session"
    (_CGROUP / "cgroup.subtree_control").write_text(enable)
    own.mkdir()
    (own / "cgroup.subtree_control").write_text(enable)
    leaf.mkdir()
    user = pwd.getpwnam(USER)
    for directory in (own, leaf):
        for path in (directory, *(directory / name for name in ("cgroup.procs", "cgroup.threads"))):
            os.chown(path, user.pw_uid, user.pw_gid)
        os.chown(directory / "cgroup.subtree_control", user.pw_uid, user.pw_gid)


def move_to_leaf() -> None:
    """What systemd gave this service, in the same shape: a cgroup with processes in it has no children to limit."""
    own = _CGROUP / Path("/proc/self/cgroup").read_text().strip().removeprefix("0::/")
    (own / "session").mkdir()
    (own / "session/cgroup.procs").write_text("0")
    enable = " ".join(f"+{name}" for name in (own / "cgroup.controllers").read_text().split())
    (own / "cgroup.subtree_control").write_text(enable)


def start(session: dict, *, delegated: bool) -> subprocess.Popen:
    """One pytest, as root or as the user; what it prints goes to its log."""
    name, user = session["name"], session["as_user"]
    log = (RESULTS / f"{name}.log").open("wb")
    home = f"/home/{USER}" if user else "/root"
    env = {**_ENVIRONMENT, "HOME": home, "USER": USER if user else "root", **session["env"]}
    junit = [
        "-o",
        f"addopts={_OPTIONS}",
        "-o",
        f"junit_suite_name={name}",
        "-o",
        "junit_family=xunit1",
        "--tb=short",
        "--durations=12",
        f"--junit-xml={RESULTS}/{name}.xml",
    ]
    command = [f"{PLACE}/.venv/bin/python", "-m", "pytest", "-v", "--no-header", *junit, *session["args"]]
    if user:
        command = ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups", *command]
        if delegated:
            enter = f'echo $$ >{_CGROUP}/delegated/session/cgroup.procs && exec "$@"'
            command = ["sh", "-c", enter, "sh", *command]
    # Lanes at once: what one session mounts is nothing that another one left behind.
    command = ["unshare", "--mount", "--propagation", "slave", *command]
    say(f"{name}: started")
    return subprocess.Popen(command, cwd=PLACE, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def run_lane(sessions: list[dict], *, delegated: bool) -> None:
    """In a process of its own: one session after the other. One that wrote no exit code did not come to its end."""
    for session in sessions:
        began = time.monotonic()
        code = start(session, delegated=delegated).wait()
        Path(RESULTS, f"{session['name']}.exit").write_text(f"{code} {time.monotonic() - began:.1f}\n")
        say(f"{session['name']}: exit {code}")


def watch() -> None:
    """In a process of its own: now and then what each session is at, for who looks at the console of one that hangs."""
    while True:
        time.sleep(_WATCH_S)
        say(Path("/proc/meminfo").read_text().splitlines()[2])
        for log in RESULTS.glob("*.log"):
            if not log.with_suffix(".exit").exists() and (lines := log.read_bytes().splitlines()):
                say(f"{log.stem}: {lines[-1].decode(errors='replace').rstrip()}")


def run_sessions(job: dict, *, delegated: bool) -> None:
    """Sessions with the same lane run one after the other, the lanes at once. An init also takes orphans' statuses."""
    RESULTS.chmod(0o1777)
    lanes: dict[int, list[dict]] = {}
    for session in job["sessions"]:
        lanes.setdefault(session["lane"], []).append(session)
    if os.fork() == 0:
        with contextlib.suppress(BaseException):
            watch()
        os._exit(1)
    pids = set()
    for sessions in lanes.values():
        pid = os.fork()
        if pid == 0:
            try:
                run_lane(sessions, delegated=delegated)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        pids.add(pid)
    while pids:
        pids.discard(os.wait()[0])


def send_results() -> None:
    for port in Path("/sys/class/virtio-ports").iterdir():
        if (port / "name").read_text().strip() == "sandbox.results":
            with open(f"/dev/{port.name}", "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
                for path in sorted(RESULTS.iterdir()):
                    tar.add(path, path.name)


def power_off() -> None:
    os.sync()
    ctypes.CDLL(None).reboot(_RB_POWER_OFF)


def main() -> None:
    as_init = os.getpid() == 1
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        if as_init:
            prepare_as_init()
        RESULTS.mkdir()
        job = json.loads((PLACE / "job.json").read_text())
        (RESULTS / "kernel").write_text(os.uname().release)
        prepare(job)
        if as_init:
            delegate()
        else:
            move_to_leaf()
        (RESULTS / "booted").write_text(f"{time.clock_gettime(time.CLOCK_BOOTTIME):.1f}\n")
        run_sessions(job, delegated=as_init)
    except BaseException:
        # An init that ends is a kernel that panics; this goes to the console.
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        send_results()
    sys.stdout.flush()
    power_off()


main()
