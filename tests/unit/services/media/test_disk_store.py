"""Objects on the disk: whole or not there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.media.disk_store import CHUNK_BYTES, DiskStore, ObjectTooLarge, StoredObject

KEY = "a-random_key"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = DiskStore(tmp_path)
    yield store
    store.close()


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def read(found: StoredObject | None) -> bytes:
    assert found is not None
    return b"".join([chunk async for chunk in found.chunks()])


async def test_an_object_appears_when_it_is_finished(store: DiskStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    writer = store.create(KEY, len(content))
    for start in range(0, len(content), 65_536):
        await writer.write(content[start : start + 65_536])
    assert await store.find(KEY) is None
    await writer.finish()
    assert files(tmp_path) == [f"content/{KEY[:2]}/{KEY[2:4]}/{KEY}"]
    found = await store.find(KEY)
    assert found is not None
    assert found.size_bytes == len(content)
    assert await found.peek(4) == content[:4]
    chunks = [chunk async for chunk in found.chunks()]
    assert b"".join(chunks) == content
    assert max(map(len, chunks)) <= CHUNK_BYTES


async def test_what_is_too_large_leaves_nothing(store: DiskStore, tmp_path: Path) -> None:
    writer = store.create(KEY, 10)
    await writer.write(b"0123456789")
    with pytest.raises(ObjectTooLarge):
        await writer.write(b"0")
    await writer.discard()
    assert files(tmp_path) == []


@pytest.mark.parametrize("key", ["../../../etc/passwd", "ab/cdefghi", "short", "", "nul\0aaaaaaa", "é" * 10])
async def test_a_key_is_never_a_path(store: DiskStore, key: str) -> None:
    with pytest.raises(ValueError, match="not the key"):
        await store.find(key)
    with pytest.raises(ValueError, match="not the key"):
        store.create(key, 1)


async def test_thumbnails_go_with_their_source(store: DiskStore, tmp_path: Path) -> None:
    writer = store.create(KEY, 10)
    await writer.finish()
    await store.add_thumbnail(KEY, "32x32-crop", b"one")
    await store.add_thumbnail(KEY, "32x32-crop", b"two")
    assert await read(await store.find_thumbnail(KEY, "32x32-crop")) == b"two"
    assert await store.find_thumbnail(KEY, "96x96-crop") is None
    with pytest.raises(ValueError, match="not the name"):
        await store.add_thumbnail(KEY, "../x", b"")
    await store.delete(KEY)
    await store.delete(KEY)
    assert files(tmp_path) == []
