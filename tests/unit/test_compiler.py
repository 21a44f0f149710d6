"""What the compiler decides, for hosts that this one is not as well."""

import os
import signal
import stat

import pytest

from sandbox import builder, codec, plan, plan_types
from sandbox.builder import Programs
from sandbox.compiler import compile_plan
from sandbox.engine.syscalls import CLONE_NEWNS, CLONE_NEWUSER
from sandbox.errors import UsageError
from sandbox.host import Host
from sandbox.images.formats import Kind
from sandbox.plan_types import Mode, Source, SourceKind
from sandbox.sources import Opened
from sandbox.spec import Spec, SymlinkPolicy, TreeKind
from sandbox.treatments import Material, Target, Treatment, treatment

HOME = Source(SourceKind.DIRECTORY, b"/h", 1, 2)
PROGRAMS = Programs(
    b"/usr/bin/squashfuse_ll",
    lambda label, _stacked, owner: (b"/worker", label.encode(), *(b"%d" % n for n in owner or ())),
    lambda label: (b"/copier",),
)


def host(kernel=(6, 12), uid=1000):
    return Host(uid, uid, kernel, uid == 0, 8 << 30)


def tree(kind=TreeKind.STATIC, name=b"t", form=Kind.ZIP, uid=1000):
    if form is None:
        status = os.stat_result((stat.S_IFDIR | 0o755, 5, 6, 1, uid, uid, 0, 0, 0, 0))
    else:
        status = os.stat_result((stat.S_IFREG | 0o644, 5, 6, 1, uid, uid, 10, 0, 0, 0))
    return Opened(kind, name, b"/src", 9, status, form)


def material(item, how):
    kind = SourceKind.DIRECTORY if item.is_directory else SourceKind.FILE
    return Material(item, how, None if how is Treatment.EMPTY else Source(kind, b"/src", 6, 5), None)


def build(spec, materials, *, mode=Mode.USERNS, machine=None, targets=None, scratch=None, cwd=b"/"):
    compiled = compile_plan(
        spec,
        machine or host(),
        mode,
        HOME,
        materials,
        targets or {},
        scratch=scratch,
        cgroup=None,
        programs=PROGRAMS,
        cwd=cwd,
    )
    assert codec.decode(codec.encode(compiled.plan)) == compiled.plan
    return compiled.plan.steps


def only(steps, cls):
    return [step for step in steps if isinstance(step, cls)]


@pytest.mark.parametrize(
    ("mode", "kind", "form", "cache", "fuse", "expected"),
    [
        (Mode.ROOT, TreeKind.STATIC, Kind.ZIP, False, False, Treatment.IMAGE),
        (Mode.ROOT, TreeKind.DYNAMIC, Kind.SQUASHFS, True, True, Treatment.IMAGE),
        (Mode.ROOT, TreeKind.STATIC, None, False, True, Treatment.DIRECTORY),
        (Mode.ROOT, TreeKind.STATIC, None, True, True, Treatment.IMAGE),
        (Mode.USERNS, TreeKind.STATIC, Kind.ZIP, False, True, Treatment.FUSE),
        (Mode.USERNS, TreeKind.STATIC, Kind.ZIP, False, False, Treatment.EXTRACT),
        (Mode.USERNS, TreeKind.STATIC, Kind.ZIP, True, False, Treatment.KEPT),
        (Mode.USERNS, TreeKind.DYNAMIC, Kind.ZIP, True, True, Treatment.FUSE),
        (Mode.USERNS, TreeKind.DYNAMIC, Kind.ZIP, False, True, Treatment.EXTRACT),
        # The owners in a foreign image are anybody's: only a copy is the user's to change.
        (Mode.USERNS, TreeKind.DYNAMIC, Kind.SQUASHFS, True, True, Treatment.KEPT),
        (Mode.USERNS, TreeKind.DYNAMIC, None, False, True, Treatment.DIRECTORY),
        (Mode.USERNS, TreeKind.EMPTY, None, False, True, Treatment.EMPTY),
    ],
)
def test_treatment(mode, kind, form, cache, fuse, expected):
    assert treatment(tree(kind, form=form), Spec((b"x",), cache=cache), mode, fuse=fuse) is expected


def test_namespaces_and_privileges_by_mode():
    root = build(Spec((b"x",)), [], mode=Mode.ROOT, machine=host(uid=0))
    assert only(root, plan.Unshare)[0].flags == CLONE_NEWNS
    assert not only(root, plan.IdMap)
    assert not only(root, plan.NoNewPrivs)
    user = build(Spec((b"x",)), [])
    assert only(user, plan.Unshare)[0].flags == CLONE_NEWNS | CLONE_NEWUSER
    assert only(user, plan.IdMap) == [plan.IdMap(1000, 1000, 1000, 1000)]
    assert only(user, plan.NoNewPrivs)
    for steps in (root, user):
        assert steps[-1] == plan.DeathSignal(signal.SIGKILL)
        names = [type(step).__name__ for step in steps]
        assert names.index("SetPropagation") < names.index("Guard") < names.index("Attach")


