"""Objects on the local disk, written once and never changed.

An object's key is random and becomes known by the row that names it, so a crash leaves at worst a file that no row
names, and two uploads never meet in one file. Thumbnails lie beside, under the key of their source, and can be thrown
away at any time.

All file access runs on threads of this store; nothing here blocks the event loop.
"""

import asyncio
import os
import re
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

from services.media.store_sweep import StoreWalk

CHUNK_BYTES = 256 * 1024
# An upload gathers so much between two trips to a thread.
GATHER_BYTES = 512 * 1024
IO_THREADS = 8

_KEY = re.compile(r"[A-Za-z0-9_-]{8,128}")
_VARIANT = re.compile(r"[a-z0-9-]{1,64}")

T = TypeVar("T")


class ObjectTooLarge(Exception):
    """More bytes came than the writer was told to take."""


class StoreClosed(Exception):
    """The process is about to end, and the store has been closed."""


class StoredObject:
    """An open object: its size, and its bytes in chunks. Read it once or close it."""

    def __init__(self, store: "DiskStore", file: BinaryIO, size_bytes: int) -> None:
        self._store = store
        self._file = file
        self.size_bytes = size_bytes

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes in chunks of at most CHUNK_BYTES; the file is closed at the end, whatever ends it."""
        try:
            left = self.size_bytes
            while left > 0:
                chunk = await self._store.run(self._file.read, min(left, CHUNK_BYTES))
                if not chunk:
                    raise OSError("a stored object is shorter than it was when it was opened")
                left -= len(chunk)
                yield chunk
        finally:
            self._file.close()

    async def peek(self, count: int) -> bytes:
        """The first bytes, without moving on; only before `chunks`."""
        return await self._store.run(os.pread, self._file.fileno(), count, 0)

    def close(self) -> None:
        """Give the file back without reading it."""
        self._file.close()


class ObjectWriter:
    """A new object that nobody sees before `finish`."""

    def __init__(self, store: "DiskStore", key: str, temporary: Path, limit_bytes: int) -> None:
        self.key = key
        self.size_bytes = 0
        self._store = store
        self._temporary = temporary
        self._file: BinaryIO | None = None  # opened by the first write to the disk
        self._limit_bytes = limit_bytes
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0

    async def write(self, chunk: bytes) -> None:
        """Add bytes; they go to the disk in pieces of about GATHER_BYTES.

        Raises:
            ObjectTooLarge: the limit is exceeded; the caller discards the writer.
        """
        self.size_bytes += len(chunk)
        if self.size_bytes > self._limit_bytes:
            raise ObjectTooLarge
        self._gathered.append(chunk)
        self._gathered_bytes += len(chunk)
        if self._gathered_bytes >= GATHER_BYTES:
            await self._store.run(self._write, self._take())

    async def finish(self) -> None:
        """Put the object in its place, safe against a power cut, before any row names it."""
        await self._store.run(self._finish, self._take())

    async def discard(self) -> None:
        """Remove what was written; harmless after `finish`."""
        self._gathered.clear()
        await self._store.run(self._discard)

    def _take(self) -> list[bytes]:
        pieces, self._gathered, self._gathered_bytes = self._gathered, [], 0
        return pieces

    def _write(self, pieces: list[bytes]) -> BinaryIO:
        if self._file is None:
            self._file = open(self._temporary, "xb")  # noqa: SIM115 (finish and discard close it)
        self._file.writelines(pieces)
        return self._file

    def _finish(self, pieces: list[bytes]) -> None:
        file = self._write(pieces)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        place = self._store.path_of(self.key)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(self._temporary, place)
        _sync_directory(place.parent)

    def _discard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


class DiskStore:
    """Objects under one directory: incoming/, content/ab/cd/KEY and thumbnails/ab/cd/KEY/VARIANT."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._threads = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="media-io")
        self._is_closed = False
        for name in ("incoming", "content", "thumbnails"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """End the threads; what they are doing is finished first."""
        self._is_closed = True
        self._threads.shutdown(wait=True)

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a blocking file operation on a thread of the store.

        Raises:
            StoreClosed
        """
        if self._is_closed:
            raise StoreClosed
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def path_of(self, key: str) -> Path:
        """Where an object lies.

        Raises:
            ValueError: not a key of this store.
        """
        return self._root / "content" / _split(key)

    def create(self, key: str, limit_bytes: int) -> ObjectWriter:
        """Begin an object of at most `limit_bytes` under a new random key.

        Raises:
            ValueError: not a key of this store.
        """
        _split(key)
        return ObjectWriter(self, key, self._root / "incoming" / key, limit_bytes)

    async def find(self, key: str) -> StoredObject | None:
        """Open an object."""
        return await self._open(self.path_of(key))

    async def delete(self, key: str) -> None:
        """Delete an object and its thumbnails; safe to repeat."""
        await self.run(self._delete, key)

    def walk(self) -> StoreWalk:
        """A walk through everything that lies here; its methods block, so `run` them."""
        return StoreWalk(self._root)

    async def find_thumbnail(self, key: str, variant: str) -> StoredObject | None:
        """Open a thumbnail that `add_thumbnail` has put there."""
        return await self._open(self._thumbnail_path(key, variant))

    async def add_thumbnail(self, key: str, variant: str, content: bytes) -> None:
        """Keep a thumbnail; of two made at the same time the last one stays."""
        await self.run(self._write_thumbnail, self._thumbnail_path(key, variant), content)

    def _thumbnail_path(self, key: str, variant: str) -> Path:
        if not _VARIANT.fullmatch(variant):
            raise ValueError("not the name of a thumbnail")
        return self._root / "thumbnails" / _split(key) / variant

    async def _open(self, path: Path) -> StoredObject | None:
        opened = await self.run(_open_with_size, path)
        return None if opened is None else StoredObject(self, *opened)

    def _delete(self, key: str) -> None:
        self.path_of(key).unlink(missing_ok=True)
        shutil.rmtree(self._root / "thumbnails" / _split(key), ignore_errors=True)

    def _write_thumbnail(self, place: Path, content: bytes) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Named by the thread: two threads that make the same thumbnail do not write into one file.
        temporary = place.with_name(f"{place.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        temporary.write_bytes(content)
        os.replace(temporary, place)


def _split(key: str) -> Path:
    if not _KEY.fullmatch(key):
        raise ValueError("not the key of an object")
    return Path(key[0:2], key[2:4], key)


def _open_with_size(path: Path) -> tuple[BinaryIO, int] | None:
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 (the reader closes it)
    except FileNotFoundError:
        return None
    return file, os.fstat(file.fileno()).st_size


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
