import string
import uuid

from tessera.ids import IdSource


def test_seeded_sources_repeat_and_system_ones_do_not() -> None:
    assert IdSource.seeded(1).access_token() == IdSource.seeded(1).access_token()
    assert IdSource.seeded(1).token() != IdSource.seeded(2).token()
    assert IdSource().access_token() != IdSource().access_token()


def test_shapes() -> None:
    ids = IdSource.seeded(7)
    assert len(ids.device_id()) == 10
    assert set(ids.device_id()) <= set(string.ascii_uppercase)
    assert len(ids.media_id()) == 24
    assert set(ids.media_id()) <= set(string.ascii_letters)
    assert ids.access_token().startswith("tsa_")
    assert ids.refresh_token().startswith("tsr_")
    assert uuid.UUID(ids.uuid()).version == 4
    assert all(0 <= ids.fraction() < 1 for _ in range(100))
    assert len(ids.token(32)) == 43
