"""/etc/sandbox/policy.toml: what the setuid helper allows. Written and judged here, obeyed by the helper.

The helper has its own, stricter parser of the same subset of TOML; the keys are explained in docs/setuid.md.
"""

import os
import re
import tomllib
from collections.abc import Callable, Iterable
from typing import Any

from sandbox.setuid import POLICY

PATH = POLICY
STORE = "/var/lib/sandbox"
BUILDER = "_sandbox"
# Made by distribution packages, which cannot write an id into a configuration file: the builder is whom it belongs to.
BUILDER_DIRECTORY = f"{STORE}/builder"
# What the builder runs, by absolute path (squashfs-tools-ng).
_PROGRAMS = ("/usr/bin/sqfs2tar", "/usr/bin/tar2sqfs")
IMAGES = ("rebuild", "any", "trusted")

_TEMPLATE = """\
# What the setuid helper of sandbox allows. See docs/setuid.md; `sandbox setuid status` says what is wrong with it.
# Must belong to root and be writable by nobody else, or the helper refuses every launch. All numbers are numeric ids
# and bytes: the helper asks no name service.

# Who may launch: numeric groups; none listed: whoever may execute the helper (4750 root:sandbox), the first gate.
groups = [{groups}]

# Which images the kernel mounts. Always those that only root could have made: root-owned files of a local file
# system, below root-owned directories or one of `trusted_directories`. All others:
#   "rebuild"  are unpacked and packed again by the builder, so that the kernel never parses what a user made
#   "any"      are copied and mounted as they are: only where every user is trusted with the kernel's squashfs code
#   "trusted"  are refused
images = "rebuild"
trusted_directories = []

# Who rebuilds: the ids of a system user that owns nothing and runs nothing else.
{builder}

# Where images that are rebuilt for `--cache` are kept, in a directory per user that only root gets into.
store = "/var/lib/sandbox"

# At most so many bytes. One image that is rebuilt or copied:
image_bytes = {image_bytes}
# All of one user's images in the store, each counting at least 1 MiB (the least recently used go first):
store_bytes = {store_bytes}
# All images of a launch that are kept in memory{half}:
memfd_bytes = {memfd_bytes}
# All tmpfs of a launch together{whole}:
{tmpfs}

# At most so many, for each user: loop devices, and images that are rebuilt at the same time.
loop_devices = {loop_devices}
builders = {builders}

# Whether `--allow-new-privs` lets a command gain privileges by setuid programs. Only where nothing of the host is
# mounted over.
allow_new_privs = false
"""
_LIMITS = ("image_bytes", "store_bytes", "tmpfs_bytes", "memfd_bytes")
_BYTES = {"image_bytes": 16 << 30, "store_bytes": 32 << 30}
_COUNTS = {"loop_devices": 64, "builders": 2}
# The helper's subset of TOML, line by line: a string has no escapes, a list stands on one line.
_VALUE = r'(?:"[^"\\]*"|0|[1-9][0-9]*|true|false)'
_LINE = re.compile(rf"(?:\[[a-z_]+\]|[a-z_]+[ \t]*=[ \t]*(?:{_VALUE}|\[[^\[\]]*\]))?[ \t]*(?:#.*)?")


def template(*, groups: Iterable[int], uid: int, gid: int) -> str:
    """The default policy of this machine, with comments."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _TEMPLATE.format(
        groups=", ".join(map(str, groups)),
        builder=f"builder_uid = {uid}\nbuilder_gid = {gid}",
        half=" (at the installation: half of the RAM)",
        memfd_bytes=memory // 2,
        whole=" (at the installation: the RAM; left out: what the launch asks for)",
        tmpfs=f"tmpfs_bytes = {memory}",
        **_BYTES,
        **_COUNTS,
    )


def packaged() -> str:
    """The policy that distribution packages ship, the same for every machine: it names no ids and no RAM."""
    return _TEMPLATE.format(
        groups="",
        builder=f"# Left out, they are those of {BUILDER_DIRECTORY}, which the package makes.\n"
        "#builder_uid = 998\n#builder_gid = 998",
        half="",
        memfd_bytes=16 << 30,
        whole=" (left out: what the launch asks for)",
        tmpfs=f"#tmpfs_bytes = {16 << 30}",
        **_BYTES,
        **_COUNTS,
    )


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
    **dict.fromkeys(_LIMITS, (_is_number, "a number of bytes")),
    **dict.fromkeys(_COUNTS, (_is_number, "a number")),
    "allow_new_privs": (lambda value: type(value) is bool, "true or false"),
}


def parse(text: bytes) -> tuple[dict[str, Any], list[str]]:
    """The policy's keys and values, and what is wrong with them (empty when nothing is)."""
    try:
        values = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return {}, [f"cannot be parsed: {error}"]
    odd = [
        number for number, line in enumerate(text.decode().splitlines(), 1) if not _LINE.fullmatch(line.strip(" \t"))
    ]
    if odd:
        return values, [f"line {odd[0]}: the helper reads no such TOML (docs/setuid.md)"]
    # The limits may stand in a table of their own.
    limits = values.pop("limits", {})
    if isinstance(limits, dict) and limits.keys() <= set(_LIMITS):
        values |= limits
    else:
        values["limits"] = limits
    wrong = [f"{name}: no such key" for name in values.keys() - _KEYS.keys()]
    for name, value in values.items():
        if name in _KEYS and not _KEYS[name][0](value):
            wrong.append(f"{name}: must be {_KEYS[name][1]}")
    return values, sorted(wrong)


def images() -> str:
    """What the installed policy says of users' images; the default when it says nothing."""
    return str(_installed().get("images", IMAGES[0]))


def store() -> str:
    """Where the helper keeps images."""
    return str(_installed().get("store", STORE))


def builder(values: dict[str, Any]) -> int | None:
    """The uid that rebuilds under a policy with these values; None where nobody does."""
    if "builder_uid" in values or "builder_gid" in values:
        return values.get("builder_uid")
    try:
        return os.lstat(BUILDER_DIRECTORY).st_uid
    except OSError:
        return None


def _installed() -> dict[str, Any]:
    try:
        with open(PATH, "rb") as file:
            return parse(file.read())[0]
    except OSError:
        return {}


def missing_programs() -> list[str]:
    """The programs of the builder that are not there."""
    return [path for path in _PROGRAMS if not os.access(path, os.X_OK)]
