"""Filesystem operations by descriptor: the only package that changes the user's filesystem.

A path from outside is resolved once; everything after works on descriptors. A file becomes visible complete and
durable, or not at all. All functions raise OSError. `tests/unit/test_lint.py` keeps the rest of the package out of it.

    handles     opening and making, one component below a held directory
    copying     what somebody else made, out of a tree of theirs
    publishing  drafts, copies, and the atomic switch of a name
    removing    exact deletion, and trees
"""

from sandbox.fsops.copying import Copy, Reader, open_found, open_readable
from sandbox.fsops.handles import (
    TEMPORARY,
    append,
    closing,
    exists,
    fill,
    is_immutable,
    make_dir,
    make_dirs,
    make_dirs_in,
    make_new_dir,
    names,
    new_block_device,
    new_file,
    new_link,
    new_symlink,
    new_whiteout,
    open_dir,
    open_lock,
    open_locked,
    open_or_make_dir,
    open_path,
    open_to_append,
    read_file,
    same_file,
    set_immutable,
    set_mode_and_time,
    temporary_name,
    touch,
)
from sandbox.fsops.publishing import (
    Draft,
    copy_file,
    move_new,
    move_over,
    publish_copy,
    publish_dir,
    replace_file,
    switch_name,
)
from sandbox.fsops.removing import (
    delete_file,
    is_abandoned,
    remove_abandoned,
    remove_dir,
    remove_drafts,
    remove_tree,
)

__all__ = [
    "TEMPORARY",
    "Copy",
    "Draft",
    "Reader",
    "append",
    "closing",
    "copy_file",
    "delete_file",
    "exists",
    "fill",
    "is_abandoned",
    "is_immutable",
    "make_dir",
    "make_dirs",
    "make_dirs_in",
    "make_new_dir",
    "move_new",
    "move_over",
    "names",
    "new_block_device",
    "new_file",
    "new_link",
    "new_symlink",
    "new_whiteout",
    "open_dir",
    "open_found",
    "open_lock",
    "open_locked",
    "open_or_make_dir",
    "open_path",
    "open_readable",
    "open_to_append",
    "publish_copy",
    "publish_dir",
    "read_file",
    "remove_abandoned",
    "remove_dir",
    "remove_drafts",
    "remove_tree",
    "replace_file",
    "same_file",
    "set_immutable",
    "set_mode_and_time",
    "switch_name",
    "temporary_name",
    "touch",
]
