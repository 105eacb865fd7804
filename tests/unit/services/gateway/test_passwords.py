"""Password hashes of both makes."""

import asyncio
from collections.abc import Iterator

import bcrypt
import pytest

from services.gateway.passwords import Passwords
from tessera.http.errors import LimitExceeded


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    made = Passwords(time_cost=1, memory_kib=8, bcrypt_pepper="pepper")
    yield made
    made.close()


async def test_a_hash_is_argon2id_salted_and_verifies_its_password_only(passwords: Passwords) -> None:
    first, second = await passwords.hash("secret"), await passwords.hash("secret")
    assert first.startswith("$argon2id$")
    assert first != second
    assert await passwords.verify("secret", first)
    assert not await passwords.verify("Secret", first)
    assert not await passwords.verify("", first)


async def test_the_same_characters_in_another_encoding_are_the_same_password(passwords: Passwords) -> None:
    assert await passwords.verify("e\u0301", await passwords.hash("\u00e9"))


async def test_bcrypt_hashes_of_synapse_are_read_with_their_pepper(passwords: Passwords) -> None:
    old = bcrypt.hashpw(b"secret" + b"pepper", bcrypt.gensalt(4)).decode()
    assert await passwords.verify("secret", old)
    assert not await passwords.verify("wrong", old)
    assert passwords.needs_rehash(old)
    long = "x" * 100
    assert await passwords.verify(long, bcrypt.hashpw(long.encode()[:72], bcrypt.gensalt(4)).decode())


async def test_hashes_of_other_costs_are_to_be_renewed(passwords: Passwords) -> None:
    assert not passwords.needs_rehash(await passwords.hash("secret"))
    dearer = Passwords(time_cost=2, memory_kib=8)
    assert dearer.needs_rehash(await passwords.hash("secret"))
    dearer.close()


@pytest.mark.parametrize("broken", ["", "plain", "$argon2id$nonsense", "$2b$nonsense"])
async def test_a_broken_hash_is_nobody_s(passwords: Passwords, broken: str) -> None:
    assert not await passwords.verify("secret", broken)


async def test_nobody_s_hash_is_never_right(passwords: Passwords) -> None:
    assert not await passwords.verify("nobody's password", None)


async def test_the_queue_is_bounded() -> None:
    passwords = Passwords(workers=1, waiting_limit=1, time_cost=1, memory_kib=8)
    results = await asyncio.gather(*(passwords.hash("secret") for _ in range(4)), return_exceptions=True)
    assert [type(result) for result in results] == [str, str, LimitExceeded, LimitExceeded]
    assert await passwords.hash("secret")
    passwords.close()
