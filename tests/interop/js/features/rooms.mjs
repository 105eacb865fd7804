// Rooms and how one comes to them: spaces, restricted joins, knocking, peeking, upgrades.
import { RoomHierarchy } from "matrix-js-sdk/lib/room-hierarchy.js";
import * as sdk from "matrix-js-sdk";
import assert from "node:assert/strict";
import { refused, suffix, until } from "../walk.mjs";
import {
    alice, bob, bobId, bodies, carol, carolId, create, domain, heard, join, memberOf, membership, phone, state,
} from "./people.mjs";

const CHILD = "m.space.child";

const lines = (from, to) => Array.from({ length: to - from }, (_, index) => `line ${from + index}`);

const joinRule = (content) => ({ type: "m.room.join_rules", state_key: "", content });

async function tree(space, ...options) {
    const hierarchy = new RoomHierarchy(phone.getRoom(space), ...options);
    const sizes = [];
    while (hierarchy.canLoadMore) sizes.push((await hierarchy.load()).length);
    return { hierarchy, sizes, rooms: hierarchy.rooms.map((room) => room.room_id) };
}

// A tree of spaces, loaded in pages, in the order that its curator gave.
export async function spaces() {
    const space = { preset: "public_chat", creation_content: { type: "m.space" } };
    const found = { room_alias_name: `root${suffix}`, visibility: "public" };
    const root = await create(alice, { ...space, ...found, name: "Root" });
    const inner = await create(alice, { ...space, name: "Inner" });
    const open = (name) => create(alice, { name, preset: "public_chat", topic: `the ${name}` });
    const [garden, shed, cellar] = await Promise.all(["Garden", "Shed", "Cellar"].map(open));
    const via = [domain];
    await alice.sendStateEvent(root, CHILD, { via, order: "b", suggested: true }, garden);
    await alice.sendStateEvent(root, CHILD, { via, order: "a" }, inner);
    await alice.sendStateEvent(root, CHILD, { via }, shed);
    await alice.sendStateEvent(inner, CHILD, { via }, cellar);
    const { chunk } = await bob.publicRooms({ filter: { generic_search_term: "Root", room_types: ["m.space"] } });
    assert.deepEqual(chunk.map((room) => [room.room_id, room.room_type]), [[root, "m.space"]]);
    await bob.joinRoom(`#root${suffix}:${domain}`);
    await until("the space", () => phone.getRoom(root)?.isSpaceRoom());
    await until("its children", () => phone.getRoom(root).currentState.getStateEvents(CHILD).length === 3);

    const all = await tree(root, 2, 3);
    assert.deepEqual(all.rooms, [root, inner, cellar, garden, shed]);
    assert.deepEqual(all.sizes, [2, 2, 1]);
    assert.ok(all.hierarchy.isSuggested(root, garden) && !all.hierarchy.isSuggested(root, shed));
    assert.deepEqual(all.hierarchy.backRefs.get(cellar), [inner]);
    assert.deepEqual((await tree(root, 10, 1)).rooms, [root, inner, garden, shed]);
    assert.deepEqual((await tree(root, 10, 3, true)).rooms, [root, garden]);
    const summary = await carol.getRoomSummary(garden, [domain]);
    assert.deepEqual([summary.name, summary.topic, summary.join_rule], ["Garden", "the Garden", "public"]);

    const allow = [{ type: "m.room_membership", room_id: root }];
    const members = { join_rule: "restricted", allow };
    const closed = await create(alice, { name: "Members", preset: "private_chat", initial_state: [joinRule(members)] });
    await refused(carol.joinRoom(closed), "M_FORBIDDEN");
    await join(closed, bob);
    await until("Bob", () => memberOf(alice, closed, bobId) === "join");

    await alice.sendStateEvent(root, CHILD, {}, inner);
    await until("a child less", () => !state(phone, root, CHILD, inner).via);
    assert.deepEqual((await tree(root, 10, 3)).rooms, [root, garden, shed]);
}

