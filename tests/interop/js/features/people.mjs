// Who walks through what matrix-js-sdk offers, and how one looks at what they see. Bob has two devices: what `phone`
// shows came by /sync alone, since he acts on the other one.
import { logIn, register, suffix, until } from "../walk.mjs";

const OPTIONS = { initialSyncLimit: 50, pollTimeout: 5_000, threadSupport: true, lazyLoadMembers: true };

export const alice = await register(`alice${suffix}`);
export const bob = await register(`bob${suffix}`);
export const carol = await register(`carol${suffix}`);
export const phone = await logIn(`bob${suffix}`);
export const everybody = [alice, bob, carol, phone];
export const [aliceId, bobId, carolId] = everybody.map((client) => client.getUserId());
export const domain = alice.getDomain();

export async function start(client, options = {}) {
    await client.startClient({ ...OPTIONS, ...options });
    await until("first sync", () => client.isInitialSyncComplete());
}

export const membership = (client, roomId) => client.getRoom(roomId)?.getMyMembership();

export const memberOf = (client, roomId, userId) => client.getRoom(roomId)?.getMember(userId)?.membership;

export const state = (client, roomId, type, key = "") =>
    client.getRoom(roomId)?.currentState.getStateEvents(type, key)?.getContent();

export const timeline = (client, roomId) => client.getRoom(roomId).getLiveTimeline().getEvents();

export const bodies = (events) => events.map((event) => event.getContent().body).filter((body) => body);

export const heard = (client, roomId, eventId) =>
    until(`${eventId} at ${client.getUserId()}`, () => client.getRoom(roomId)?.findEventById(eventId));

// Unread in the main timeline, or in a thread.
export const unread = (client, roomId, type = "total") => client.getRoom(roomId).getRoomUnreadNotificationCount(type);

export const unreadIn = (client, roomId, root, type = "total") =>
    client.getRoom(roomId).getThreadUnreadNotificationCount(root, type);

export async function create(client, options) {
    return (await client.createRoom(options)).room_id;
}

export async function join(roomId, ...clients) {
    for (const client of clients) await client.joinRoom(roomId);
    for (const client of clients) await until("join", () => membership(client, roomId) === "join");
}
