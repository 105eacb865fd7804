// A bot and a person walk through what matrix-bot-sdk offers; what it has no call for goes through its HTTP layer.
// The last line on standard output is "DONE {...}" with what was seen.
//
//     node bot.mjs <homeserver URL> <suffix of the user names>
import sdk from "matrix-bot-sdk";
import assert from "node:assert/strict";

const [baseUrl, unique] = process.argv.slice(2);
const WAIT_MS = 60_000;
const V3 = "/_matrix/client/v3";
const encode = encodeURIComponent;

sdk.LogService.setLogger({ info() {}, debug() {}, trace() {}, warn() {}, error: (...what) => console.error(...what) });

// Someone who syncs, and the events that came.
class Person {
    constructor(client) {
        this.client = client;
        this.seen = [];
        client.on("room.event", (roomId, event) => this.seen.push({ roomId, ...event }));
        client.on("room.invite", (roomId) => this.seen.push({ roomId, type: "invited" }));
        client.on("room.archived", (roomId) => this.seen.push({ roomId, type: "archived" }));
        client.on("room.upgraded", (roomId) => this.seen.push({ roomId, type: "upgraded" }));
    }

    static async register(name) {
        const auth = new sdk.MatrixAuth(baseUrl);
        const made = await auth.passwordRegister(`${name}${unique}`, "a secret", name);
        const login = await auth.passwordLogin(`${name}${unique}`, "a secret", name);
        assert.equal(await made.getUserId(), await login.getUserId());
        return new Person(login);
    }

    until(what, condition) {
        const deadline = Date.now() + WAIT_MS;
        return new Promise((resolve, reject) => {
            const look = () => {
                const found = this.seen.find(condition);
                if (found) resolve(found);
                else if (Date.now() > deadline) reject(new Error(`timed out waiting for ${what}`));
                else setTimeout(look, 20);
            };
            look();
        });
    }

    said(roomId, body) {
        return this.until(body, (event) => event.roomId === roomId && event.content?.body === body);
    }
}

async function refused(promise, errcode) {
    await assert.rejects(promise, (error) => {
        assert.equal(error.errcode ?? error.body?.errcode, errcode);
        return true;
    });
}

async function profile(bot) {
    await bot.client.setDisplayName("Bot");
    const url = await bot.client.uploadContent(Buffer.from("a picture"), "image/png", "bot.png");
    await bot.client.setAvatarUrl(url);
    assert.deepEqual(await alice.client.getUserProfile(botId), { displayname: "Bot", avatar_url: url });
    const { data } = await alice.client.downloadContent(url);
    assert.equal(data.toString(), "a picture");
    await bot.client.setPresenceStatus("online", "at work");
    assert.equal((await bot.client.getPresenceStatus()).statusMessage, "at work");
    await bot.client.setAccountData("org.example.settings", { level: 3 });
    assert.deepEqual(await bot.client.getAccountData("org.example.settings"), { level: 3 });
}

// Messages, replies, reactions, edits, redactions, receipts and typing.
async function talk(room) {
    const asked = await alice.client.sendText(room, "!hello");
    const heard = await bot.said(room, "!hello");
    assert.equal(heard.event_id, asked);
    const answer = await bot.client.replyText(room, { ...heard, room_id: room }, "hello to you");
    const reply = await alice.until("the reply", (event) => event.event_id === answer);
    assert.equal(reply.content["m.relates_to"]["m.in_reply_to"].event_id, asked);
    await bot.client.sendReadReceipt(room, asked);
    await bot.client.setTyping(room, true, 5_000);
    const reaction = await bot.client.unstableApis.addReactionToEvent(room, asked, "👍");
    const annotations = await alice.client.unstableApis.getRelationsForEvent(room, asked, "m.annotation", "m.reaction");
    assert.deepEqual(annotations.chunk.map((event) => event.event_id), [reaction]);
    const edit = await alice.client.sendMessage(room, {
        "msgtype": "m.text",
        "body": "* !good evening",
        "m.new_content": { msgtype: "m.text", body: "!good evening" },
        "m.relates_to": { rel_type: "m.replace", event_id: asked },
    });
    const bundled = (await alice.client.getRawEvent(room, asked)).unsigned["m.relations"];
    assert.equal(bundled["m.replace"].event_id, edit);
    const doomed = await alice.client.sendHtmlText(room, "<b>by mistake</b>");
    await alice.client.redactEvent(room, doomed, "oops");
    await bot.until("the redaction", (event) => event.type === "m.room.redaction" && event.redacts === doomed);
    assert.deepEqual((await bot.client.getRawEvent(room, doomed)).content, {});
    const context = await bot.client.getEventContext(room, asked, 6);
    assert.equal(context.event.eventId, asked);
    return asked;
}

