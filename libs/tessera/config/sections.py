"""The nested parts of the file that are small."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PositiveInt, SecretStr

from matrixcore.signing import KEY_BYTES, decode_base64
from tessera.config.values import Duration, Name, Section


def _check_public_key(text: str) -> str:
    try:
        length = len(decode_base64(text))
    except ValueError:
        raise ValueError("not base64") from None
    if length != KEY_BYTES:
        raise ValueError(f"a public key has {KEY_BYTES} bytes, not {length}")
    return text


PublicKey = Annotated[str, AfterValidator(_check_public_key)]
KeyId = Annotated[str, Field(pattern=r"^ed25519:[a-zA-Z0-9_]+$")]


class OldSigningKey(Section):
    """A key that this server signed with until `expired_ts` (milliseconds since the epoch)."""

    key: PublicKey
    expired_ts: Annotated[int, Field(ge=0)]


class TrustedKeyServer(Section):
    """A notary that is asked for other servers' keys."""

    server_name: Name
    verify_keys: dict[KeyId, PublicKey] | None = None
    accept_keys_insecurely: bool = False


class MatrixRtc(Section):
    """Media servers for calls of many (MSC4143).

    Attributes:
        transports: told to clients as they are; each has a `type`, for LiveKit also `livekit_service_url`.
    """

    transports: tuple[dict[str, Any], ...] = ()


def _refuse_policy(value: object) -> None:
    if value and not (isinstance(value, Mapping) and not value.get("enabled")):
        raise ValueError("is not supported; remove it, or switch it off")


class PasswordConfig(Section):
    """Passwords of our own.

    Attributes:
        enabled: whether people log in by them; else there must be single sign-on.
        pepper: part of the bcrypt hashes that Synapse made; those that are made here have none.
    """

    enabled: bool = True
    localdb_enabled: Literal[True] = True
    pepper: SecretStr | None = None
    policy: Annotated[None, BeforeValidator(_refuse_policy)] = None


class Presence(Section):
    """Whether presence is kept and sent."""

    enabled: bool = True


class UserDirectory(Section):
    """The search for people."""

    enabled: bool = True
    search_all_users: bool = False
    prefer_local_users: bool = False
    exclude_remote_users: bool = False
    show_locked_users: bool = False


class Push(Section):
    """What push gateways are told."""

    enabled: bool = True
    include_content: bool = True
    group_unread_count_by_room: bool = True
    jitter_delay: Duration | None = None


class DirectoryRule(Section):
    """The first rule whose globs all match decides. Used for aliases and for the published directory."""

    user_id: str = "*"
    alias: str = "*"
    room_id: str = "*"
    action: Literal["allow", "deny"] = "allow"


class SupportContact(Section):
    """Whom to ask. Spec: C-S API, GET /.well-known/matrix/support."""

    role: str = "m.role.admin"
    matrix_id: str | None = None
    email_address: str | None = None


class Support(Section):
    """What /.well-known/matrix/support answers."""

    contacts: tuple[SupportContact, ...] = ()
    support_page: str | None = None


class ServerNotices(Section):
    """The room in which the server talks to each of its users, and who it is there.

    Attributes:
        auto_join: users need not accept the invite.
    """

    system_mxid_localpart: Annotated[str, Field(pattern=r"^[a-z0-9._=/+-]{1,200}$")]
    system_mxid_display_name: str | None = None
    system_mxid_avatar_url: str | None = None
    room_name: str = "Server Notices"
    room_avatar_url: str | None = None
    room_topic: str | None = None
    auto_join: bool = False


class Pool(Section):
    """Connections to one database from one process."""

    min_size: PositiveInt = 1
    max_size: PositiveInt = 10


def section_of(annotation: object) -> type[BaseModel] | None:
    """The section that a field's annotation names, through Optional, Annotated, lists and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = section_of(part)
        if found is not None:
            return found
    return None
