"""A root of the run's own: hostile plans for the setuid helper, and roots whose author wants setup to leave them."""

import os

from sandbox.plan import (
    Attach,
    Base,
    Bind,
    File,
    Mkdir,
    NewRoot,
    PivotRoot,
    Place,
    SetPropagation,
    Symlink,
    Tmpfs,
    Unshare,
)
from tests.support.launcher import NEWNS, at

START = (Unshare(NEWNS), SetPropagation(2))
ROOT = Tmpfs(0, 1 << 20, 0, 0o755)


def here(path: bytes) -> Place:
    """A place as it is on the host now."""
    status = os.stat(path)
    return Place(Base.ROOT, path, status.st_dev, status.st_ino)


def test_what_the_user_cannot_read_is_not_bound(helper):
    """The helper opens what it clones with the user's rights, by its path and through no link."""
    secret = helper.area / "secret"
    (secret / "inside").mkdir(parents=True)
    secret.chmod(0o700)
    os.chown(secret, 0, 0)
    helper.refused(helper.raw(*START, Bind(0, here(os.fsencode(secret / "inside")))), "Permission denied")
    link = helper.area / "link"
    link.symlink_to("/etc")
    helper.refused(helper.raw(*START, Bind(0, here(os.fsencode(link)))), "Too many levels of symbolic links")
    helper.refused(helper.raw(*START, Bind(0, here(b"/usr").replace(ino=1))), "not what it was")


def test_no_file_with_roots_rights(helper):
    """Files, links and directories are made with the user's rights: the host's own are out of reach."""
    for step in (
        File(at(b"/etc/forged"), 0o644, b"x"),
        Symlink(at(b"/etc/forged"), b"/x"),
        Mkdir(at(b"/etc/forged"), 0o755),
    ):
        helper.refused(helper.raw(*START, step), "Permission denied")
    assert not os.path.lexists("/etc/forged")


def test_no_privileges_on_a_root_of_the_users_choice(helper):
    """A setuid program would believe the /etc that it finds."""
    helper.policy("allow_new_privs = true\n")
    steps = (ROOT, NewRoot(0, 0), Mkdir(at(b"/usr"), 0o755), Bind(1, here(b"/usr")), Attach(1, at(b"/usr"), 0))
    for hostile in (steps, (*steps, PivotRoot(0))):
        helper.refused(helper.raw(*START, *hostile, flags=4), "--allow-new-privs")