async function threads(room, root) {
    const relation = { rel_type: "m.thread", event_id: root, is_falling_back: true, "m.in_reply_to": { event_id: root } };
    for (const body of ["one", "two"]) {
        await bot.client.sendMessage(room, { msgtype: "m.text", body, "m.relates_to": relation });
    }
    const listed = await alice.client.doRequest("GET", `/_matrix/client/v1/rooms/${encode(room)}/threads`);
    assert.deepEqual(listed.chunk.map((event) => event.event_id), [root]);
    assert.equal(listed.chunk[0].unsigned["m.relations"]["m.thread"].count, 2);
}

async function search(room) {
    const body = { search_categories: { room_events: { search_term: "evening", filter: { rooms: [room] } } } };
    for (let attempt = 0; ; attempt++) {
        const found = (await alice.client.doRequest("POST", `${V3}/search`, null, body)).search_categories.room_events;
        if (found.count) return assert.match(found.results[0].result.content.body, /evening/);
        assert.ok(attempt < 200, "nothing is found");
        await new Promise((resolve) => setTimeout(resolve, 100));
    }
}

// Like createSpace, which names the creator in the power levels: rooms of version 12 refuse that.
async function createSpace(name, properties) {
    const creation_content = { type: "m.space" };
    const roomId = await alice.client.createRoom({ name, creation_content, ...properties });
    return new sdk.Space(roomId, alice.client);
}

async function spaces(room) {
    const space = await createSpace("Space", { preset: "private_chat", invite: [botId] });
    await bot.until("the invite into the space", (event) => event.type === "invited" && event.roomId === space.roomId);
    const inner = await createSpace("Inner", { preset: "public_chat" });
    await space.addChildSpace(inner);
    await space.addChildRoom(room, { suggested: true, order: "a" });
    const children = await space.getChildEntities();
    assert.deepEqual(new Set(Object.keys(children)), new Set([inner.roomId, room]));
    assert.equal(children[room].suggested, true);
    await bot.client.joinRoom(space.roomId);
    const path = `/_matrix/client/v1/rooms/${encode(space.roomId)}/hierarchy`;
    const walked = await bot.client.doRequest("GET", path);
    assert.deepEqual(new Set(walked.rooms.map((one) => one.room_id)), new Set([space.roomId, inner.roomId, room]));
    await space.removeChildSpace(inner);
    assert.deepEqual(Object.keys(await space.getChildEntities()), [room]);
}

async function knock() {
    const room = await alice.client.createRoom({
        preset: "private_chat",
        initial_state: [{ type: "m.room.join_rules", state_key: "", content: { join_rule: "knock" } }],
    });
    await refused(bot.client.joinRoom(room), "M_FORBIDDEN");
    await bot.client.doRequest("POST", `${V3}/knock/${encode(room)}`, null, { reason: "let me in" });
    const asked = (event) => event.roomId === room && event.content?.membership === "knock";
    assert.equal((await alice.until("the knock", asked)).content.reason, "let me in");
    await alice.client.inviteUser(botId, room);
    await bot.until("the invite", (event) => event.type === "invited" && event.roomId === room);
    await bot.client.joinRoom(room);
    assert.ok((await alice.client.getJoinedRoomMembers(room)).includes(botId));
}