// Turned away, let in, and thrown out; both devices see it.
export async function knock() {
    const closed = [joinRule({ join_rule: "knock" })];
    const room = await create(alice, { name: "Door", preset: "private_chat", initial_state: closed });
    await refused(bob.joinRoom(room), "M_FORBIDDEN");
    await bob.knockRoom(room, { reason: "let me in", viaServers: domain });
    await until("the knock at Alice", () => memberOf(alice, room, bobId) === "knock");
    assert.equal(state(alice, room, "m.room.member", bobId).reason, "let me in");
    await until("the knock at Bob", () => membership(phone, room) === "knock");
    assert.equal(phone.getRoom(room).name, "Door");
    await alice.kick(room, bobId, "not today");
    await until("the refusal", () => [bob, phone].every((client) => membership(client, room) === "leave"));
    assert.equal(state(phone, room, "m.room.member", bobId).reason, "not today");
    await bob.knockRoom(room, { reason: "today?" });
    await until("the second knock", () => memberOf(alice, room, bobId) === "knock");
    await bob.leave(room);
    await until("its withdrawal", () => memberOf(alice, room, bobId) === "leave" && membership(bob, room) === "leave");
    await bob.knockRoom(room);
    await until("the third knock", () => memberOf(alice, room, bobId) === "knock");
    await alice.invite(room, bobId, "welcome");
    await until("the invite", () => membership(phone, room) === "invite");
    await bob.joinRoom(room);
    await until("the way in", () => membership(phone, room) === "join" && memberOf(alice, room, bobId) === "join");
    await alice.ban(room, bobId, "enough");
    await until("the ban", () => [bob, phone].every((client) => membership(client, room) === "ban"));
    await refused(bob.knockRoom(room), "M_FORBIDDEN");
    await alice.unban(room, bobId);
    await until("no ban", () => memberOf(alice, room, bobId) === "leave");
    await bob.forget(room);
}

// A room read from outside, and its past by event and by time.
export async function history() {
    const content = { history_visibility: "world_readable" };
    const open = { type: "m.room.history_visibility", state_key: "", content };
    const room = await create(alice, { name: "Open", preset: "public_chat", initial_state: [open] });
    const sent = [];
    for (const line of lines(0, 20)) sent.push((await alice.sendTextMessage(room, line)).event_id);
    const peeked = await carol.peekInRoom(room, 5);
    assert.deepEqual(bodies(peeked.getLiveTimeline().getEvents()), lines(15, 20));
    const { event_id: live } = await alice.sendTextMessage(room, "still there?");
    await until("the peeked message", () => peeked.findEventById(live));
    carol.stopPeeking();
    await join(room, bob);

    const set = new sdk.EventTimelineSet(bob.getRoom(room), { timelineSupport: true });
    const window = new sdk.TimelineWindow(bob, set);
    await window.load(sent[10], 4);
    while (window.canPaginate("b")) await window.paginate("b", 4);
    while (window.canPaginate("f")) await window.paginate("f", 4);
    const seen = window.getEvents();
    assert.equal(seen[0].getType(), "m.room.create");
    assert.deepEqual(bodies(seen), [...lines(0, 20), "still there?"]);
    const at = seen.find((event) => event.getId() === sent[7]).getTs();
    assert.equal((await bob.timestampToEvent(room, at, "f")).origin_server_ts, at);
    await refused(bob.timestampToEvent(room, Date.now() + 3_600_000, "f"), "M_NOT_FOUND");
}

// The old room's people, tags and address find the new one, and the client links the two.
export async function upgrade() {
    const old = await create(alice, {
        name: "Club", topic: "of old", preset: "public_chat", room_version: "10", room_alias_name: `club${suffix}`,
    });
    await join(old, bob, carol);
    await bob.setRoomTag(old, "m.favourite", { order: 0.25 });
    await until("the tag", () => phone.getRoom(old).tags["m.favourite"]?.order === 0.25);
    await alice.ban(old, carolId, "noise");
    const { replacement_room: successor } = await alice.upgradeRoom(old, "12", [bobId]);
    await until("the tombstone", () => state(phone, old, "m.room.tombstone")?.replacement_room === successor);
    await join(successor, bob);
    await until("the new room", () => membership(phone, successor) === "join");
    const room = phone.getRoom(successor);
    assert.equal(room.findPredecessor().roomId, old);
    assert.deepEqual(phone.getRoomUpgradeHistory(successor, true).map((one) => one.roomId), [old, successor]);
    assert.ok(!phone.getVisibleRooms().some((one) => one.roomId === old));
    assert.deepEqual([room.name, room.getVersion()], ["Club", "12"]);
    assert.equal(state(phone, successor, "m.room.topic").topic, "of old");
    assert.deepEqual(state(phone, successor, "m.room.create").additional_creators, [bobId]);
    assert.equal(room.getMember(bobId).powerLevel, Infinity);
    await until("the tag in the new room", () => room.tags["m.favourite"]?.order === 0.25);
    await until("the address", () => room.getCanonicalAlias() === `#club${suffix}:${domain}`);
    assert.equal((await bob.getRoomIdForAlias(`#club${suffix}:${domain}`)).room_id, successor);
    await refused(carol.joinRoom(successor), "M_FORBIDDEN");
    await refused(bob.sendTextMessage(old, "too late"), "M_FORBIDDEN");
    const { event_id: moved } = await alice.sendTextMessage(successor, "we have moved");
    await heard(phone, successor, moved);
}
