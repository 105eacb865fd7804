"""Walking through the objects on the disk, a few at a time: what a sweep looks at, sets aside and throws away.

Blocking; run it on the store's threads.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file or folder of the store, named by its key; times in seconds since the epoch."""

    key: str
    path: Path
    changed_s: float


class StoreWalk:
    """One walk through a store; `next_objects` and `next_thumbnails` go on where they stopped."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._objects = _walk(root / "content")
        self._thumbnails = _walk(root / "thumbnails")

    def next_objects(self, count: int) -> list[FoundFile]:
        """Some more objects; none at the end."""
        return _take(self._objects, count)

    def next_thumbnails(self, count: int) -> list[FoundFile]:
        """Some more folders of thumbnails, by the keys of their sources."""
        return _take(self._thumbnails, count)

    def delete_unfinished(self, before_s: float) -> int:
        """Delete uploads that have not grown since then: their process has died."""
        return _delete_older(self._root / "incoming", before_s)

    def set_aside(self, files: list[FoundFile], now_s: float) -> None:
        """Move objects out of the store; they stay for a while, should the database have been the wrong one."""
        aside = self._root / "orphaned"
        aside.mkdir(exist_ok=True)
        for file in files:
            with suppress(FileNotFoundError):
                os.utime(file.path, (now_s, now_s))
                os.rename(file.path, aside / file.key)

    def delete_set_aside(self, before_s: float) -> int:
        """Delete for ever what was set aside before that moment."""
        return _delete_older(self._root / "orphaned", before_s)

    def delete_thumbnails_without_source(self, found: list[FoundFile]) -> int:
        """Delete thumbnails whose source is gone: they can be made again if it comes back."""
        lost = [
            one
            for one in found
            if not (self._root / "content" / one.path.relative_to(self._root / "thumbnails")).exists()
        ]
        for one in lost:
            shutil.rmtree(one.path, ignore_errors=True)
        return len(lost)


def _walk(root: Path) -> Iterator[FoundFile]:
    """root/ab/cd/KEY in the order of names; folders that go meanwhile are passed over."""
    for first in _names(root):
        for second in _names(root / first):
            folder = root / first / second
            for key in _names(folder):
                with suppress(FileNotFoundError):
                    yield FoundFile(key, folder / key, (folder / key).stat().st_mtime)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _take(found: Iterator[FoundFile], count: int) -> list[FoundFile]:
    return [file for _, file in zip(range(count), found, strict=False)]


def _delete_older(folder: Path, before_s: float) -> int:
    deleted = 0
    for name in _names(folder):
        with suppress(FileNotFoundError):
            if (folder / name).stat().st_mtime < before_s:
                (folder / name).unlink()
                deleted += 1
    return deleted
