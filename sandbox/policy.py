"""/etc/sandbox/policy.toml: what the setuid helper allows. Written and judged here, obeyed by the helper.

The helper has its own, stricter parser of the same subset of TOML; the keys are explained in docs/setuid.md.
"""

import tomllib
from collections.abc import Callable, Iterable
from typing import Any

PATH = "/etc/sandbox/policy.toml"
STORE = "/var/lib/sandbox"
BUILDER = "_sandbox"
IMAGES = ("rebuild", "any", "trusted")

_TEMPLATE = """\
# What the setuid helper of sandbox allows. See docs/setuid.md; `sandbox setuid status` says what is wrong with it.
# Must belong to root and be writable by nobody else, or the helper refuses every launch. All numbers are numeric ids
# and bytes: the helper asks no name service. Everything that is left out has the value shown here.

# Who may launch: numeric groups. The helper's own group and mode (4750 root:sandbox) are the first gate.
groups = [{groups}]

# Which images the kernel mounts. Always those that only root could have made: root-owned files of a local file
# system, below root-owned directories or one of `trusted_directories`. All others:
#   "rebuild"  are unpacked and packed again by the builder, so that the kernel never parses what a user made
#   "any"      are copied and mounted as they are: only where every user is trusted with the kernel's squashfs code
#   "trusted"  are refused
images = "rebuild"
trusted_directories = []

# Who rebuilds: the ids of a system user that owns nothing and runs nothing else.
builder_uid = {uid}
builder_gid = {gid}

# Where rebuilt images are kept, a directory per user beneath it.
store = "/var/lib/sandbox"

# At most so many bytes: one image; all of one user's images in the store; each tmpfs; each image kept in memory.
image_bytes = {image_bytes}
store_bytes = {store_bytes}
tmpfs_bytes = {tmpfs_bytes}
memfd_bytes = {memfd_bytes}

# Whether a command may gain privileges (setuid programs) when nothing is mounted outside its private directory.
allow_new_privs = false
"""
LIMITS = {
    "image_bytes": 16 << 30,
    "store_bytes": 32 << 30,
    "tmpfs_bytes": 16 << 30,
    "memfd_bytes": 4 << 30,
}


def template(*, groups: Iterable[int], uid: int, gid: int) -> str:
    """The default policy, with comments."""
    return _TEMPLATE.format(groups=", ".join(map(str, groups)), uid=uid, gid=gid, **LIMITS)


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_id(value: Any) -> bool:
    # The last one means "no change" to the kernel (chown(2)).
    return _is_number(value) and value < (1 << 32) - 1


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/") and "\0" not in value and ".." not in value.split("/")


def _is_list_of(item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(item, value))


_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "groups": (_is_list_of(_is_id), "a list of numeric groups"),
    "images": (lambda value: value in IMAGES, f"one of {', '.join(IMAGES)}"),
    "trusted_directories": (_is_list_of(_is_path), "a list of absolute paths"),
    "builder_uid": (lambda value: _is_id(value) and value != 0, "a user id, not root's"),
    "builder_gid": (lambda value: _is_id(value) and value != 0, "a group id, not root's"),
    "store": (_is_path, "an absolute path"),
    **dict.fromkeys(LIMITS, (_is_number, "a number of bytes")),
    "allow_new_privs": (lambda value: isinstance(value, bool), "true or false"),
}


def parse(text: bytes) -> tuple[dict[str, Any], list[str]]:
    """The policy's keys and values, and what is wrong with them (empty when nothing is)."""
    try:
        values = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return {}, [f"cannot be parsed: {error}"]
    wrong = [f"{name}: no such key" for name in values.keys() - _KEYS.keys()]
    for name, value in values.items():
        if name in _KEYS and not _KEYS[name][0](value):
            wrong.append(f"{name}: must be {_KEYS[name][1]}")
    return values, sorted(wrong)
