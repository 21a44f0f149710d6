"""Squashfs and erofs as formats of images: building, size, mounting, reading, what two sandboxes share in memory."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import mounts
from benchmarks.measure import Bench, Figure, seconds
from benchmarks.stage import Stage

# As the cache packs for --compress fast and small; then erofs.
_BUILDERS = {
    "squashfs lz4": "tar -c -C {tree} . | tar2sqfs -q -f -c lz4 {image}",
    "squashfs zstd": "tar -c -C {tree} . | tar2sqfs -q -f -c zstd --comp-extra level=14 {image}",
    "erofs": "mkfs.erofs --quiet {image} {tree}",
    "erofs lz4": "mkfs.erofs --quiet -zlz4 -C65536 {image} {tree}",
}
_TIMES = {
    "first": "mount, nobody has it",
    "next": "mount, somebody has it",
    "walk": "look at every file",
    "read": "read every file",
    "largest": "read the largest file",
    "random": "4 KiB anywhere of it",
}


def formats(stage: Stage) -> Iterator[Figure]:
    """The wheel in each format; from the disk each time."""
    if (why := _obstacle(stage)) or (bench := stage.root) is None:
        print(f"formats: skipped: {why}", file=sys.stderr)
        return
    tree = bench.directory / "formats"
    bench.run(["unzip", "-q", "-o", str(stage.wheel), "-d", str(tree)])
    commands = {name: command.format(tree=tree, image=_image(bench, name)) for name, command in _BUILDERS.items()}
    entries = [(["sh", "-c", command], _image(bench, name)) for name, command in commands.items()]
    for (name, command), time in zip(commands.items(), bench.alternate(entries, runs=1), strict=True):
        shown = bench.shown([command]).strip("'")
        yield seconds("formats", f"{name}: build from a tree", time, command=shown)
        yield Figure("formats", f"{name}: size", _image(bench, name).stat().st_size / 1e6, " MB", shown)
    largest = max((path for path in tree.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    yield from _measured(stage, bench, str(largest.relative_to(tree)))
    shutil.rmtree(tree)


def _obstacle(stage: Stage) -> str:
    if stage.root is None:
        return "only root mounts images by the kernel"
    if "\terofs\n" not in Path("/proc/filesystems").read_text():
        return "the kernel has no erofs: modprobe erofs"
    if not shutil.which("mkfs.erofs"):
        return "mkfs.erofs is missing: apt-get install erofs-utils"
    return ""


def _image(bench: Bench, name: str) -> Path:
    return bench.directory / f"{name.replace(' ', '-')}.image"


def _measured(stage: Stage, bench: Bench, largest: str) -> Iterator[Figure]:
    locks = bench.directory / "locks"
    locks.mkdir(exist_ok=True)
    script = ["unshare", "-m", "--propagation=private", str(stage.python), mounts.__file__, str(locks), largest]
    images = [str(_image(bench, name)) for name in _BUILDERS]
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    done = subprocess.run([*script, *images], env=environment, stdout=subprocess.PIPE, check=True)
    for name, found in zip(_BUILDERS, json.loads(done.stdout), strict=True):
        shown = f"python benchmarks/mounts.py LOCKS {largest} {name.replace(' ', '-')}.image"
        for key, what in _TIMES.items():
            yield seconds("formats", f"{name}: {what}", found[key], command=shown)
        yield Figure("formats", f"{name}: of it in memory for the next sandbox", found["shared"] * 100, " %", shown)
