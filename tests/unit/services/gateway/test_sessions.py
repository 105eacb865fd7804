"""How long tokens live."""

from services.gateway.sessions import TokenLifetimes, make_tokens
from tessera.ids import IdSource
from tessera.storage.access_tokens import hash_token

IDS = IdSource.seeded(1)
NOW = 1_000_000


def test_a_plain_token_lives_for_ever_unless_the_operator_says_otherwise() -> None:
    issued, stored = make_tokens(IDS, TokenLifetimes(), NOW, refreshable=False)
    assert issued.fields() == {"access_token": issued.access_token}
    assert stored.access_hash == hash_token(issued.access_token)
    assert (stored.expires_ts, stored.refresh_hash, stored.session_expires_ts) == (None, None, None)


def test_a_refreshable_token_comes_with_its_end_and_a_refresh_token() -> None:
    issued, stored = make_tokens(IDS, TokenLifetimes(refresh_ms=500_000), NOW, refreshable=True)
    assert issued.expires_in_ms == 300_000
    assert issued.refresh_token is not None
    assert issued.fields().keys() == {"access_token", "expires_in_ms", "refresh_token"}
    assert stored.refresh_hash == hash_token(issued.refresh_token)
    assert (stored.expires_ts, stored.refresh_expires_ts) == (NOW + 300_000, NOW + 500_000)


def test_nothing_outlives_the_session() -> None:
    lifetimes = TokenLifetimes(plain_ms=9_000, refresh_ms=9_000, session_ms=5_000)
    _, first = make_tokens(IDS, lifetimes, NOW, refreshable=True)
    assert (first.expires_ts, first.refresh_expires_ts, first.session_expires_ts) == (NOW + 5_000,) * 3
    _, later = make_tokens(IDS, lifetimes, NOW + 4_000, refreshable=True, session_expires_ts=NOW + 5_000)
    assert later.expires_ts == NOW + 5_000
    issued, _ = make_tokens(IDS, lifetimes, NOW, refreshable=False)
    assert issued.expires_in_ms == 5_000
