"""The rules for m.room.member, allowed and refused. Spec: Room Versions §Authorisation rules, rule 4 (5 in 1-5, 12)."""

from collections.abc import Callable
from typing import Any

import pytest
from auth_room import ALICE, ALL, BOB, CREATOR, EVE, AuthRoom, since, until

from matrixcore.signing import SigningKey, encode_base64, sign_json

Prepare = Callable[[AuthRoom], Any]
JOIN, INVITE, LEAVE, BAN, KNOCK = "join", "invite", "leave", "ban", "knock"


def given(*, rule: str | None = None, power: dict[str, Any] | None = None, **members: str) -> Prepare:
    """A room with these memberships (alice, bob, eve), join rule and power levels."""

    def prepare(room: AuthRoom) -> None:
        for name, membership in members.items():
            room.member({"alice": ALICE, "bob": BOB, "eve": EVE, "creator": CREATOR}[name], membership)
        if rule is not None:
            room.join_rule(rule)
        if power is not None:
            room.power(**power)

    return prepare


MODERATOR = {"users": {ALICE: 50}}
VIA_ALICE = {"join_authorised_via_users_server": ALICE}

# (what, versions, the room, sender, target, content, allowed)
CASES: list[tuple[str, tuple[str, ...], Prepare, str, str | None, dict[str, Any], bool]] = [
    # 4.1
    ("no state key", ALL, given(rule="public"), BOB, None, {"membership": JOIN}, False),
    ("no membership", ALL, given(rule="public"), BOB, BOB, {}, False),
    ("membership of a wrong type", ALL, given(rule="public"), BOB, BOB, {"membership": ["join"]}, False),
    ("unknown membership", ALL, given(rule="public", bob=JOIN), BOB, BOB, {"membership": "dance"}, False),
    # 4.2
    ("authoriser is no user", since(8), given(rule="public"), BOB, BOB,
     {"membership": JOIN, "join_authorised_via_users_server": "alice"}, False),
    ("authoriser is no user", until(7), given(rule="public"), BOB, BOB,
     {"membership": JOIN, "join_authorised_via_users_server": "alice"}, True),
    # 4.3 join
    ("join for another", ALL, given(rule="public", alice=JOIN), ALICE, BOB, {"membership": JOIN}, False),
    ("join while banned", ALL, given(rule="public", bob=BAN), BOB, BOB, {"membership": JOIN}, False),
    ("join of a public room", ALL, given(rule="public"), BOB, BOB, {"membership": JOIN}, True),
    ("join of a public room after leaving", ALL, given(rule="public", bob=LEAVE), BOB, BOB, {"membership": JOIN}, True),
    ("join without a join rule", ALL, given(), BOB, BOB, {"membership": JOIN}, False),
    ("join by invite without a join rule", ALL, given(bob=INVITE), BOB, BOB, {"membership": JOIN}, True),
    ("join by invite", ALL, given(rule="invite", bob=INVITE), BOB, BOB, {"membership": JOIN}, True),
    ("join when joined", ALL, given(rule="invite", bob=JOIN), BOB, BOB, {"membership": JOIN}, True),
    ("join uninvited", ALL, given(rule="invite", bob=LEAVE), BOB, BOB, {"membership": JOIN}, False),
    ("join of a private room", ALL, given(rule="private", bob=INVITE), BOB, BOB, {"membership": JOIN}, False),
    ("join by invite, rule knock", since(7), given(rule="knock", bob=INVITE), BOB, BOB, {"membership": JOIN}, True),
    ("join by invite, rule knock", until(6), given(rule="knock", bob=INVITE), BOB, BOB, {"membership": JOIN}, False),
    ("join by knock", since(7), given(rule="knock", bob=KNOCK), BOB, BOB, {"membership": JOIN}, False),
    ("join by invite, rule restricted", since(8), given(rule="restricted", bob=INVITE), BOB, BOB,
     {"membership": JOIN}, True),
    ("join by invite, rule restricted", until(7), given(rule="restricted", bob=INVITE), BOB, BOB,
     {"membership": JOIN}, False),
    ("restricted join", since(8), given(rule="restricted", alice=JOIN), BOB, BOB,
     {"membership": JOIN, **VIA_ALICE}, True),
    ("restricted join", until(7), given(rule="restricted", alice=JOIN), BOB, BOB,
     {"membership": JOIN, **VIA_ALICE}, False),
    ("restricted join, nobody authorises", since(8), given(rule="restricted", alice=JOIN), BOB, BOB,
     {"membership": JOIN}, False),
    ("restricted join, authoriser has left", since(8), given(rule="restricted", alice=LEAVE), BOB, BOB,
     {"membership": JOIN, **VIA_ALICE}, False),
    ("restricted join, authoriser may not invite", since(8),
     given(rule="restricted", alice=JOIN, power={"invite": 10}), BOB, BOB, {"membership": JOIN, **VIA_ALICE}, False),
    ("restricted join, authoriser may invite", since(8),
     given(rule="restricted", alice=JOIN, power={"invite": 10, **MODERATOR}), BOB, BOB,
     {"membership": JOIN, **VIA_ALICE}, True),
    ("restricted join while banned", since(8), given(rule="restricted", alice=JOIN, bob=BAN), BOB, BOB,
     {"membership": JOIN, **VIA_ALICE}, False),
    ("knock_restricted join", since(10), given(rule="knock_restricted", alice=JOIN), BOB, BOB,
     {"membership": JOIN, **VIA_ALICE}, True),
    ("knock_restricted join", until(9), given(rule="knock_restricted", alice=JOIN), BOB, BOB,
     {"membership": JOIN, **VIA_ALICE}, False),
    ("knock_restricted join by invite", since(10), given(rule="knock_restricted", bob=INVITE), BOB, BOB,
     {"membership": JOIN}, True),
    # 4.4 invite
    ("invite", ALL, given(alice=JOIN), ALICE, BOB, {"membership": INVITE}, True),
    ("invite after leaving", ALL, given(alice=JOIN, bob=LEAVE), ALICE, BOB, {"membership": INVITE}, True),
    ("invite again", ALL, given(alice=JOIN, bob=INVITE), ALICE, BOB, {"membership": INVITE}, True),
    ("invite answers a knock", since(7), given(alice=JOIN, bob=KNOCK), ALICE, BOB, {"membership": INVITE}, True),
    ("invite from outside", ALL, given(alice=INVITE), ALICE, BOB, {"membership": INVITE}, False),
    ("invite of a member", ALL, given(alice=JOIN, bob=JOIN), ALICE, BOB, {"membership": INVITE}, False),
    ("invite of a banned user", ALL, given(alice=JOIN, bob=BAN), ALICE, BOB, {"membership": INVITE}, False),
    ("invite without power", ALL, given(alice=JOIN, power={"invite": 1}), ALICE, BOB, {"membership": INVITE}, False),
    ("invite with power", ALL, given(alice=JOIN, power={"invite": 50, **MODERATOR}), ALICE, BOB,
     {"membership": INVITE}, True),
    # 4.5 leave
    ("leave", ALL, given(bob=JOIN), BOB, BOB, {"membership": LEAVE}, True),
    ("reject an invite", ALL, given(bob=INVITE), BOB, BOB, {"membership": LEAVE}, True),
    ("withdraw a knock", since(7), given(bob=KNOCK), BOB, BOB, {"membership": LEAVE}, True),
    ("withdraw a knock", until(6), given(bob=KNOCK), BOB, BOB, {"membership": LEAVE}, False),
    ("leave when not there", ALL, given(), BOB, BOB, {"membership": LEAVE}, False),
    ("leave twice", ALL, given(bob=LEAVE), BOB, BOB, {"membership": LEAVE}, False),
    ("leave a ban", ALL, given(bob=BAN), BOB, BOB, {"membership": LEAVE}, False),
    ("kick", ALL, given(alice=JOIN, bob=JOIN, power=MODERATOR), ALICE, BOB, {"membership": LEAVE}, True),
    ("kick without power", ALL, given(alice=JOIN, bob=JOIN, power={}), ALICE, BOB, {"membership": LEAVE}, False),
    ("kick from outside", ALL, given(alice=LEAVE, bob=JOIN, power=MODERATOR), ALICE, BOB, {"membership": LEAVE}, False),
    ("kick of an equal", ALL, given(alice=JOIN, bob=JOIN, power={"users": {ALICE: 50, BOB: 50}}), ALICE, BOB,
     {"membership": LEAVE}, False),
    ("kick of a stronger one", ALL, given(alice=JOIN, bob=JOIN, power={"users": {ALICE: 50, BOB: 51}}), ALICE, BOB,
     {"membership": LEAVE}, False),
    ("kick of the creator", ALL, given(alice=JOIN, power=MODERATOR), ALICE, CREATOR, {"membership": LEAVE}, False),
    ("kick by the creator without power levels", ALL, given(bob=JOIN), CREATOR, BOB, {"membership": LEAVE}, True),
    ("unban", ALL, given(alice=JOIN, bob=BAN, power=MODERATOR), ALICE, BOB, {"membership": LEAVE}, True),
    ("unban without the ban level", ALL, given(alice=JOIN, bob=BAN, power={"ban": 60, **MODERATOR}), ALICE, BOB,
     {"membership": LEAVE}, False),
    ("unban without the kick level", ALL, given(alice=JOIN, bob=BAN, power={"kick": 60, **MODERATOR}), ALICE, BOB,
     {"membership": LEAVE}, False),
    # 4.6 ban
    ("ban of a member", ALL, given(alice=JOIN, bob=JOIN, power=MODERATOR), ALICE, BOB, {"membership": BAN}, True),
    ("ban of a stranger", ALL, given(alice=JOIN, power=MODERATOR), ALICE, BOB, {"membership": BAN}, True),
    ("ban without power", ALL, given(alice=JOIN, bob=JOIN, power={}), ALICE, BOB, {"membership": BAN}, False),
    ("ban from outside", ALL, given(alice=INVITE, bob=JOIN, power=MODERATOR), ALICE, BOB, {"membership": BAN}, False),
    ("ban of an equal", ALL, given(alice=JOIN, bob=JOIN, power={"users": {ALICE: 50, BOB: 50}}), ALICE, BOB,
     {"membership": BAN}, False),
    ("ban of oneself", ALL, given(alice=JOIN, power=MODERATOR), ALICE, ALICE, {"membership": BAN}, False),
    # 4.7 knock
    ("knock", since(7), given(rule="knock"), BOB, BOB, {"membership": KNOCK}, True),
    ("knock", until(6), given(rule="knock"), BOB, BOB, {"membership": KNOCK}, False),
    ("knock again after leaving", since(7), given(rule="knock", bob=LEAVE), BOB, BOB, {"membership": KNOCK}, True),
    ("knock twice", since(7), given(rule="knock", bob=KNOCK), BOB, BOB, {"membership": KNOCK}, True),
    ("knock on a knock_restricted room", since(10), given(rule="knock_restricted"), BOB, BOB,
     {"membership": KNOCK}, True),
    ("knock on a knock_restricted room", ("7", "8", "9"), given(rule="knock_restricted"), BOB, BOB,
     {"membership": KNOCK}, False),
    ("knock on a public room", since(7), given(rule="public"), BOB, BOB, {"membership": KNOCK}, False),
    ("knock for another", since(7), given(rule="knock", alice=JOIN), ALICE, BOB, {"membership": KNOCK}, False),
    ("knock while banned", since(7), given(rule="knock", bob=BAN), BOB, BOB, {"membership": KNOCK}, False),
    ("knock while invited", since(7), given(rule="knock", bob=INVITE), BOB, BOB, {"membership": KNOCK}, False),
    ("knock while joined", since(7), given(rule="knock", bob=JOIN), BOB, BOB, {"membership": KNOCK}, False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("version", "prepare", "sender", "target", "content", "allowed"),
    [
        pytest.param(version, *case, id=f"v{version} {what} {'allowed' if case[-1] else 'refused'}")
        for what, versions, *case in CASES
        for version in versions
    ],
)
def test_member_rules(
    version: str, prepare: Prepare, sender: str, target: str | None, content: dict[str, Any], allowed: bool
) -> None:
    room = AuthRoom(version)
    prepare(room)
    assert room.allows(room.event("m.room.member", target, content, sender)) is allowed


@pytest.mark.parametrize("version", ALL)
def test_the_creator_joins_first(version: str) -> None:
    room = AuthRoom(version)
    del room.state["m.room.member", CREATOR]
    first = [room.create.event_id]
    assert room.allows(room.event("m.room.member", CREATOR, {"membership": JOIN}, prev_events=first))
    assert not room.allows(room.event("m.room.member", ALICE, {"membership": JOIN}, ALICE, prev_events=first))
    assert not room.allows(room.event("m.room.member", CREATOR, {"membership": JOIN}))
    two = [room.create.event_id, "$other:one"]
    assert not room.allows(room.event("m.room.member", CREATOR, {"membership": JOIN}, prev_events=two))


def test_who_the_creator_is() -> None:
    """Up to version 10 the content names the creator, later it is the sender."""
    for version, creator in (("10", ALICE), ("11", CREATOR), ("12", CREATOR)):
        room = AuthRoom(version, creator=ALICE)
        del room.state["m.room.member", CREATOR]
        for user_id in (ALICE, CREATOR):
            join = room.event(
                "m.room.member", user_id, {"membership": JOIN}, user_id, prev_events=[room.create.event_id]
            )
            assert room.allows(join) is (user_id == creator)


def test_creators_of_version_12_stand_above_everybody() -> None:
    room = AuthRoom("12", additional_creators=[BOB])
    for user_id in (ALICE, BOB):
        room.member(user_id, JOIN)
    room.power(users={ALICE: 2**53 - 1})
    assert room.allows(room.event("m.room.member", ALICE, {"membership": BAN}, BOB))
    assert not room.allows(room.event("m.room.member", BOB, {"membership": BAN}, ALICE))
    assert not room.allows(room.event("m.room.member", BOB, {"membership": BAN}, CREATOR))


IDENTITY = SigningKey("0", b"i" * 32)
OTHER = SigningKey("0", b"o" * 32)


def third_party_room(version: str, **content: Any) -> AuthRoom:
    room = AuthRoom(version)
    room.member(ALICE, JOIN)
    stored = {"display_name": "b", "public_key": IDENTITY.public_key_base64, "key_validity_url": "x", **content}
    room.put("m.room.third_party_invite", "token", stored, ALICE)
    return room


def third_party_invite(key: SigningKey = IDENTITY, **changes: Any) -> dict[str, Any]:
    signed = sign_json({"mxid": BOB, "token": "token", **changes}, "identity", key)
    return {"membership": INVITE, "third_party_invite": {"display_name": "b", "signed": signed}}


@pytest.mark.parametrize("version", ALL)
def test_third_party_invite_is_allowed(version: str) -> None:
    room = third_party_room(version)
    assert room.allows(room.event("m.room.member", BOB, third_party_invite(), ALICE))
    room.member(ALICE, LEAVE)  # the sender need not be there any more
    assert room.allows(room.event("m.room.member", BOB, third_party_invite(), ALICE))


@pytest.mark.parametrize("version", ALL)
def test_third_party_invite_by_one_of_several_keys(version: str) -> None:
    keys = [{"public_key": "%%"}, {"public_key": encode_base64(b"short")}, 5, {"public_key": OTHER.public_key_base64}]
    room = third_party_room(version, public_keys=keys)
    assert room.allows(room.event("m.room.member", BOB, third_party_invite(OTHER), ALICE))


@pytest.mark.parametrize("version", ALL)
def test_third_party_invite_is_refused(version: str) -> None:
    def refuses(
        content: dict[str, Any], *, target: str = BOB, sender: str = ALICE, room: AuthRoom | None = None
    ) -> bool:
        room = room or third_party_room(version)
        return not room.allows(room.event("m.room.member", target, content, sender))

    banned = third_party_room(version)
    banned.member(BOB, BAN)
    good = third_party_invite()
    signed = good["third_party_invite"]["signed"]
    assert refuses(good, room=banned)  # 4.4.1.1
    for broken in ({}, "x", {"signed": "x"}, None):
        assert refuses({"membership": INVITE, "third_party_invite": broken})  # 4.4.1.2
    for missing in ("mxid", "token"):
        partial = {key: value for key, value in signed.items() if key != missing}
        assert refuses({"membership": INVITE, "third_party_invite": {"signed": partial}})  # 4.4.1.3
    assert refuses(good, target=EVE)  # 4.4.1.4
    assert refuses(third_party_invite(token="another"))  # 4.4.1.5
    assert refuses(third_party_invite(token=5))
    assert refuses(good, sender=CREATOR)  # 4.4.1.6
    assert refuses(third_party_invite(OTHER))  # 4.4.1.8
    forged = {**signed, "extra": 1}
    assert refuses({"membership": INVITE, "third_party_invite": {"signed": forged}})
    unsigned = {"mxid": BOB, "token": "token"}
    assert refuses({"membership": INVITE, "third_party_invite": {"signed": unsigned}})


def test_third_party_invite_cannot_cost_thousands_of_verifications() -> None:
    room = third_party_room("12", public_keys=[{"public_key": OTHER.public_key_base64}] * 300)
    assert not room.allows(room.event("m.room.member", BOB, third_party_invite(), ALICE))
