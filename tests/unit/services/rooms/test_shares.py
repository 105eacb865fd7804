"""Fair shares of partitions."""

from hypothesis import given
from hypothesis import strategies as st

from services.rooms.shares import Gift, choose_free, fair_share, next_gift
from tessera.storage.leases import LivingWriter


def writer(owner: str, partitions: int = 0, *, is_draining: bool = False) -> LivingWriter:
    return LivingWriter(owner, owner.partition("/")[0], is_draining, partitions)


def test_a_share_is_the_partitions_over_those_who_take_part() -> None:
    writers = [writer("a"), writer("b"), writer("c"), writer("d", is_draining=True)]
    assert fair_share(64, writers, "a") == 22
    assert fair_share(64, writers, "d") == 0
    assert fair_share(64, writers, "nobody") == 0
    assert fair_share(64, writers[:1], "a") == 64


def test_what_was_handed_over_is_taken_first_and_whole() -> None:
    free = {3: True, 4: False, 5: True, 6: False, 7: False}
    assert choose_free(free, owned=1, share=2, owner="a") == [3, 5]
    chosen = choose_free(free, owned=0, share=3, owner="a")
    assert {3, 5} < set(chosen)
    assert len(chosen) == 3
    assert choose_free(free, owned=0, share=9, owner="a") == [3, 4, 5, 6, 7]
    assert choose_free({}, owned=0, share=9, owner="a") == []


def test_requests_come_before_shares() -> None:
    writers = [writer("a", 2), writer("b", 2)]
    assert next_gift([1, 2], {2: "b"}, writers, "a", share=2) == Gift(2, "b")
    assert next_gift([1, 2], {}, writers, "a", share=2) is None


def test_who_drains_gives_to_the_poorest() -> None:
    writers = [writer("a", 1, is_draining=True), writer("b", 40), writer("c", 23), writer("d", 0, is_draining=True)]
    assert next_gift([9], {}, writers, "a", share=0) == Gift(9, "c")
    assert next_gift([9], {}, writers[:1], "a", share=0) is None


@given(
    st.lists(st.integers(0, 64), min_size=1, max_size=8),
    st.integers(0, 7),
)
def test_giving_ends_with_everybody_at_their_share(counts: list[int], draining: int) -> None:
    """Whoever has too much gives one at a time; it ends, and then nobody has more than the share."""
    names = [f"w{number}" for number in range(len(counts))]
    owned: dict[str, list[int]] = {}
    first = 0
    for name, count in zip(names, counts, strict=True):
        owned[name] = list(range(first, first + count))
        first += count
    leaving = names[draining] if draining < len(names) and len(names) > 1 else None

    def living() -> list[LivingWriter]:
        return [writer(name, len(owned[name]), is_draining=name == leaving) for name in names]

    share = {name: fair_share(first, living(), name) for name in names}
    moves = 0
    while gifts := [
        (name, gift) for name in names if (gift := next_gift(owned[name], {}, living(), name, share[name]))
    ]:
        name, gift = gifts[0]
        owned[name].remove(gift.partition)
        owned[gift.heir].append(gift.partition)
        moves += 1
        assert moves <= 2 * first
    assert all(len(owned[name]) <= share[name] for name in names)