def test_old_kernels_copy_where_an_overlay_cannot_be():
    """tmpfs has user.* attributes since 6.6; before that a user namespace has no overlay on it."""
    item = material(tree(TreeKind.DYNAMIC, form=None), Treatment.DIRECTORY)
    assert only(build(Spec((b"x",)), [item], machine=host((6, 6))), plan.Overlay)
    old = build(Spec((b"x",)), [item], machine=host((6, 1)))
    assert not only(old, plan.Overlay)
    assert only(old, plan.Extract)[0].argv[0] == b"/copier"
    scratch = Source(SourceKind.DIRECTORY, b"/disk", 3, 4)
    assert only(build(Spec((b"x",)), [item], machine=host((6, 1)), scratch=scratch), plan.Overlay)
    served = [material(tree(kind), Treatment.FUSE) for kind in (TreeKind.STATIC, TreeKind.DYNAMIC)]
    old = build(Spec((b"x",)), served, machine=host((6, 1)))
    assert not only(old, plan.Overlay)
    assert len(only(old, plan.Fuse)) == len(only(old, plan.Extract)) == 1
    assert only(build(Spec((b"x",)), served, machine=host((6, 6))), plan.Overlay)
    assert only(build(Spec((b"x",)), [item], mode=Mode.ROOT, machine=host((5, 12), 0)), plan.Overlay)


def test_a_foreign_directory_is_copied_to_be_writable():
    item = material(tree(TreeKind.DYNAMIC, form=None, uid=0), Treatment.DIRECTORY)
    assert only(build(Spec((b"x",)), [item]), plan.Extract)


def test_every_tree_is_nosuid_and_nodev_and_static_is_read_only():
    items = [
        material(tree(TreeKind.STATIC, b"a", None), Treatment.DIRECTORY),
        material(tree(TreeKind.STATIC, b"b"), Treatment.IMAGE),
        material(tree(TreeKind.DYNAMIC, b"c"), Treatment.IMAGE),
        material(tree(TreeKind.EMPTY, b"d"), Treatment.EMPTY),
    ]
    steps = build(Spec((b"x",), symlinks=(SymlinkPolicy(b"c", True),)), items, mode=Mode.ROOT, machine=host(uid=0))
    attrs = {step.place.path: step.attrs for step in only(steps, plan.Attach)}
    for value in attrs.values():
        assert (
            value & (plan_types.Attr.NOSUID | plan_types.Attr.NODEV) == plan_types.Attr.NOSUID | plan_types.Attr.NODEV
        )
    read_only = {path for path, value in attrs.items() if value & plan_types.Attr.READ_ONLY}
    assert read_only == {b"static/a", b"static/b"}
    assert {path for path, value in attrs.items() if value & plan_types.Attr.NOSYMFOLLOW} == {b"dynamic/c"}


def test_a_target_is_checked_unless_only_the_run_can_see_it():
    outer = material(tree(name=b"/opt/a"), Treatment.IMAGE)
    inner = material(tree(name=b"/opt/a/b"), Treatment.IMAGE)
    status = os.stat_result((stat.S_IFDIR | 0o755, 7, 8, 1, 0, 0, 0, 0, 0, 0))
    targets = {b"/opt/a": Target(b"/opt/a", status), b"/opt/a/b": Target(b"/opt/a/b", None)}
    places = [step.place for step in only(build(Spec((b"x",)), [outer, inner], targets=targets), plan.Attach)][1:]
    assert [(place.dev, place.ino) for place in places] == [(8, 7), (0, 0)]


def test_a_covered_working_directory_is_entered_again():
    item = material(tree(name=b"/opt/a"), Treatment.IMAGE)
    targets = {b"/opt/a": Target(b"/opt/a", None)}
    assert only(build(Spec((b"x",)), [item], targets=targets, cwd=b"/opt/a/sub"), plan.Chdir)
    assert not only(build(Spec((b"x",)), [item], targets=targets, cwd=b"/opt/ab"), plan.Chdir)


def test_run_and_chdir_find_their_tree():
    item = material(tree(name=b"t"), Treatment.IMAGE)
    steps = build(Spec((), run=b"t/bin/x", chdir=b"t/sub/./y"), [item])
    assert only(steps, plan.Run)[0].path == b"bin/x"
    assert only(steps, plan.Chdir)[0].place.path == b"static/t/sub/y"
    for bad in ({"run": b"other/x"}, {"run": b"t"}, {"run": b"t/"}, {"chdir": b"t/../x"}):
        with pytest.raises(UsageError):
            build(Spec((b"x",), **bad), [item])


def test_a_policy_for_no_tree_is_refused():
    with pytest.raises(UsageError, match="no tree"):
        build(Spec((b"x",), symlinks=(SymlinkPolicy(b"none", True),)), [])


def test_the_default_cap_is_half_of_memory():
    assert only(build(Spec((b"x",)), []), plan.Tmpfs)[0].size == 4 << 30
    assert only(build(Spec((b"x",), tmpfs_size=5), []), plan.Tmpfs)[0].size == 5
    assert builder.TMPDIR == b"tmp"
