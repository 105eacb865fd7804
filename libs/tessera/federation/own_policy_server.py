"""This server as the policy server of rooms: which events it recommends, and its signature on these.

Spec: S-S API §Policy Servers.
"""

from dataclasses import dataclass

import orjson

from matrixcore.event_hashes import check_content_hash, essential_bytes
from matrixcore.events import Event
from matrixcore.globs import Matcher, whole_value_matcher
from matrixcore.identifiers import ServerName, server_of
from matrixcore.policy_servers import POLICY_KEY_ID
from matrixcore.signing import SigningKey
from tessera.config import Settings
from tessera.config.consistency import load_policy_key
from tessera.http.errors import MatrixError
from tessera.http.limits import RateLimits

SENDER_LIMIT = "tessera.policy_server.rc_sender"


class NotRecommended(MatrixError):
    """The policy server does not sign the event. Spec: POST /_matrix/policy/v1/sign, 400."""

    errcode = "M_FORBIDDEN"
    status = 400


@dataclass(frozen=True, slots=True)
class OwnPolicyServer:
    """What this server recommends in rooms whose m.room.policy names it with this key.

    Attributes:
        denied_words: in lower case.
    """

    name: ServerName
    key: SigningKey
    limits: RateLimits
    denied_users: tuple[Matcher, ...] = ()
    denied_words: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings, limits: RateLimits) -> "OwnPolicyServer | None":
        """As it is configured; None if this server is no policy server.

        Raises:
            ConfigError: its key cannot be read.
        """
        own, key = settings.tessera.policy_server, load_policy_key(settings)
        if own is None or key is None:
            return None
        users = tuple(whole_value_matcher(pattern) for pattern in own.denied_users)
        words = tuple(word.casefold() for word in own.denied_words)
        return cls(ServerName(settings.server_name), key, limits, users, words)

    def sign(self, event: Event, asker: ServerName | None = None) -> str:
        """The signature of an event that is recommended, in unpadded base64; its key is POLICY_KEY_ID.

        Args:
            asker: who wants it, if not the sender's own server. Its questions are counted as its own: others could
                use up what the sender may send.

        Raises:
            NotRecommended, LimitExceeded
        """
        # The signature covers the content's hash and not the content: one that is not hashed was not judged.
        if not check_content_hash(event.fields, event.rules):
            raise NotRecommended("The event's hash is not that of its content")
        if any(matches(event.sender) for matches in self.denied_users):
            raise NotRecommended("The room's policy server recommends nothing of this user")
        if self.denied_words:
            said = orjson.dumps(event.content).decode().casefold()
            if any(word in said for word in self.denied_words):
                raise NotRecommended("The room's policy server does not recommend this event")
        is_own = asker is None or asker == server_of(event.sender)
        self.limits.check(SENDER_LIMIT, event.sender if is_own else str(asker))
        return self.key.sign(essential_bytes(event.fields, event.rules))

    def answer(self, event: Event, asker: ServerName) -> dict[str, dict[str, str]]:
        """What is answered to a server that asks. Raises as `sign`."""
        return {self.name: {POLICY_KEY_ID: self.sign(event, asker)}}
