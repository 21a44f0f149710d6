"""libarchive, read through libarchive-c's bindings: raw entries of an archive, names as bytes, data without copies.

Runs in the worker only. libarchive-c's own iteration decodes names and logs warnings to stderr; this does neither.
"""

import ctypes
import locale
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sandbox.errors import ArchiveError, DamagedError, printable, reason
from sandbox.images import tarscan, zipdir
from sandbox.images.formats import Kind
from sandbox.units import size

_CHUNK = 1 << 18
_EOF, _OK, _WARN = 1, 0, -20
_SONAME = "libarchive.so.13"
_FILTERS = ("bzip2", "xz", "zstd")
_GZIP = b"\x1f\x8b"
_LONGEST_RECORD = 16 << 20  # tar pads to a whole one (tar -b), however little the archive holds


class Raw(NamedTuple):
    """One entry as libarchive gives it. `filetype` is of `stat.S_IFMT`; `size` is None when it is not known."""

    name: bytes
    filetype: int
    perm: int
    mtime_ns: int
    size: int | None
    symlink: bytes
    hardlink: bytes | None
    has_mode: bool
    data_map: tuple[tuple[int, int], ...]  # (offset, length) of what is not a hole; () for no holes
    whiteout: bool = False  # a character device 0:0, by which a layer hides a name: overlayfs.rst


Blocks = Callable[[], Iterator[tuple[int, memoryview]]]


def _bindings() -> Any:
    # find_library runs ldconfig, gcc and ld, a quarter of a second; the name of the library is known.
    try:
        ctypes.CDLL(_SONAME)
        os.environ["LIBARCHIVE"] = _SONAME
    except OSError:
        os.environ.pop("LIBARCHIVE", None)
    from libarchive import ffi

    return ffi


class _Library:
    """Our own prototypes: indexing a CDLL makes fresh function objects, without libarchive-c's error checks."""

    def __init__(self) -> None:
        self.ffi = _bindings()
        library, pointer = self.ffi.libarchive, ctypes.c_void_p

        def bind(name: str, result: Any, *arguments: Any) -> Any:
            function = library[f"archive_{name}"]
            function.restype, function.argtypes = result, arguments
            return function

        self.read_zip = bind("read_support_format_zip_seekable", ctypes.c_int, pointer)
        self.read_tar = bind("read_support_format_tar", ctypes.c_int, pointer)
        self.read_raw = bind("read_support_format_raw", ctypes.c_int, pointer)
        self.read_empty = bind("read_support_format_empty", ctypes.c_int, pointer)
        self.filters = [bind(f"read_support_filter_{name}", ctypes.c_int, pointer) for name in _FILTERS]
        self.next_header = bind("read_next_header2", ctypes.c_int, pointer, pointer)
        self.data_block = bind("read_data_block", ctypes.c_int, pointer, pointer, pointer, pointer)
        self.pathname = bind("entry_pathname", ctypes.c_char_p, pointer)
        self.symlink = bind("entry_symlink", ctypes.c_char_p, pointer)
        self.hardlink = bind("entry_hardlink", ctypes.c_char_p, pointer)
        self.mode = bind("entry_mode", ctypes.c_uint, pointer)
        self.mtime = bind("entry_mtime", ctypes.c_int64, pointer)
        self.mtime_nsec = bind("entry_mtime_nsec", ctypes.c_long, pointer)
        self.rdev = bind("entry_rdev", ctypes.c_uint64, pointer)
        self.size = bind("entry_size", ctypes.c_int64, pointer)
        self.size_is_set = bind("entry_size_is_set", ctypes.c_int, pointer)
        self.is_encrypted = bind("entry_is_encrypted", ctypes.c_int, pointer)
        self.sparse_reset = bind("entry_sparse_reset", ctypes.c_int, pointer)
        self.sparse_next = bind("entry_sparse_next", ctypes.c_int, pointer, pointer, pointer)
        self.error = bind("error_string", ctypes.c_char_p, pointer)
        self.view = ctypes.pythonapi.PyMemoryView_FromMemory
        self.view.restype, self.view.argtypes = ctypes.py_object, (pointer, ctypes.c_ssize_t, ctypes.c_int)


