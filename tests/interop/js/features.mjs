// Three people walk through what matrix-js-sdk offers, and are cut off in the middle by the end of the server.
import assert from "node:assert/strict";
import {
    accountData, devices, ignoring, later, messagesToDevices, profile, whatTheServerSays,
} from "./features/own.mjs";
import {
    alice, aliceId, bob, bobId, bodies, carol, carolId, create, everybody, heard, join, membership, phone, start,
    timeline,
} from "./features/people.mjs";
import { history, knock, spaces, upgrade } from "./features/rooms.mjs";
import { notifications, poll, relations, search, threadFromTheEnd, threads } from "./features/talking.mjs";
import { restartServer, until } from "./walk.mjs";

// A room of all three, where the others see who has come.
async function meet() {
    await bob.setDisplayName("Bob");
    const others = { is_direct: true, invite: [bobId, carolId] };
    const room = await create(alice, { name: "Features", preset: "private_chat", ...others });
    await until("invite", () => membership(phone, room) === "invite");
    assert.equal(phone.getRoom(room).name, "Features");
    assert.equal(phone.getRoom(room).getDMInviter(), aliceId);
    await join(room, bob, carol);
    await until("Bob and Carol", () => alice.getRoom(room).getJoinedMemberCount() === 3);
    await until("the other device", () => membership(phone, room) === "join");
    await phone.getRoom(room).loadMembersIfNeeded();
    assert.equal(phone.getRoom(room).getMembersWithMembership("join").length, 3);
    assert.equal(alice.getRoom(room).getMember(bobId).name, "Bob");
    return room;
}

// The server is killed under all syncs and a message, which is sent again until it is taken.
async function cutOff(room) {
    const before = bodies(timeline(phone, room));
    const restarted = restartServer();
    const said = [];
    for (let failed = false, unsent; !failed || unsent; unsent = timeline(alice, room).find((event) => event.status)) {
        try {
            if (unsent) await alice.resendEvent(unsent, alice.getRoom(room));
            else await alice.sendTextMessage(room, said[said.push(`while it is away ${said.length}`) - 1]);
        } catch (error) {
            assert.ok(!error.httpStatus || error.httpStatus >= 500, String(error));
            failed = true;
            await new Promise((resolve) => setTimeout(resolve, 100));
        }
    }
    await restarted;
    const { event_id: after } = await alice.sendTextMessage(room, "after it");
    for (const client of everybody) client.retryImmediately();
    for (const client of everybody) await heard(client, room, after);
    const expected = [...before, ...said, "after it"];
    assert.deepEqual(bodies(timeline(phone, room)).slice(-expected.length), expected);
}

await Promise.all(everybody.map((client) => start(client)));
const steps = [];
async function step(work, ...args) {
    const result = await work(...args);
    steps.push(work.name);
    return result;
}
const room = await step(meet);
await step(relations, room);
await step(poll, room);
const thread = await step(threads, room);
await step(cutOff, room);
await step(threadFromTheEnd, room, thread);
await step(search, room);
await step(notifications, room);
await step(spaces);
await step(knock);
await step(history);
await step(upgrade);
await step(profile, room);
await step(accountData, room);
await step(ignoring, room);
await step(messagesToDevices);
await step(later, room);
await step(devices);
await step(whatTheServerSays);
const ids = timeline(phone, room).map((event) => event.getId());
assert.equal(new Set(ids).size, ids.length);
for (const client of everybody) {
    client.stopClient();
    await client.logout();
}
console.log(`DONE ${JSON.stringify({ steps })}`);
process.exit(0);
