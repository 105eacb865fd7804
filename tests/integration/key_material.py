"""Keys that clients would make, users with devices, and a fan-out that remembers: for the tests of encryption."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nacl.signing import SigningKey

from matrixcore.identifiers import UserId
from matrixcore.signing import encode_base64, signed_bytes
from tessera.fanout.local import LocalFanout
from tessera.storage.database import Database
from tessera.wakes import DeviceWake, UserWake

SERVER = "example.org"
ALICE, BOB, CAROL = (UserId(f"@{name}:{SERVER}") for name in ("alice", "bob", "carol"))


class RecordingFanout(LocalFanout):
    """Keeps the wakes instead of delivering them."""

    def __init__(self) -> None:
        super().__init__()
        self.user_wakes: list[UserWake] = []
        self.device_wakes: list[DeviceWake] = []

    async def publish_user_wakes(self, wakes: Sequence[UserWake]) -> None:
        self.user_wakes += wakes

    async def publish_device_wake(self, wake: DeviceWake) -> None:
        self.device_wakes.append(wake)


async def add_devices(accounts: Database, devices: Mapping[UserId, Iterable[str]]) -> None:
    """Users with devices; a device's display name is "<ID>'s phone"."""
    async with accounts.transaction() as tx:
        for user_id, device_ids in devices.items():
            await tx.execute(
                "INSERT INTO accounts.users (user_id, created_ts) VALUES ($1, 0) ON CONFLICT DO NOTHING", user_id
            )
            for device_id in device_ids:
                await tx.execute(
                    "INSERT INTO accounts.devices (user_id, device_id, display_name, created_ts)"
                    " VALUES ($1, $2, $3, 0)",
                    user_id,
                    device_id,
                    f"{device_id}'s phone",
                )


def sign(value: Mapping[str, Any], user_id: str, name: str, key: SigningKey) -> dict[str, Any]:
    """A copy with a signature under ed25519:<name>, beside those that are there."""
    signatures = {user: dict(own) for user, own in value.get("signatures", {}).items()}
    signature = encode_base64(key.sign(signed_bytes(value)).signature)
    signatures.setdefault(user_id, {})[f"ed25519:{name}"] = signature
    return {**value, "signatures": signatures}


def public(key: SigningKey) -> str:
    return encode_base64(bytes(key.verify_key))


@dataclass
class Device:
    """A device with its signing key."""

    user_id: UserId
    device_id: str
    key: SigningKey = field(default_factory=SigningKey.generate)

    @property
    def keys(self) -> dict[str, Any]:
        bare = {
            "user_id": self.user_id,
            "device_id": self.device_id,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": {f"ed25519:{self.device_id}": public(self.key), f"curve25519:{self.device_id}": "c" * 43},
        }
        return sign(bare, self.user_id, self.device_id, self.key)

    def one_time_keys(self, names: Iterable[str], *, fallback: bool = False) -> dict[str, Any]:
        """Key objects under signed_curve25519:<name>; the public key is the name itself."""
        extra = {"fallback": True} if fallback else {}
        return {
            f"signed_curve25519:{name}": sign({"key": name, **extra}, self.user_id, self.device_id, self.key)
            for name in names
        }


@dataclass
class Identity:
    """The three cross-signing keys of a user."""

    user_id: UserId
    master: SigningKey = field(default_factory=SigningKey.generate)
    self_signing: SigningKey = field(default_factory=SigningKey.generate)
    user_signing: SigningKey = field(default_factory=SigningKey.generate)

    @property
    def master_key(self) -> dict[str, Any]:
        return self._object("master", self.master)

    @property
    def upload(self) -> dict[str, Any]:
        return {
            "master_key": self.master_key,
            "self_signing_key": self._signed("self_signing", self.self_signing),
            "user_signing_key": self._signed("user_signing", self.user_signing),
        }

    def _signed(self, usage: str, key: SigningKey) -> dict[str, Any]:
        return sign(self._object(usage, key), self.user_id, public(self.master), self.master)

    def _object(self, usage: str, key: SigningKey) -> dict[str, Any]:
        return {"user_id": self.user_id, "usage": [usage], "keys": {f"ed25519:{public(key)}": public(key)}}
