"""Why a test may be skipped in a machine. Any other reason fails the run, and so does one of these anywhere else."""

from collections.abc import Callable
from typing import NamedTuple

from tests.vm.matrix import KERNELS
from tests.vm.variant import INSTALL, Variant


def _anywhere(_: Variant) -> bool:
    return True


def _without_user_namespaces(variant: Variant) -> bool:
    names = ("user.max_user_namespaces", "kernel.unprivileged_userns_clone")
    return any(variant.sysctls.get(name) == "0" for name in names)


def _on_6_1(variant: Variant) -> bool:
    return variant.kernel == "6.1"


def _of_a_user(variant: Variant) -> bool:
    return any(session.as_user for session in variant.sessions)


def _by_systemd(variant: Variant) -> bool:
    return "vm.systemd" in variant.cmdline


class Skip(NamedTuple):
    """Words of the reason, why it is right to skip then, and the variants in which it may be given."""

    words: str
    why: str
    where: Callable[[Variant], bool] = _anywhere


_SKIPS = (
    Skip("make soak", "the long form of a test that is there in a short one"),
    Skip(
        "a kernel's features are tried",
        "in the variants of each kernel",
        lambda variant: variant.name not in KERNELS,
    ),
    Skip(
        "it can be installed here",
        "for kernels on which `sandbox setuid install` must fail",
        lambda variant: not variant.failure(INSTALL, ""),
    ),
    Skip("mode root is root's", "each session of two: one is root's, one is a user's"),
    Skip("the suite was not started as root", "root's part of it; its sessions have it", _of_a_user),
    Skip("needs root to ", "root's sessions have it", _of_a_user),
    Skip("the setuid helper is not installed", "root's sessions install one for the tests", _of_a_user),
    Skip("lets this user make no user namespace", "what the variant is for", _without_user_namespaces),
    Skip(
        "have one owner in a job of root's",
        "README, Limits: id-mapped images need Linux 6.2 and user namespaces",
        lambda variant: _on_6_1(variant) or _without_user_namespaces(variant),
    ),
    Skip("mount no erofs from a file", "Linux 6.12", _on_6_1),
    Skip("systemd does not run here", "variant systemd", lambda variant: not _by_systemd(variant)),
    Skip("systemd makes a scope", "test_systemd_scope.py tries the same there", _by_systemd),
    Skip("only root ", "root's variant of the test"),
    Skip("--user is root's", "root's variant of the test"),
    Skip("root may ", "a user's variant of the test has what root cannot be refused"),
    Skip("root can ", "a user's variant of the test has what root cannot be refused"),
    Skip("needs cargo", "the programs are compiled outside, and make test compiles them"),
    Skip("needs rpmbuild", "make rpm and make soak: a package is the same on every kernel"),
    Skip("would be the job's own user", "set-id programs of root's workspace: root's variant of the test"),
    Skip("xz could not get the memory", "a dictionary of gigabytes; machines have three of memory, make test has more"),
)


def explanation(reason: str, variant: Variant) -> str:
    """Why it is right to skip a test of this variant for this reason, or nothing."""
    return next((skip.why for skip in _SKIPS if skip.words in reason and skip.where(variant)), "")
