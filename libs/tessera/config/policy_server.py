"""Being the policy server of rooms. Spec: S-S API §Policy Servers."""

from typing import Annotated

from pydantic import Field

from tessera.config.rate_limits import RateLimit
from tessera.config.values import FilePath, Section

Word = Annotated[str, Field(min_length=2, max_length=200)]


class PolicyServerSettings(Section):
    """Under `tessera.policy_server`: which events are recommended in rooms whose m.room.policy names this server.

    Attributes:
        signing_key_path: a file with one key, as signing_key_path's, that is not the server's own.
        denied_users: patterns of senders, with * and ?, of whose events none is recommended.
        denied_words: texts that no recommended event has in its content, in upper or lower case.
        rc_sender: recommended events, by sender.
    """

    signing_key_path: FilePath
    denied_users: Annotated[tuple[str, ...], Field(max_length=1_000)] = ()
    denied_words: Annotated[tuple[Word, ...], Field(max_length=1_000)] = ()
    rc_sender: RateLimit = RateLimit(per_second=2, burst_count=60)