// Who may do what, and who is thrown out.
async function moderate(room) {
    assert.equal(await alice.client.userHasPowerLevelFor(botId, room, "m.room.topic", true), false);
    await alice.client.setUserPowerLevel(botId, room, 50);
    assert.equal(await alice.client.userHasPowerLevelForAction(botId, room, sdk.PowerLevelAction.Kick), true);
    await bot.client.sendStateEvent(room, "m.room.topic", "", { topic: "bots" });
    assert.equal((await alice.client.getRoomStateEvent(room, "m.room.topic", "")).topic, "bots");
    const carol = await Person.register("carol");
    const carolId = await carol.client.getUserId();
    await alice.client.inviteUser(carolId, room);
    await carol.client.joinRoom(room);
    await bot.client.kickUser(carolId, room, "spam");
    await alice.client.banUser(carolId, room);
    const banned = await alice.client.getRoomMembersByMembership(room, "ban");
    assert.deepEqual(banned.map((one) => one.membershipFor), [carolId]);
    await refused(carol.client.joinRoom(room), "M_FORBIDDEN");
    await alice.client.unbanUser(carolId, room);
}

async function notifications(room) {
    const mention = { "msgtype": "m.text", "body": "over here", "m.mentions": { user_ids: [botId] } };
    const mentioned = await alice.client.sendMessage(room, mention);
    await bot.said(room, "over here");
    const listed = await bot.client.doRequest("GET", `${V3}/notifications`, { limit: 5, only: "highlight" });
    assert.ok(listed.notifications.some((one) => one.event.event_id === mentioned));
    const rules = await bot.client.doRequest("GET", `${V3}/pushrules/`);
    assert.ok(rules.global.override.length > 3);
}

async function directory(room) {
    const alias = `#bots${unique}:${botId.split(":").slice(1).join(":")}`;
    await alice.client.createRoomAlias(alias, room);
    assert.equal(await bot.client.resolveRoom(alias), room);
    await alice.client.sendStateEvent(room, "m.room.canonical_alias", "", { alias });
    assert.equal(await bot.client.getPublishedAlias(room), alias);
    await alice.client.setDirectoryVisibility(room, "public");
    assert.equal(await bot.client.getDirectoryVisibility(room), "public");
}

async function upgrade(room) {
    const path = `${V3}/rooms/${encode(room)}/upgrade`;
    const { replacement_room: successor } = await alice.client.doRequest("POST", path, null, { new_version: "11" });
    await bot.until("the tombstone", (event) => event.type === "archived" && event.roomId === room);
    await bot.client.joinRoom(successor);
    await bot.until("the new room", (event) => event.type === "upgraded" && event.roomId === successor);
    const created = await bot.client.getRoomStateEvent(successor, "m.room.create", "");
    assert.equal(created.predecessor.room_id, room);
    assert.equal((await bot.client.getRoomStateEvent(successor, "m.room.topic", "")).topic, "bots");
    await alice.client.sendText(successor, "moved");
    await bot.said(successor, "moved");
}

const alice = await Person.register("alice");
const bot = await Person.register("bot");
const botId = await bot.client.getUserId();
await Promise.all([alice.client.start(), bot.client.start()]);
assert.ok((await bot.client.getServerVersions()).versions.includes("v1.11"));
assert.equal((await bot.client.getWhoAmI()).user_id, botId);
await profile(bot);
const room = await alice.client.createRoom({ preset: "public_chat", name: "Bots", invite: [botId] });
await bot.until("the invite", (event) => event.type === "invited" && event.roomId === room);
await bot.client.joinRoom(room);
const root = await talk(room);
await threads(room, root);
await search(room);
await spaces(room);
await knock();
await moderate(room);
await notifications(room);
await directory(room);
await upgrade(room);
const direct = await bot.client.dms.getOrCreateDm(await alice.client.getUserId());
assert.equal(bot.client.dms.isDm(direct), true);
await bot.client.leaveRoom(room);
await bot.client.forgetRoom(room);
assert.ok(!(await bot.client.getJoinedRooms()).includes(room));
alice.client.stop();
bot.client.stop();
console.log("DONE " + JSON.stringify({ events: bot.seen.length }));
process.exit(0);
