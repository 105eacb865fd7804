// A page of another origin than the server's, as any web client is: two people log in, talk, and what each receives is shown.
import * as sdk from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";

logger.setLevel("warn");
const baseUrl = new URLSearchParams(location.search).get("server");
const WAIT_MS = 30_000;

function tell(text) {
    document.getElementById("state").textContent = text;
}

async function logIn(username) {
    const anonymous = sdk.createClient({ baseUrl });
    const login = await anonymous.loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: username },
        password: `${username} secret`,
    });
    const client = sdk.createClient({
        baseUrl,
        userId: login.user_id,
        accessToken: login.access_token,
        deviceId: login.device_id,
    });
    await client.startClient({ initialSyncLimit: 20 });
    await until(`${username}'s first sync`, () => client.isInitialSyncComplete());
    return client;
}

async function until(what, condition) {
    const deadline = Date.now() + WAIT_MS;
    for (;;) {
        const value = condition();
        if (value) return value;
        if (Date.now() > deadline) throw new Error(`timed out waiting for ${what}`);
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
}

function show(client, roomId) {
    const room = client.getRoom(roomId);
    document.getElementById("room").textContent = room.name;
    const items = room
        .getLiveTimeline()
        .getEvents()
        .filter((event) => event.getType() === "m.room.message")
        .map((event) => {
            const item = document.createElement("li");
            const name = document.createElement("b");
            name.textContent = room.getMember(event.getSender())?.name ?? event.getSender();
            item.append(name, event.getContent().body);
            return item;
        });
    document.getElementById("timeline").replaceChildren(...items);
}

function bodiesOf(client, roomId) {
    return client
        .getRoom(roomId)
        ?.getLiveTimeline()
        .getEvents()
        .filter((event) => event.getType() === "m.room.message" && !event.isSending())
        .map((event) => event.getContent().body);
}

async function talk() {
    tell("logging in");
    const alice = await logIn("alice");
    const bob = await logIn("bob");
    tell("making a room");
    const { room_id: roomId } = await alice.createRoom({ name: "A room in a browser", invite: [bob.getUserId()] });
    await until("Bob's invite", () => bob.getRoom(roomId)?.getMyMembership() === "invite");
    await bob.joinRoom(roomId);
    await until("Bob's join at Alice", () => alice.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "join");
    const lines = [
        [alice, "Hello from a browser"],
        [bob, "Hello, I read you"],
        [alice, "Grüße über eine andere Herkunft (CORS) 👋"],
    ];
    for (const [client, body] of lines) {
        const { event_id: eventId } = await client.sendTextMessage(roomId, body);
        const other = client === alice ? bob : alice;
        await until("the message", () => other.getRoom(roomId)?.findEventById(eventId));
    }
    const expected = lines.map(([, body]) => body).join("\n");
    for (const client of [alice, bob]) await until("all messages", () => bodiesOf(client, roomId)?.join("\n") === expected);
    show(bob, roomId);
    tell("all messages received by both");
    return { messages: bodiesOf(bob, roomId) };
}

async function main() {
    let result;
    try {
        result = await talk();
    } catch (error) {
        tell(`failed: ${error}`);
        result = { error: String(error) };
    }
    await fetch("/done", { method: "POST", body: JSON.stringify(result) });
}

main();
