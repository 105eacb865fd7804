// What belongs to a person: profile, presence, account data, whom one ignores, devices.
import * as sdk from "matrix-js-sdk";
import assert from "node:assert/strict";
import { logIn, refused, suffix, until } from "../walk.mjs";
import { alice, bob, bobId, bodies, carol, carolId, create, heard, phone, timeline } from "./people.mjs";

export async function profile(room) {
    const picture = { type: "image/png", name: "bob.png" };
    const { content_uri: url } = await bob.uploadContent(Buffer.from("a picture"), picture);
    await bob.setAvatarUrl(url);
    await until("the avatar", () => alice.getRoom(room).getMember(bobId).getMxcAvatarUrl() === url);
    assert.deepEqual(await alice.getProfileInfo(bobId), { displayname: "Bob", avatar_url: url });
    const address = alice.mxcUrlToHttp(url, undefined, undefined, undefined, false, true, true);
    const answer = await fetch(address, { headers: { Authorization: `Bearer ${alice.getAccessToken()}` } });
    assert.equal(await answer.text(), "a picture");
    assert.ok(await bob.doesServerSupportExtendedProfiles());
    await bob.setExtendedProfileProperty("m.tz", "Europe/Berlin");
    assert.equal(await alice.getExtendedProfileProperty(bobId, "m.tz"), "Europe/Berlin");
    await bob.deleteExtendedProfileProperty("m.tz");
    assert.ok(!("m.tz" in (await alice.getExtendedProfile(bobId))));
    await bob.setPresence({ presence: "unavailable", status_msg: "walking" });
    await until("the presence", () => alice.getUser(bobId)?.presenceStatusMsg === "walking");
    assert.equal(alice.getUser(bobId).presence, "unavailable");
}

export async function accountData(room) {
    const settings = (client) => client.getAccountData("org.example.settings")?.getContent();
    await bob.setAccountData("org.example.settings", { level: 3 });
    await until("account data", () => settings(phone)?.level === 3);
    await bob.deleteAccountData("org.example.settings");
    await until("its end", () => Object.keys(settings(phone) ?? {}).length === 0);
    await bob.setRoomAccountData(room, "org.example.colour", { name: "red" });
    const ofRoom = (type) => phone.getRoom(room).getAccountData(type)?.getContent();
    await until("a room's", () => ofRoom("org.example.colour")?.name === "red");
    await bob.setRoomTag(room, "u.work", { order: 0.5 });
    await until("a tag", () => phone.getRoom(room).tags["u.work"]?.order === 0.5);
    await bob.deleteRoomTag(room, "u.work");
    await until("no tag", () => !phone.getRoom(room).tags["u.work"]);
    const last = timeline(bob, room).at(-1).getId();
    await bob.setRoomReadMarkers(room, last);
    await until("the marker", () => ofRoom("m.fully_read")?.event_id === last);
}

// Nothing of an ignored person reaches any device, until one listens again.
export async function ignoring(room) {
    await bob.setIgnoredUsers([carolId]);
    await until("the list", () => phone.isUserIgnored(carolId));
    const { event_id: unheard } = await carol.sendTextMessage(room, "can you hear me?");
    const uninvited = await create(carol, { preset: "private_chat", name: "Party", invite: [bobId] });
    const { event_id: after } = await alice.sendTextMessage(room, "he does not");
    await heard(alice, room, unheard);
    await heard(phone, room, after);
    assert.ok(!phone.getRoom(room).findEventById(unheard));
    assert.ok(!phone.getRoom(uninvited));
    await bob.setIgnoredUsers([]);
    await until("the empty list", () => !phone.isUserIgnored(carolId));
    const { event_id: again } = await carol.sendTextMessage(room, "and now?");
    await heard(phone, room, again);
    await carol.leave(uninvited);
}

export async function messagesToDevices() {
    const pings = [];
    phone.on(sdk.ClientEvent.ToDeviceEvent, (event) => pings.push(event.getContent().number));
    for (let number = 0; number < 3; number++) {
        const batch = [{ userId: bobId, deviceId: phone.getDeviceId(), payload: { number } }];
        await alice.queueToDevice({ eventType: "org.example.ping", batch });
    }
    await until("the pings", () => pings.length === 3);
    assert.deepEqual(pings, [0, 1, 2]);
}

// An event that the server sends later, and one that it sends when told.
export async function later(room) {
    assert.ok(await alice.doesServerSupportUnstableFeature("org.matrix.msc4140"));
    const send = (body, delay) =>
        alice._unstable_sendDelayedEvent(room, { delay }, null, "m.room.message", { msgtype: "m.text", body });
    const soon = await send("soon", 300);
    const told = await send("told", 600_000);
    const never = await send("never", 600_000);
    assert.equal(new Set([soon, told, never].map((one) => one.delay_id)).size, 3);
    await alice._unstable_cancelScheduledDelayedEvent(never.delay_id);
    await alice._unstable_sendScheduledDelayedEvent(told.delay_id);
    const came = () => bodies(timeline(phone, room)).filter((body) => ["soon", "told", "never"].includes(body));
    await until("both", () => came().length === 2);
    assert.deepEqual(new Set(came()), new Set(["soon", "told"]));
}

// A device is named, deleted with the password, and learns of its end by its own sync.
export async function devices() {
    const tablet = await logIn(`bob${suffix}`);
    await tablet.startClient({ pollTimeout: 5_000 });
    await until("first sync", () => tablet.isInitialSyncComplete());
    let ended = false;
    tablet.on(sdk.HttpApiEvent.SessionLoggedOut, () => (ended = true));
    await bob.setDeviceDetails(tablet.getDeviceId(), { display_name: "Tablet" });
    assert.equal((await bob.getDevice(tablet.getDeviceId())).display_name, "Tablet");
    const asked = await bob.deleteMultipleDevices([tablet.getDeviceId()]).catch((error) => error);
    assert.equal(asked.httpStatus, 401);
    const identifier = { type: "m.id.user", user: bobId };
    const { session } = asked.data;
    const wrong = { type: "m.login.password", identifier, password: "wrong", session };
    await assert.rejects(bob.deleteMultipleDevices([tablet.getDeviceId()], wrong), (error) => error.httpStatus === 401);
    await bob.deleteMultipleDevices([tablet.getDeviceId()], { ...wrong, password: `bob${suffix}-secret` });
    await until("the end", () => ended);
    tablet.stopClient();
    const left = (await bob.getDevices()).devices.map((device) => device.device_id);
    assert.deepEqual([bob, phone, tablet].map((client) => left.includes(client.getDeviceId())), [true, true, false]);
    await refused(tablet.whoami(), "M_UNKNOWN_TOKEN");
}

export async function whatTheServerSays() {
    const capabilities = await alice.getCapabilities();
    assert.equal(capabilities["m.room_versions"].default, "12");
    assert.ok(await alice.isVersionSupported("v1.11"));
    assert.equal((await alice.getOpenIdToken()).matrix_server_name, alice.getDomain());
    assert.ok((await alice.getMediaConfig(true))["m.upload.size"] > 1_000_000);
    const flows = (await alice.loginFlows()).flows.map((flow) => flow.type);
    assert.ok(flows.includes("m.login.password"));
    assert.equal(await alice.isUsernameAvailable(`dave${suffix}`), true);
    assert.equal(await alice.isUsernameAvailable(`bob${suffix}`), false);
    assert.ok((await alice._unstable_getSharedRooms(bobId)).length > 0);
    await alice.reportRoom((await alice.getJoinedRooms()).joined_rooms[0], "a trial");
}
