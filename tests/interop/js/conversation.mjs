// Two people talk through matrix-js-sdk (see walk.mjs).
import * as sdk from "matrix-js-sdk";
import assert from "node:assert/strict";
import { register, restartServer, suffix, until } from "./walk.mjs";

const MESSAGES = 200;

// A client's own retry: the same transaction ID until the server has answered.
async function send(client, roomId, type, content, txnId) {
    for (let attempt = 0; ; attempt++) {
        try {
            return (await client.sendEvent(roomId, type, content, txnId)).event_id;
        } catch (error) {
            if (attempt > 100 || (error.httpStatus && error.httpStatus < 500 && error.httpStatus !== 429)) throw error;
            await new Promise((resolve) => setTimeout(resolve, 200));
        }
    }
}

class Watcher {
    constructor(client) {
        this.client = client;
        this.seen = [];
        this.ids = new Set();
        client.on(sdk.RoomEvent.Timeline, (event, _room, toStart) => {
            if (!toStart && event.getSender() !== client.getUserId()) this.note(event);
        });
        // What the client sent itself stands in its timeline at once; it counts when /sync brings it.
        client.on(sdk.RoomEvent.LocalEchoUpdated, (event) => {
            if (event.status === null) this.note(event);
        });
    }

    note(event) {
        if (event.getType() !== "m.room.message" || event.getContent()["m.relates_to"]) return;
        assert.ok(!this.ids.has(event.getId()), `${event.getId()} came twice`);
        this.ids.add(event.getId());
        this.seen.push(event.getContent().body);
    }
}

const alice = await register(`alice${suffix}`);
const bob = await register(`bob${suffix}`);
for (const client of [alice, bob]) {
    await client.startClient({ initialSyncLimit: 10, pollTimeout: 5_000, disablePresence: true });
    await until("first sync", () => client.getSyncState() === "SYNCING" || client.getSyncState() === "PREPARED");
}

const { room_id: roomId } = await alice.createRoom({ name: "Interop", preset: "private_chat", invite: [bob.getUserId()] });
await until("invite", () => bob.getRoom(roomId)?.getMyMembership() === "invite");
assert.equal(bob.getRoom(roomId).name, "Interop");
await bob.joinRoom(roomId);
await until("join", () => bob.getRoom(roomId)?.getMyMembership() === "join");
await until("bob's arrival at alice", () => alice.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "join");
await until("the room's creation", () => bob.getRoom(roomId).currentState.getStateEvents("m.room.create", ""));

const watchers = [new Watcher(alice), new Watcher(bob)];
const expected = [];
const eventIds = [];
for (let number = 0; number < MESSAGES; number++) {
    const sender = number % 2 ? bob : alice;
    expected.push(`message ${number}`);
    if (number === MESSAGES / 2) {
        await restartServer();
        // A cluster's proxy may hold their /sync until there is a server again, so that they notice nothing; else it
        // comes back after a few seconds, and a longer gap would be a limited timeline, to be paged by hand.
        await Promise.all([alice, bob].map((client) => new Promise((resolve) => client.once(sdk.ClientEvent.Sync, resolve))));
        for (const client of [alice, bob]) await until("sync again", () => client.getSyncState() === "SYNCING");
    }
    // The SDK puts a local echo before what it has not heard of yet and orders receipts by that: let Bob hear Alice first.
    if (number === MESSAGES - 1) await until("alice's last message", () => watchers[1].ids.has(eventIds.at(-1)));
    eventIds.push(await send(sender, roomId, "m.room.message", { msgtype: "m.text", body: `message ${number}` }, `t${number}`));
}
await until("all messages", () => watchers.every((watcher) => watcher.seen.length >= MESSAGES)).catch((error) => {
    throw new Error(`${error.message}: ${watchers.map((watcher) => watcher.seen.length)} of ${MESSAGES}`);
});
for (const watcher of watchers) assert.deepEqual(watcher.seen, expected);

// Typing, receipts.
await alice.sendTyping(roomId, true, 10_000);
await until("typing", () => bob.getRoom(roomId).getMember(alice.getUserId()).typing);
await alice.sendTyping(roomId, false, 0);
await until("no typing", () => !bob.getRoom(roomId).getMember(alice.getUserId()).typing);
// Of Alice's for Bob's last message: a client takes a sender's own message for a receipt.
const last = alice.getRoom(roomId).findEventById(eventIds.at(-1));
assert.ok(last, "the last message of bob is not in alice's timeline");
await alice.sendReadReceipt(last);
await until("receipt", () =>
    bob.getRoom(roomId).getReceiptsForEvent(bob.getRoom(roomId).findEventById(eventIds.at(-1)))
        .some((receipt) => receipt.userId === alice.getUserId()));

// Edit, reaction, redaction.
const target = eventIds.at(-2);
await send(alice, roomId, "m.room.message", {
    msgtype: "m.text",
    body: "* better",
    "m.new_content": { msgtype: "m.text", body: "better" },
    "m.relates_to": { rel_type: "m.replace", event_id: target },
}, "edit");
await until("edit", () => bob.getRoom(roomId).findEventById(target).getContent().body === "better");
const reaction = await send(bob, roomId, "m.reaction",
    { "m.relates_to": { rel_type: "m.annotation", event_id: target, key: "👍" } }, "reaction");
await until("reaction", () => {
    const relations = alice.getRoom(roomId).relations.getChildEventsForEvent(target, "m.annotation", "m.reaction");
    return relations?.getRelations().some((event) => event.getId() === reaction);
});
const redacted = eventIds.at(-1);
await bob.redactEvent(roomId, redacted, "redaction");
await until("redaction", () => alice.getRoom(roomId).findEventById(redacted)?.isRedacted());

// Back to the creation.
const room = alice.getRoom(roomId);
while (room.getLiveTimeline().getPaginationToken(sdk.EventTimeline.BACKWARDS)) {
    await alice.scrollback(room, 50);
}
const timeline = room.getLiveTimeline().getEvents();
assert.equal(timeline[0].getType(), "m.room.create");
assert.equal(timeline.filter((event) => event.getType() === "m.room.message" && !event.isRelation()).length, MESSAGES);

await bob.leave(roomId);
await until("bob's leave", () => alice.getRoom(roomId).getMember(bob.getUserId()).membership === "leave");
for (const client of [alice, bob]) {
    await client.logout(true);
    client.stopClient();
    await assert.rejects(client.whoami(), (error) => error.errcode === "M_UNKNOWN_TOKEN");
}
console.log(`DONE ${JSON.stringify({ messages: MESSAGES, events: timeline.length })}`);
process.exit(0);
