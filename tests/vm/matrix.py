"""The variants of `make test-vm`: data. Kernel, boot options, what is run in the machine, what must hold in it."""

from tests.vm.variant import EXPECTATIONS, INSTALL, MODULES, Session, Variant, halves, lanes

# Name of a kernel here: the suite whose linux-image-amd64 it is.
KERNELS = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "newest": "sid"}
MODES = ("root", "setuid", "userns")

_CASES = "tree.sfs or own or killed"
_SETUID = Session("setuid", ("tests/conformance", "-k", f"setuid and ({_CASES})"))
_NETWORK = Session("network", ("tests/e2e/test_network.py", "-k", "setuid or helper"), lane=1)
# What looks for processes of others. From a user hidepid hides what is not dumpable: the init of his job, and in a run
# through the helper all of ours (docs/living.md).
_PROCESS_TESTS = ("tests/e2e/test_living.py", "tests/e2e/test_supervision.py")
_LEFT = "left or live_procdir or killed"
_LIVING = Session(
    "living", (*_PROCESS_TESTS, "-k", f"(native-user or native-setuid or native-root) and (listed or name or {_LEFT})")
)
_HIDDEN = Session(
    "living", (*_PROCESS_TESTS, "-k", f"(native-root and (listed or name)) or (native-user and ({_LEFT}))")
)
# Where kernels differ most: what is mounted from a file, layers of an overlay, other users' ids. "root:" is a case's.
_IMAGES = "erofs or stack or root: or level or log"
_LAYERS = tuple(
    Session(name, ("tests/conformance", "-k", f"({modes}) and ({_IMAGES})"), lane=lane)
    for lane, (name, modes) in enumerate(
        (("images", "native-root or native-userns"), ("images-setuid", "native-setuid or python-root"))
    )
)
_LIMITS = "tests/e2e/test_cgroups.py"
_CGROUPS = (
    Session("limits", (_LIMITS, "-k", "native")),
    Session("limits-user", (_LIMITS, "-k", "userns"), as_user=True, lane=1),
    Session("limits-python", (_LIMITS, "-k", "python"), lane=1),
    Session("attacks", ("tests/attack/test_setuid_cgroups.py",), lane=1),
)
_BOMBS = (
    Session("bombs", ("tests/e2e/test_job_bombs.py", "-k", "native")),
    Session("bombs-cgroup", ("tests/e2e/test_cgroup_bombs.py",), lane=1),
)
_ESCAPES = "tests/attack/test_job_escapes.py"
_ATTACKS = ("tests/attack/test_setuid_cgroups.py", "tests/attack/test_setuid_plans.py", _ESCAPES)
# What an ordinary user starts himself; in the other sessions root starts it for him.
_USERS = tuple(
    Session(name, args, as_user=True, lane=lane)
    for lane, name, args in (
        (0, "conformance", ("tests/conformance", "-k", f"userns and ({_CASES})")),
        (0, "attacks", (_ESCAPES, "tests/attack/test_job_kernel.py", "-k", "native-userns")),
        (
            1,
            "e2e",
            (
                "tests/e2e/test_run.py",
                "tests/e2e/test_cgroups.py",
                "-k",
                "test_run or (native and (hog or processors))",
            ),
        ),
    )
)
# Of every part of the suite what takes no longer than a variant may.
_CORE = (
    *EXPECTATIONS,
    Session("conformance", ("tests/conformance", "-k", f"native and ({_CASES})"), lane=1),
    Session(
        "conformance-python",
        ("tests/conformance", "-k", f"python and ({_CASES}) and not (dynamic or absolute)"),
        lane=1,
    ),
    Session("attacks", (*_ATTACKS, "-k", "cgroups or rules or (native and (within_reach or dies))")),
    Session(
        "e2e",
        (
            "tests/e2e/test_cgroups.py",
            "tests/e2e/test_containers.py",
            "-k",
            "native and (hog or detached or masked or sandbox_in)",
        ),
    ),
)

# A compiler that works in an emulated machine takes minutes.
_LONG = "test_examples or compiler_from_a_wheel or test_workloads"
# Variants of their own, below.
_OWN = "test_cgroups or test_job_bombs or test_cgroup_bombs or test_systemd_scope"
# Tests that launch once for every call a launch makes: minutes each.
_KILLED = "killed_at"
# The whole suite, in parts, and over how many machines each is dealt. Unit tests ask nothing of a kernel.
_WHOLE = {
    "conformance": ("the whole conformance of the native engine", 4, ("tests/conformance", "-k", "native")),
    "python": ("the whole conformance of the Python engine", 3, ("tests/conformance", "-k", "python")),
    "e2e": (
        "tests/e2e and tests/native but for what has its own",
        20,
        ("tests/e2e", "tests/native", "-k", f"not ({_LONG} or {_OWN})"),
    ),
    "workloads": ("compilers, and projects that they make, of tests/e2e", 4, ("tests/e2e", "-k", _LONG)),
    "attacks": ("attacks but for what follows", 10, ("tests/attack", "-k", f"not {_KILLED}")),
    "crashes": ("processes that are killed at every call they make", 4, ("tests/attack", "-k", _KILLED)),
}

