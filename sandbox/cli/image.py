"""`sandbox image`: build, name, roll back, verify and carry images."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sandbox import fsops
from sandbox.errors import SandboxError, note, printable
from sandbox.home import Home
from sandbox.images import names
from sandbox.images.store import IMAGE, Store
from sandbox.spec import DEFAULT_MAX_UNPACKED, parse_size
from sandbox.units import size

_EPILOG = """\
IMAGE is NAME, @NAME or @sha256:PREFIX; wherever `sandbox run` and `image build` take a SRC, @NAME and @sha256:PREFIX
do as well. A name points at one image; switching it is atomic, and what runs keeps the image it started with."""
_IMAGE = {"metavar": "IMAGE", "help": "NAME, @NAME or @sha256:PREFIX"}


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser("image", help="build, name, verify and carry images", epilog=_EPILOG)
    commands = parser.add_subparsers(dest="image_command", metavar="ACTION", required=True)

    def command(name: str, about: str, *, listing: bool = False) -> Any:
        added = commands.add_parser(name, help=about, description=about)
        added.add_argument("-q", "--quiet", action="store_true", help="no progress bars, and nothing but results")
        if listing:
            added.add_argument("--json", action="store_true", help="print it as JSON")
        return added

    building = command("build", "make an image of any source that `sandbox run` takes")
    building.add_argument("source", metavar="SRC")
    building.add_argument("-t", "--tag", metavar="NAME", help="let NAME mean it; what NAME meant is kept for rollback")
    building.add_argument("--compress", choices=("fast", "small"), help="lz4 (default) or zstd")
    building.add_argument("--max-unpacked", metavar="SIZE", help="refuse archives that unpack to more")
    command("ls", "list images, or a directory in one", listing=True).add_argument(
        "where", nargs="*", metavar="IMAGE [PATH]", help="look into this image, without mounting it"
    )
    command("inspect", "what is known of an image", listing=True).add_argument("image", **_IMAGE)
    tagging = command("tag", "let a name mean an image")
    tagging.add_argument("image", **_IMAGE)
    tagging.add_argument("name", metavar="NAME")
    command("rollback", "let a name mean what it meant before").add_argument("name", metavar="NAME")
    command("history", "what a name meant, newest first", listing=True).add_argument("name", metavar="NAME")
    removing = command("rm", "remove names with what only they keep, or images without a name")
    removing.add_argument("images", nargs="+", **_IMAGE)
    verifying = command("verify", "read images, and compare them with their digests", listing=True)
    verifying.add_argument("images", nargs="*", **_IMAGE)
    verifying.add_argument("--all", action="store_true", help="every image there is")
    differing = command("diff", "what differs between two images, or stacks: @base and @base+@delta", listing=True)
    differing.add_argument("one", **_IMAGE)
    differing.add_argument("other", **_IMAGE)
    exporting = command("export", "write an image and what is known of it to a new file")
    exporting.add_argument("image", **_IMAGE)
    exporting.add_argument("file", metavar="FILE")
    importing = command("import", "take an exported image, or any squashfs, after reading all of it")
    importing.add_argument("file", metavar="FILE")
    importing.add_argument("-t", "--tag", metavar="NAME", help="let NAME mean it")
    showing = command("cat", "a file of an image, without mounting it")
    showing.add_argument("image", **_IMAGE)
    showing.add_argument("path", metavar="PATH")


def main(args: argparse.Namespace, home: Home) -> int:
    """Do it. Raises SandboxError."""
    if args.quiet:
        from sandbox.images import progress

        progress.silence()
    actions: dict[str, Callable[[argparse.Namespace, Store], int]] = {
        "build": _build,
        "ls": _ls,
        "inspect": _inspect,
        "tag": _tag,
        "rollback": _rollback,
        "history": _history,
        "rm": _remove,
        "verify": _verify,
        "diff": _diff,
        "export": _export,
        "import": _import,
        "cat": _cat,
    }
    with Store(home.fd) as images:
        return actions[args.image_command](args, images)


def _raw(text: str) -> bytes:
    return os.fsencode(text)


def _build(args: argparse.Namespace, images: Store) -> int:
    from sandbox.images import building

    limit = parse_size(args.max_unpacked, option="--max-unpacked") if args.max_unpacked else DEFAULT_MAX_UNPACKED
    name = None if args.tag is None else _raw(args.tag)
    say = (lambda _: None) if args.quiet else note
    built = building.build(
        images.home, _raw(args.source), name=name, compress=args.compress, max_unpacked=limit, say=say
    )
    print(f"sha256:{built.digest}")
    return 0


def _ls(args: argparse.Namespace, images: Store) -> int:
    from sandbox.images import listing

    if args.where:
        return _ls_inside(args, images)
    found = listing.images(images)
    if args.json:
        return _print_json([image._asdict() for image in found])
    rows = [
        (",".join(i.names), f"sha256:{i.digest[:12]}", size(i.size), i.compression, i.created, printable(i.source))
        for i in found
    ]
    _print_rows(("name", "image", "size", "compression", "created", "source"), rows)
    return 0


def _ls_inside(args: argparse.Namespace, images: Store) -> int:
    from sandbox.errors import UsageError
    from sandbox.images import inside

    if len(args.where) > 2:
        raise UsageError("image ls: one image and one path", hint="sandbox image ls [IMAGE [PATH]]")
    reference, path = args.where[0], (args.where[1] if len(args.where) > 1 else "/")
    found = names.open_reference(images, _raw(reference))
    with fsops.closing(found.fd):
        entries = inside.listing(found.fd, _raw(path), printable(reference))
    if args.json:
        return _print_json([entry._asdict() for entry in entries])
    for entry in entries:
        target = f" -> {printable(entry.target)}" if entry.target else ""
        print(f"{entry.mode} {entry.uid}/{entry.gid} {entry.size:>10} {printable(entry.name)}{target}")
    return 0


def _inspect(args: argparse.Namespace, images: Store) -> int:
    from sandbox.images import listing

    found = listing.image(images, names.resolve(images, _raw(args.image)))
    if args.json:
        return _print_json(found._asdict())
    for key, value in found._asdict().items():
        print(f"{key:12} {printable(', '.join(value) if isinstance(value, list) else str(value))}")
    return 0


def _tag(args: argparse.Namespace, images: Store) -> int:
    found = names.open_reference(images, _raw(args.image))
    with fsops.closing(found.fd):  # its lock keeps the reaper away
        names.tag(images, _raw(args.name), found.digest)
    return 0


def _rollback(args: argparse.Namespace, images: Store) -> int:
    print(f"sha256:{names.rollback(images, _raw(args.name)).decode()}")
    return 0


def _history(args: argparse.Namespace, images: Store) -> int:
    found = names.history(images, _raw(args.name))
    if args.json:
        return _print_json([generation._asdict() for generation in found])
    for generation in found:
        print(f"{'*' if generation.current else ' '} sha256:{generation.digest[:12]}  {generation.since}")
    return 0


def _remove(args: argparse.Namespace, images: Store) -> int:
    from sandbox.images import catalog

    for text in map(_raw, args.images):
        if text.removeprefix(b"@").startswith(b"sha256:"):
            doomed = {names.resolve(images, text)}
        else:
            doomed = names.forget(images, text) - names.kept(images)
            print(f"removed @{printable(text.removeprefix(b'@'))}")
        for digest in sorted(doomed):
            name = (digest + IMAGE).decode()
            try:
                catalog.remove(images, name)
                print(f"removed sha256:{digest.decode()}")
            except catalog.InUseError:
                if text.removeprefix(b"@").startswith(b"sha256:"):
                    raise
                note(f"sha256:{digest.decode()[:12]} stays: a sandbox is using it; it goes when nobody did for long")
    return 0


def _verify(args: argparse.Namespace, images: Store) -> int:
    from sandbox.errors import UsageError
    from sandbox.images import verify

    if bool(args.images) == args.all:
        raise UsageError("nothing to verify" if not args.all else "both images and --all", hint="IMAGE..., or --all")
    digests = [names.resolve(images, _raw(text)) for text in args.images]
    if args.all:
        digests = sorted(name.removesuffix(IMAGE) for name in images.listed(b"cache") if name.endswith(IMAGE))
    verdicts = []
    for digest in digests:
        verdict = verify.verify(images, digest)
        if verdict is None:
            if not args.all:
                raise SandboxError(f"there is no image sha256:{digest.decode()[:12]}", hint="see sandbox image ls")
            continue
        verdicts.append(verdict)
        if not args.json and (verdict.problem or not args.quiet):
            print(f"sha256:{digest.decode()[:12]}  {_verdict(verdict)}", flush=True)
    if args.json:
        _print_json([verdict._asdict() for verdict in verdicts])
    return 1 if any(verdict.problem for verdict in verdicts) else 0


def _verdict(verdict: Any) -> str:
    if not verdict.problem:
        return "ok"
    after = "evicted" if verdict.evicted else "a name keeps it, or a sandbox uses it: build it again, or roll back"
    return f"DAMAGED: {verdict.problem} ({after})"


def _diff(args: argparse.Namespace, images: Store) -> int:
    """Exit code 0, whether or not anything differs."""
    from sandbox.images import diff

    found = diff.images(images, _raw(args.one), _raw(args.other), max_unpacked=DEFAULT_MAX_UNPACKED)
    if args.json:
        return _print_json([change._asdict() for change in found])
    for change in found:
        print(change.change.ljust(8), change.path, f"({', '.join(change.what)})" if change.what else "")
    return 0


def _export(args: argparse.Namespace, images: Store) -> int:
    from sandbox.images import transfer

    found = names.open_reference(images, _raw(args.image))
    with fsops.closing(found.fd):
        written = transfer.export(images, found.fd, found.digest, _raw(args.file))
    if not args.quiet:
        print(f"sha256:{found.digest.decode()} {written} bytes")
    return 0


def _import(args: argparse.Namespace, images: Store) -> int:
    from sandbox.images import transfer

    name = None if args.tag is None else names.check_name(_raw(args.tag))
    digest = transfer.take(images, _raw(args.file))
    if name is not None:
        names.tag(images, name, digest)
    print(f"sha256:{digest.decode()}")
    return 0


def _cat(args: argparse.Namespace, images: Store) -> int:
    from sandbox.images import inside

    found = names.open_reference(images, _raw(args.image))
    with fsops.closing(found.fd):
        inside.cat(found.fd, _raw(args.path), printable(args.image), 1)
    return 0


def _print_json(value: Any) -> int:
    print(json.dumps(value, indent=2))
    return 0


def _print_rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal, else tab-separated lines."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    lines = [titles, *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(titles))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
