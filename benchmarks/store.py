"""The image store: how long building and verifying take, and that ten thousand images cost no more than ten."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Bench, Figure, ratio, seconds
from benchmarks.stage import Stage

_MANY, _FEW = 10_000, 10


def store(stage: Stage) -> Iterator[Figure]:
    """As root, where the kernel mounts: the store is the same for a user."""
    bench = stage.root or stage.user
    yield from _many(bench, stage)
    yield from _switching(bench)
    yield from _verifying(bench)
    yield from _building(bench, stage)


def _image(bench: Bench, *args: str) -> list[str]:
    return [bench.sandbox, "image", *args]


def _building(bench: Bench, stage: Stage) -> Iterator[Figure]:
    target, packed = bench.directory / "unzipped", bench.directory / "packed.sfs"
    unzip = ["unzip", "-q", str(stage.wheel), "-d", str(target)]
    fast = _image(bench, "build", str(stage.wheel), "-t", "zig", "--compress", "fast", "-q")
    small = _image(bench, "build", str(stage.wheel), "-t", "zig", "--compress", "small", "-q")
    ours, theirs = bench.alternate([(fast, bench.home), (unzip, target)], runs=5)
    shown = "sandbox image build ziglang.whl --compress fast"
    yield seconds("store", "image build --compress fast, ziglang wheel", ours, command=shown)
    yield ratio("store", "the same / unzip -q", ours, theirs, command=shown, bar=0.8)
    script = (
        f"rm -rf {target} {packed} && {' '.join(unzip)} && mksquashfs {target} {packed} -comp zstd -quiet -no-progress"
    )
    both = ["sh", "-c", script]
    ours, theirs = bench.alternate([(small, bench.home), (both, packed)], runs=3)
    yield seconds("store", "image build --compress small", ours, command=shown.replace("fast", "small"))
    yield ratio("store", "the same / unzip -q and mksquashfs -comp zstd", ours, theirs, command=script, bar=0.9)
    bench.run(small)
    size = (bench.home / "names" / "zig").stat().st_size / packed.stat().st_size
    yield Figure("store", "its size / that of mksquashfs", size, "x", script, "<= 1.02", size <= 1.02)
    shutil.rmtree(target)


def _verifying(bench: Bench) -> Iterator[Figure]:
    """300 MB that do not compress, in a thousand files; against sha256sum and reading the files of the mount."""
    source, raw = bench.directory / "300", bench.directory / "300.sfs"
    source.mkdir()
    for number in range(1000):
        (source / str(number)).write_bytes(os.urandom(300_000))
    bench.run(_image(bench, "build", str(source), "-t", "big", "-q"))
    shutil.copyfile(bench.home / "names" / "big", raw)
    shutil.rmtree(source)
    verify = _image(bench, "verify", "big", "-q")
    script = f"sha256sum {raw} >/dev/null && mount -o ro,loop {raw} /mnt && tar -cf - -C /mnt . | cat >/dev/null"
    peer = ["unshare", "-m", "sh", "-c", script]
    if bench.who.uid != 0:
        return
    ours, theirs = bench.alternate([(verify, bench.directory / "none"), (peer, bench.directory / "none")], runs=5)
    yield seconds("store", "image verify of 300 MB", ours, command="sandbox image verify big")
    yield ratio("store", "the same / sha256sum and reading every file", ours, theirs, command=script, bar=1.3)


def _switching(bench: Bench) -> Iterator[Figure]:
    for number in range(2):
        source = bench.directory / f"tiny{number}"
        source.mkdir()
        (source / "f").write_text(str(number))
        bench.run(_image(bench, "build", str(source), "-t", f"t{number}", "-q"))
    switch = f"{bench.sandbox} image tag t0 x && {bench.sandbox} image tag t1 x && {bench.sandbox} image rollback x"
    command = ["sh", "-c", switch]
    start, both = bench.compare([_image(bench, "history", "t0"), command], warmup=1)
    shown = "sandbox image tag t0 x; tag t1 x; rollback x"
    yield seconds("store", "two tags and a rollback, durable", both, command=shown)
    yield seconds("store", "three starts of the command alone", 3 * start, command="sandbox image history t0")
    report = bench.directory / "fsyncs"
    for what, args in (("tag", ["tag", "t1", "x"]), ("rollback", ["rollback", "x"])):
        bench.run(["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(report), *_image(bench, *args)])
        count = report.read_text().count("fsync(")
        yield Figure("store", f"fsyncs of a {what}", count, "", f"strace -e fsync sandbox image {what}")


def _many(bench: Bench, stage: Stage) -> Iterator[Figure]:
    """A home with ten images and one with ten thousand, small ones of their own content."""
    few, many = bench.directory / "few", bench.directory / "many"
    for home, count in ((few, _FEW), (many, _MANY)):
        subprocess.run(
            [str(stage.python), "-c", _FILL, str(home), str(count)], check=True, cwd=Path(__file__).parents[1]
        )
        subprocess.run(["chown", "-R", f"{bench.who.uid}:{bench.who.gid}", str(home)], check=True)
    run = ["run", "-s", "t:@n5", "--", "true"]
    commands = [["env", f"SANDBOX_HOME={home}", bench.sandbox, *run] for home in (few, many)]
    base, value = bench.compare(commands)
    yield ratio("store", "run -s @NAME, 10,000 images / 10", value, base, command="sandbox run -s @n5 -- true", bar=1.1)
    listing = ["env", f"SANDBOX_HOME={many}", *_image(bench, "ls")]
    cleaning = ["env", f"SANDBOX_HOME={many}", bench.sandbox, "cache", "clean", "--now"]
    ls, clean = bench.compare([listing, cleaning], warmup=1)
    yield seconds("store", "image ls of 10,000 images", ls, command="sandbox image ls", bar=1.0)
    yield seconds("store", "a pass of the reaper over them", clean, command="sandbox cache clean --now", bar=2.0)
    peak = "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    script = f"import resource, subprocess; subprocess.run({cleaning!r}); {peak}"
    done = subprocess.run([str(stage.python), "-c", script], capture_output=True, text=True, check=True)
    memory = int(done.stdout.split()[-1]) / 1024
    yield Figure("store", "its peak memory", memory, " MiB", "sandbox cache clean --now", "< 50", memory < 50)


# Images of their own content (a squashfs may have anything behind its end), each with a name and a history.
_FILL = """
import os, sys
from sandbox import fsops
from sandbox.images import convert, names
from sandbox.images.formats import Kind
from sandbox.images.store import Store
import io, tarfile
home = sys.argv[1]
os.mkdir(home, 0o700)
out = io.BytesIO()
tarfile.open(fileobj=out, mode="w").close()
source = os.memfd_create("tar")
os.write(source, out.getvalue())
image = os.memfd_create("image")
convert.build_image(convert.Output(image, "x", 1 << 20, 0, 0), source, Kind.TAR)
data = os.pread(image, 1 << 20, 0)
os.fsync = lambda fd: None
with Store(os.open(home, os.O_RDONLY)) as images:
    for number in range(int(sys.argv[2])):
        with fsops.Draft(images.cache) as draft:
            os.write(draft.fd, data + b"%d" % number)
            digest = images.publish(draft, f"source {number}")
        images.count_use(digest)
        names.tag(images, b"n%d" % number, digest)
"""