_TOO_OLD = dict.fromkeys((*MODES, INSTALL), "sandbox needs 5.12")
# What touches loop devices, squashfs and overlays, and what touches processes and /dev/fuse.
_MOUNTS = ("static image", "dynamic image", "dynamic directory", "kept archive", "two images")
_PROCESSES = ("scratch", "static image", "kept archive")


def _no_images(words: str) -> dict[str | tuple[str, str], str]:
    """Root mode without images, and no helper: installing it ends with the proof that it mounts one."""
    features = ("static image", "dynamic image", "static archive", "dynamic archive", "kept archive", "two images")
    root = {("root", feature): words for feature in features}
    return {**root, INSTALL: words, "setuid": "the setuid helper is not installed"}


# Half of the containers: those that are given a right or a device by name.
_NAMED_FLAGS = "admin or control or nodes or devices or rule"
# The helper for the user of the machine, where the tests' own private system cannot be had.
_INSTALLED = ("/srv/sandbox/.venv/bin/sandbox setuid install", "usermod -aG sandbox tester")
# Debian 12's parser knows no rules for user namespaces; Debian 13's comes with its loader.
PARSER = (
    "/srv/sandbox/tools/usr/lib64/ld-linux-x86-64.so.2 --library-path /srv/sandbox/tools/usr/lib/x86_64-linux-gnu "
    "/srv/sandbox/tools/usr/sbin/apparmor_parser --config-file /dev/null --base /srv/sandbox/tools/etc/apparmor.d"
)
# Of the native programs, whose children inherit it, and not of the sessions themselves. The flags: docs/setuid.md.
_DENIED = (
    "profile sandbox-denied /srv/sandbox/{.venv/bin/sandbox,sandbox/bin/sandbox-engine} "
    "flags=(attach_disconnected,mediate_deleted) { allow all, deny userns, }"
)
_DENYING = (f"printf 'abi <abi/4.0>,\\n%s\\n' '{_DENIED}' >/run/denied; {PARSER} -rK /run/denied",)
_APPARMOR_TOOLS = ("trixie", ("apparmor", "libc6", "libstdc++6", "libgcc-s1", "libapparmor1"))


def with_systemd(variant: Variant) -> Variant:
    """Booted by systemd, with the setuid helper and a session of systemd's for the user of the machine."""
    units = "dbus.socket systemd-logind.service user@$(id -u tester).service"
    setup = (
        *_INSTALLED,
        f"systemctl start {units} || {{ journalctl -b -n 60 --no-pager; exit 1; }}",
    )
    # udev opens /dev/fuse to users.
    return variant._replace(cmdline=f"{variant.cmdline} vm.systemd", setup=setup, images="fuseblk")