class _Handle:
    """One `struct archive` for reading, with what its callbacks need kept alive."""

    def __init__(self, library: _Library) -> None:
        self.library = library
        self.archive = library.ffi.read_new()
        self.entry = library.ffi.entry_new()
        self.failure: BaseException | None = None
        self._kept: list[Any] = []

    def close(self) -> None:
        self.library.ffi.entry_free(self.entry)
        self.library.ffi.read_free(self.archive)

    def open_fd(self, fd: int) -> None:
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            self.library.ffi.read_open_fd(self.archive, fd, _CHUNK)
        except Exception as error:  # libarchive-c's own type
            raise _refusal(str(error).partition(" (errno")[0]) from None

    def open_stream(self, chunks: Iterator[bytes | memoryview]) -> None:
        ffi = self.library.ffi

        def read(_archive: int, _context: int, buffer: Any) -> int:
            # An exception cannot cross C: it is kept, libarchive told to fail, and raised in `check`.
            try:
                chunk = bytes(next(chunks, b""))
            except BaseException as error:
                self.failure = error
                return -1
            self._kept[0] = chunk
            buffer[0] = ctypes.cast(ctypes.c_char_p(chunk), ctypes.c_void_p).value
            return len(chunk)

        callback = ffi.READ_CALLBACK(read)
        self._kept += [b"", callback]
        try:
            ffi.read_open(self.archive, None, ffi.NO_OPEN_CB, callback, ffi.NO_CLOSE_CB)
        except Exception as error:
            raise self.failure or _refusal(str(error).partition(" (errno")[0]) from None

    def next(self) -> bool:
        result = self.library.next_header(self.archive, self.entry)
        if result == _EOF and not self.failure:
            return False
        if result < _WARN or self.failure:
            raise self.error()
        return True

    def error(self, name: bytes = b"") -> BaseException:
        if self.failure:
            return self.failure
        said = self.library.error(self.archive) or b"unknown damage"
        return _refusal(said.decode("utf-8", "replace"), name)

    def blocks(self, name: bytes = b"") -> Iterator[tuple[int, memoryview]]:
        """The entry's data as (offset, bytes). A view is valid until the next is asked for."""
        buffer, length, offset = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_int64()
        references = ctypes.byref(buffer), ctypes.byref(length), ctypes.byref(offset)
        library, archive = self.library, self.archive
        while True:
            result = library.data_block(archive, *references)
            if result == _EOF and not self.failure:
                return
            if result != _OK:  # a warning here is a wrong checksum or size
                raise self.error(name)
            if length.value:
                yield offset.value, library.view(buffer, length.value, 0x100)  # PyBUF_READ


def _refusal(said: str, name: bytes = b"") -> ArchiveError:
    """libarchive's message as the end of a sentence about the archive."""
    where = f"entry '{printable(name)}' " if name else "it "
    if any(word in said.lower() for word in ("passphrase", "encrypt")):
        return ArchiveError(f"{where}is encrypted")
    return DamagedError(f"{where}is damaged or truncated: {printable(said)}")


def too_large(max_unpacked: int) -> ArchiveError:
    return ArchiveError(
        f"it unpacks to more than {size(max_unpacked)}", hint="raise --max-unpacked if it is to be trusted"
    )


