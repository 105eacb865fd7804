// A client on sliding sync (matrix-js-sdk's SlidingSync) beside one on /sync (see walk.mjs).
import * as sdk from "matrix-js-sdk";
import { SlidingSync, SlidingSyncEvent, SlidingSyncState } from "matrix-js-sdk/lib/sliding-sync.js";
import assert from "node:assert/strict";
import { baseUrl, register, restartServer, suffix, until } from "./walk.mjs";

const ROOMS = 6;

const alice = await register(`alice${suffix}`);
const bob = await register(`bob${suffix}`);
const versions = await (await fetch(`${baseUrl}/_matrix/client/versions`)).json();
assert.equal(versions.unstable_features["org.matrix.simplified_msc3575"], true);

const rooms = [];
for (let number = 0; number < ROOMS; number++) {
    const { room_id: roomId } = await alice.createRoom({
        name: `Room ${number}`,
        preset: "private_chat",
        invite: [bob.getUserId()],
    });
    await bob.joinRoom(roomId);
    await alice.sendTextMessage(roomId, `first words in ${number}`);
    rooms.push(roomId);
}

// Bob sees two rooms at first, then all.
const state = [["m.room.member", "$ME"], ["m.room.member", "$LAZY"], ["*", "*"]];
const list = { ranges: [[0, 1]], timeline_limit: 1, required_state: state, filters: { not_room_types: ["m.space"] } };
const sliding = new SlidingSync(baseUrl, new Map([["all", list]]), { timeline_limit: 20, required_state: state }, bob, 5_000);
const errors = [];
sliding.on(SlidingSyncEvent.Lifecycle, (phase, _response, error) => {
    if (phase === SlidingSyncState.RequestFinished && error) errors.push(error.errcode ?? error.name);
});
await bob.startClient({ slidingSync: sliding, disablePresence: true });
await alice.startClient({ initialSyncLimit: 5, pollTimeout: 5_000, disablePresence: true });
await until("first window", () => sliding.getListData("all")?.joinedCount === ROOMS && bob.getRooms().length === 2);
assert.deepEqual(new Set(bob.getRooms().map((room) => room.roomId)), new Set(rooms.slice(-2)));
sliding.setListRanges("all", [[0, 99]]);
await until("all rooms", () => bob.getRooms().length === ROOMS);
for (const [number, roomId] of rooms.entries()) {
    const room = bob.getRoom(roomId);
    assert.equal(room.name, `Room ${number}`);
    assert.equal(room.getMyMembership(), "join");
    assert.equal(room.getJoinedMemberCount(), 2);
    assert.deepEqual(room.getLiveTimeline().getEvents().map((event) => event.getContent().body), [`first words in ${number}`]);
    assert.ok(room.getMember(alice.getUserId()), "the sender's member event did not come");
    assert.equal(room.getUnreadNotificationCount(), 1);
}

// A room that is opened brings its history, and so do all when more is asked for.
const eventsOf = (roomId) => bob.getRoom(roomId).getLiveTimeline().getEvents();
sliding.modifyRoomSubscriptions(new Set([rooms[1]]));
await until("history", () => eventsOf(rooms[1]).length > 1);
assert.equal(eventsOf(rooms[1]).at(-1).getContent().body, "first words in 1");
sliding.setList("all", { ...list, ranges: [[0, 99]], timeline_limit: 50 });
await until("history everywhere", () => rooms.every((roomId) => eventsOf(roomId).length > 1));

// Messages arrive once and in order.
const [roomId] = rooms;
const seen = [];
bob.on(sdk.RoomEvent.Timeline, (event, room, toStart) => {
    if (!toStart && room.roomId === roomId && event.getSender() === alice.getUserId()) seen.push(event.getContent().body);
});
const expected = [];
for (let number = 0; number < 30; number++) {
    expected.push(`message ${number}`);
    await alice.sendTextMessage(roomId, expected.at(-1));
}
await until("the messages", () => seen.length >= expected.length);
assert.deepEqual(seen, expected);

// Typing, receipts, account data, to-device messages.
await alice.sendTyping(roomId, true, 10_000);
await until("typing", () => bob.getRoom(roomId).getMember(alice.getUserId()).typing);
await alice.sendTyping(roomId, false, 0);
await until("no typing", () => !bob.getRoom(roomId).getMember(alice.getUserId()).typing);
const { event_id: said } = await bob.sendTextMessage(roomId, "from bob");
const heard = await until("bob's message at alice", () => alice.getRoom(roomId)?.findEventById(said));
await until("bob's message at bob", () => bob.getRoom(roomId).findEventById(said)?.status === null);
await alice.sendReadReceipt(heard);
await until("receipt", () =>
    bob.getRoom(roomId).getReceiptsForEvent(bob.getRoom(roomId).findEventById(said))
        .some((receipt) => receipt.userId === alice.getUserId()));
await bob.setAccountDataRaw("org.example.setting", { on: true });
await until("account data", () => bob.getAccountData("org.example.setting")?.getContent().on);
await bob.setRoomTag(roomId, "m.favourite", { order: 0.5 });
await until("tag", () => bob.getRoom(roomId).tags["m.favourite"]);
const messages = [];
bob.on(sdk.ClientEvent.ToDeviceEvent, (event) => messages.push(event.getContent().number));
const toBob = (number) => alice.sendToDevice("org.example.ping", new Map([[bob.getUserId(), new Map([[bob.getDeviceId(), { number }]])]]));
for (let number = 0; number < 5; number++) await toBob(number);
await until("to-device messages", () => messages.length >= 5);

// An invite, and what becomes of it.
const { room_id: party } = await alice.createRoom({ name: "Party", preset: "private_chat", invite: [bob.getUserId()] });
await until("invite", () => bob.getRoom(party)?.getMyMembership() === "invite");
await bob.joinRoom(party);
await until("join", () => bob.getRoom(party).getMyMembership() === "join");

// The server is killed; the client goes on where it was.
assert.deepEqual(errors, []);
await restartServer();
await toBob(5);
await alice.sendTextMessage(roomId, "after the end");
await until("the message after", () => seen.at(-1) === "after the end");
await until("the to-device message after", () => messages.length >= 6);
assert.deepEqual(messages, [0, 1, 2, 3, 4, 5]);
assert.deepEqual(seen, [...expected, "after the end"]);

for (const client of [alice, bob]) {
    client.stopClient();
    await client.logout(true);
}
console.log(`DONE ${JSON.stringify({ rooms: ROOMS, messages: seen.length, errors })}`);
process.exit(0);