_PROVEN = (
    Variant("6.1", "Debian 12", sessions=_CORE),
    Variant("6.12", "Debian 13's kernel", kernel="6.12", sessions=_CORE),
    Variant("newest", "the newest kernel of the package source", kernel="newest", sessions=_CORE),
    Variant("5.10", "Debian 11's kernel, below the baseline", kernel="5.10", fails=_TOO_OLD),
    Variant(
        "userns-max-0",
        "user namespaces off, by their number",
        sysctls={"user.max_user_namespaces": "0"},
        fails={"userns": "user.max_user_namespaces=15000, run as root, or sandbox setuid install"},
        sessions=(*EXPECTATIONS, _SETUID, _NETWORK),
    ),
    Variant("user-6.1", "what an ordinary user starts, on 6.1", sessions=_USERS),
    Variant("user-6.12", "the same on 6.12", kernel="6.12", sessions=_USERS),
    Variant("cgroups", "limits of jobs by cgroup v2: root's, delegated, through the helper", sessions=_CGROUPS),
    Variant(
        "containers",
        "in podman's containers: what works, and the flag for what does not",
        sessions=halves("containers", "tests/vm/containers.py", _NAMED_FLAGS, "flags"),
    ),
    Variant(
        "apparmor",
        "AppArmor's profiles: ours, and one that denies user namespaces to who has none",
        kernel="6.12",
        features=_MOUNTS,
        tools=_APPARMOR_TOOLS,
        sessions=(*EXPECTATIONS, Session("profiles", ("tests/vm/apparmor.py",), lane=1)),
    ),
    Variant(
        "no-loop",
        "no loop module",
        cmdline="module_blacklist=loop",
        fails=_no_images("modprobe loop"),
        features=_MOUNTS,
    ),
    Variant(
        "no-squashfs",
        "no squashfs module",
        cmdline="module_blacklist=squashfs",
        fails=_no_images("modprobe squashfs"),
        features=_MOUNTS,
    ),
)
# Asked for by name: `make test-vm VM='systemd no-loop'`.
_BY_NAME = (
    Variant(
        "userns-clone-0",
        "user namespaces off, by Debian's switch",
        sysctls={"kernel.unprivileged_userns_clone": "0"},
        fails={"userns": "kernel.unprivileged_userns_clone=1, run as root, or sandbox setuid install"},
    ),
    Variant(
        "conformance-userns-max-0",
        "the whole conformance of root and of the helper, user namespaces off",
        sysctls={"user.max_user_namespaces": "0"},
        sessions=lanes("conformance", "tests/conformance", "-k", "native-setuid or native-root"),
        shares=3,
        timeout=1800,
    ),
    Variant("bombs", "jobs that take what they get, with a cgroup and without", sessions=_BOMBS),
    Variant("images-6.1", "layers, erofs, logs and other users' ids on 6.1", sessions=_LAYERS),
    Variant("images-6.12", "the same on 6.12", kernel="6.12", sessions=_LAYERS),
    with_systemd(
        Variant(
            "systemd",
            "systemd as init, its cgroups, its /dev",
            sessions=(
                *EXPECTATIONS,
                Session("scopes", ("tests/e2e/test_systemd_scope.py", "tests/e2e/test_cgroups.py"), lane=1),
                Session("scopes-user", ("tests/e2e/test_systemd_scope.py",), as_user=True, lane=1),
            ),
        )
    ),
    Variant(
        "mixed",
        "ptrace_scope=3, /dev/fuse open to users, one loop device made at boot",
        cmdline="loop.max_loop=1",
        sysctls={"kernel.yama.ptrace_scope": "3"},
        setup=("chmod 666 /dev/fuse",),
        images="fuseblk",
        features=_MOUNTS,
        sessions=(*EXPECTATIONS, _LIVING),
    ),
    Variant(
        "no-overlay",
        "no overlay module",
        cmdline="module_blacklist=overlay",
        setup=_INSTALLED,
        fails=dict.fromkeys((("root", "dynamic image"), ("root", "dynamic directory")), "modprobe overlay"),
        features=_MOUNTS,
        sessions=(EXPECTATIONS[0], EXPECTATIONS[1]._replace(as_user=True)),
    ),
    Variant(
        "hidepid",
        "hidepid=2",
        setup=("mount -o remount,hidepid=2 /proc",),
        features=_PROCESSES,
        sessions=(*EXPECTATIONS, _HIDDEN),
    ),
    Variant(
        "apparmor-denied",
        "an AppArmor profile that denies user namespaces",
        kernel="6.12",
        setup=_DENYING,
        fails={"userns": "an AppArmor profile is on: allow it there, run as root, or sandbox setuid install"},
        features=_MOUNTS,
        tools=_APPARMOR_TOOLS,
    ),
    Variant(
        "homes",
        "homes on tmpfs, ext4, xfs, btrfs and overlay, noexec and nosuid",
        sessions=halves("homes", "tests/vm/homes.py", "setuid", "setuid"),
    ),
    *(
        Variant(
            f"{part}-{kernel}",
            f"{what} on {kernel}",
            kernel=kernel,
            # Which mount(8) would load, and tests look for.
            modules=(*MODULES, "btrfs"),
            sessions=lanes(part, *args, by="test" if "tests/conformance" in args else "file"),
            downloads=part in ("e2e", "workloads"),
            shares=shares,
            timeout=1800,
        )
        for kernel in ("6.1", "6.12")
        for part, (what, shares, args) in _WHOLE.items()
    ),
)
VARIANTS = (*_PROVEN, *(variant._replace(default=False) for variant in _BY_NAME))


def by_name(name: str) -> Variant:
    """A variant, or one machine of it (NAME/2). KeyError when there is none of that name."""
    machines = [machine for variant in VARIANTS for machine in (variant, *variant.dealt())]
    return {machine.name: machine for machine in machines}[name]