class Reader:
    """The entries of the zip or tar in the regular file `fd`, in order.

    Raises ArchiveError without the source's name, also when more than `max_unpacked` bytes follow a tar's end.
    """

    def __init__(self, fd: int, kind: Kind, *, max_unpacked: int, stream: Iterator[bytes] | None = None) -> None:
        # libarchive converts the names that a zip marks as UTF-8 to the locale's charset.
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
        self._library = _Library()
        self._handle = _Handle(self._library)
        self._zip: list[zipdir.Record] | None = None
        self._fd = fd
        self._max_unpacked = max_unpacked
        self._packed: Iterator[bytes] | None = None  # what a compressed tar unpacks to
        if kind is Kind.ZIP:
            self._open_zip()
        else:
            self._library.read_tar(self._handle.archive)
            self._library.read_empty(self._handle.archive)
            self._packed = None if stream else _decompressed(fd, self._library)
            self._handle.open_stream(_watched(stream or self._packed or file_chunks(fd)))

    def close(self) -> None:
        self._handle.close()

    def _open_zip(self) -> None:
        found = sorted(zipdir.records(self._fd), key=lambda record: record.offset)
        last = -1
        for record in found:
            if record.encrypted:
                raise ArchiveError(f"entry '{printable(record.name)}' is encrypted")
            if record.offset == last:
                raise ArchiveError(f"entry '{printable(record.name)}' shares its data with another entry")
            last = record.offset
            zipdir.check_local_name(self._fd, record)
        self._zip = found
        if found:
            self._library.read_zip(self._handle.archive)
            self._handle.open_fd(self._fd)

    def blocks(self, name: bytes) -> Iterator[tuple[int, memoryview]]:
        """The data of the entry that was yielded last."""
        return self._handle.blocks(name)

    def __iter__(self) -> Iterator[Raw]:
        if self._zip is None:
            while self._handle.next():
                yield self._entry(None)
            self._read_rest()
            return
        for record in self._zip:
            # libarchive's order is that of the offsets, too.
            if not self._handle.next():
                raise DamagedError(f"entry '{printable(record.name)}' is damaged or missing")
            yield self._entry(record)

    def _read_rest(self) -> None:
        """libarchive stops at the mark at a tar's end, and the last checksum of what is compressed comes later."""
        left = max(self._max_unpacked, _LONGEST_RECORD)
        for chunk in self._packed or ():
            left -= len(chunk)
            if left < 0:
                raise too_large(self._max_unpacked)

    def _entry(self, record: zipdir.Record | None) -> Raw:
        library, entry = self._library, self._handle.entry
        name = library.pathname(entry)
        if record is not None and name is None:
            name = record.name  # marked as UTF-8, and is not
        if name is None:
            raise ArchiveError("an entry's name cannot be decoded")
        if library.is_encrypted(entry):
            raise ArchiveError(f"entry '{printable(name)}' is encrypted")
        mode = library.mode(entry)
        hardlink = library.hardlink(entry)
        length = library.size(entry) if library.size_is_set(entry) else None
        return Raw(
            name,
            mode & 0o170000,
            mode & 0o7777,
            library.mtime(entry) * 1_000_000_000 + library.mtime_nsec(entry),
            length,
            library.symlink(entry) or b"",
            hardlink,
            record is None or record.has_mode,
            () if record is not None or hardlink is not None else self._data_map(entry),
            stat.S_ISCHR(mode) and library.rdev(entry) == 0,
        )

    def _data_map(self, entry: Any) -> tuple[tuple[int, int], ...]:
        count = self._library.sparse_reset(entry)
        offset, length = ctypes.c_int64(), ctypes.c_int64()
        found = []
        for _ in range(count):
            if self._library.sparse_next(entry, ctypes.byref(offset), ctypes.byref(length)) != _OK:
                break
            found.append((offset.value, length.value))
        return tuple(found)


# -- the bytes of a tar -----------------------------------------------------------------------------------------


def _watched(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, after the watcher has seen them. Never none: libarchive would take that for the end."""
    watcher = tarscan.Watcher()
    for chunk in filter(None, chunks):
        watcher.feed(chunk)
        yield chunk
    if not watcher.finished:
        raise DamagedError("it is truncated: the mark at the end of a tar is missing")


def _decompressed(fd: int, library: _Library) -> Iterator[bytes] | None:
    """What the file unpacks to, all checksums checked once it is read to its end; None where it is not compressed."""
    head = os.pread(fd, 512, 0)
    if head.startswith(_GZIP):
        return _gunzip(fd)
    if head.startswith((b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")):
        return _filtered(fd, library)
    return None


def file_chunks(fd: int) -> Iterator[bytes]:
    """The file from its current offset (a regular file: from its start) to its end."""
    while True:
        try:
            chunk = os.read(fd, _CHUNK)
        except OSError as error:
            raise ArchiveError(f"it cannot be read: {reason(error)}") from None
        if not chunk:
            return
        yield chunk


def _gunzip(fd: int) -> Iterator[bytes]:
    """All members of a gzip file. libarchive does not check gzip's checksums (its source says so); zlib does."""
    os.lseek(fd, 0, os.SEEK_SET)
    inflate = zlib.decompressobj(31)
    data, members = b"", 0
    try:
        while True:
            data = data or os.read(fd, _CHUNK)
            if not data:
                break
            yield inflate.decompress(data, 4 * _CHUNK)
            data = inflate.unconsumed_tail
            if not inflate.eof:
                continue
            members += 1
            data = (inflate.unused_data + os.read(fd, _CHUNK)).lstrip(b"\0")
            inflate = zlib.decompressobj(31)
            if not data.startswith(_GZIP):
                return  # as gzip does: what follows the last member is not its business
    except zlib.error as error:
        raise DamagedError(f"its gzip data is damaged: {error}") from None
    raise DamagedError("its gzip data is truncated")


def _filtered(fd: int, library: _Library) -> Iterator[bytes]:
    handle = _Handle(library)
    try:
        library.read_raw(handle.archive)
        library.read_empty(handle.archive)
        for add in library.filters:
            add(handle.archive)
        handle.open_fd(fd)
        while handle.next():
            for _, view in handle.blocks():
                yield bytes(view)
    finally:
        handle.close()
