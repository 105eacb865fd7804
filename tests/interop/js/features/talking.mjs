// What people say to one another: relations, polls, threads, searching, notifications.
import { M_POLL_KIND_DISCLOSED } from "matrix-js-sdk/lib/@types/polls.js";
import { PollEndEvent } from "matrix-js-sdk/lib/extensible_events_v1/PollEndEvent.js";
import { PollResponseEvent } from "matrix-js-sdk/lib/extensible_events_v1/PollResponseEvent.js";
import { PollStartEvent } from "matrix-js-sdk/lib/extensible_events_v1/PollStartEvent.js";
import * as sdk from "matrix-js-sdk";
import assert from "node:assert/strict";
import { logIn, suffix, until } from "../walk.mjs";
import {
    alice, aliceId, bob, bobId, bodies, carol, heard, phone, start, timeline, unread, unreadIn,
} from "./people.mjs";

export async function relations(room) {
    const { event_id: said } = await alice.sendTextMessage(room, "relate to this");
    await heard(bob, room, said);
    for (const [client, key] of [[bob, "👍"], [carol, "👎"]]) {
        const content = { "m.relates_to": { rel_type: "m.annotation", event_id: said, key } };
        await client.sendEvent(room, "m.reaction", content);
    }
    const children = () => phone.getRoom(room).relations.getChildEventsForEvent(said, "m.annotation", "m.reaction");
    await until("both reactions", () => children()?.getSortedAnnotationsByKey().length === 2);
    const first = await phone.relations(room, said, "m.annotation", "m.reaction", { limit: 1 });
    assert.equal(first.originalEvent.getId(), said);
    const rest = await phone.relations(room, said, "m.annotation", "m.reaction", { limit: 1, from: first.nextBatch });
    assert.deepEqual([first, rest].map((page) => page.events[0].getRelation().key), ["👎", "👍"]);
    const better = { msgtype: "m.text", body: "relate to that" };
    const replaces = { rel_type: "m.replace", event_id: said };
    await alice.sendMessage(room, { ...better, "m.new_content": better, "m.relates_to": replaces });
    await until("the edit", () => phone.getRoom(room).findEventById(said).getContent().body === "relate to that");
}

export async function poll(room) {
    const question = PollStartEvent.from("Tea?", ["yes", "no"], M_POLL_KIND_DISCLOSED).serialize();
    const { event_id: pollId } = await alice.sendEvent(room, question.type, question.content);
    const answers = question.content["org.matrix.msc3381.poll.start"].answers.map((answer) => answer.id);
    for (const [client, answer] of [[bob, answers[0]], [carol, answers[1]]]) {
        const { type, content } = PollResponseEvent.from([answer], pollId).serialize();
        await client.sendEvent(room, type, content);
    }
    const seen = await until("the poll", () => phone.getRoom(room).polls.get(pollId));
    const votes = await seen.getResponses();
    await until("both votes", () => votes.getRelations().length === 2);
    const { type, content } = PollEndEvent.from(pollId, "enough").serialize();
    await alice.sendEvent(room, type, content);
    await until("the poll's end", () => seen.isEnded);
}

// Threads have unread counts and receipts of their own, here and on the other device.
export async function threads(room) {
    const { event_id: root } = await alice.sendTextMessage(room, "the root");
    const { event_id: other } = await bob.sendTextMessage(room, "another root");
    await heard(alice, room, other);
    await bob.sendReadReceipt(await heard(bob, room, other));
    await until("nothing unread", () => unread(phone, room) === 0);
    // As applications do it for the one who begins a thread; with the others the SDK does it when a reply comes.
    for (const id of [root, other]) alice.getRoom(room).createThread(id, await heard(alice, room, id), [], false);
    const expected = [];
    for (let number = 0; number < 30; number++) {
        expected.push(`reply ${number}`);
        await alice.sendTextMessage(room, root, expected.at(-1));
        // The SDK fetches a thread that it has just heard of.
        const fetched = (client) => client.getRoom(room).getThread(root)?.initialEventsFetched;
        if (number === 0) await until("the thread elsewhere", () => [bob, carol, phone].every(fetched));
    }
    const mention = { "m.mentions": { user_ids: [bobId] } };
    await alice.sendMessage(room, other, { msgtype: "m.text", body: "aside, Bob", ...mention });
    await until("the threads' counts", () => unreadIn(phone, room, root) === 30 && unreadIn(phone, room, other) === 1);
    assert.equal(unreadIn(phone, room, other, "highlight"), 1);
    assert.equal(unread(phone, room), 0);
    const thread = await until("the thread", () => phone.getRoom(room).getThread(root));
    await until("its replies", () => bodies(thread.events).length === 31);
    assert.deepEqual(bodies(thread.events), ["the root", ...expected]);
    assert.equal(thread.replyToEvent.getContent().body, "reply 29");

    const own = await until("the thread at Bob", () => bob.getRoom(room).getThread(root));
    const last = await until("its end", () => own.lastReply((event) => event.getContent().body === "reply 29"));
    await bob.sendReadReceipt(last);
    await until("one thread read", () => unreadIn(phone, room, root) === 0 && unreadIn(phone, room, other) === 1);
    const [read, not] = await until("Alice's threads", () => {
        const both = [root, other].map((id) => alice.getRoom(room).getThread(id));
        return both.every((one) => one?.lastReply()) && both;
    });
    await until("the receipt", () => read.hasUserReadEvent(bobId, last.getId()));
    assert.ok(!not.hasUserReadEvent(bobId, not.lastReply().getId()));
    const aside = await until("the aside", () => bob.getRoom(room).getThread(other)?.lastReply());
    await bob.sendReadReceipt(aside, "m.read.private");
    await until("the other thread read", () => unreadIn(phone, room, other) === 0);

    const listed = phone.getRoom(room);
    await listed.createThreadsTimelineSets();
    await listed.fetchRoomThreads();
    const roots = (set) => set.getLiveTimeline().getEvents().map((event) => event.getId());
    assert.deepEqual(roots(listed.threadsTimelineSets[0]), [root, other]);
    assert.deepEqual(roots(listed.threadsTimelineSets[1]), [other]);
    assert.equal(listed.getThread(root).rootEvent.getServerAggregatedRelation("m.thread").count, 30);
    return { root, expected };
}

// A device that comes late pages a thread back to its root.
export async function threadFromTheEnd(room, { root, expected }) {
    const tablet = await logIn(`bob${suffix}`);
    await start(tablet, { initialSyncLimit: 1 });
    const found = tablet.getRoom(room);
    await found.createThreadsTimelineSets();
    await found.fetchRoomThreads();
    const late = found.getThread(root);
    await until("the thread's end", () => late.initialEventsFetched);
    const { liveTimeline } = late;
    const page = { backwards: true, limit: 7 };
    while (liveTimeline.getPaginationToken("b")) await tablet.paginateEventTimeline(liveTimeline, page);
    assert.deepEqual(bodies(liveTimeline.getEvents()), ["the root", ...expected]);
    tablet.stopClient();
    await tablet.logout();
}

// Found by everyone who may, page by page, once the index has followed.
export async function search(room) {
    for (let number = 0; number < 25; number++) {
        await (number % 2 ? bob : alice).sendTextMessage(room, `a needle in haystack ${number}`);
    }
    const find = async () => {
        for (;;) {
            const found = await carol.searchRoomEvents({ term: "needle", filter: { rooms: [room] } });
            if (found.count >= 25) return found;
            await new Promise((resolve) => setTimeout(resolve, 100));
        }
    };
    const found = await find();
    assert.equal(found.results.length, 10);
    while (found.next_batch) await carol.backPaginateRoomEventsSearch(found);
    const texts = found.results.map((result) => result.context.getEvent().getContent().body);
    assert.deepEqual(texts, Array.from({ length: 25 }, (_, index) => `a needle in haystack ${24 - index}`));
    assert.ok(found.highlights.includes("needle"));
    const [first] = found.results;
    assert.equal(first.context.getTimeline()[0].getContent().body, "a needle in haystack 23");
    assert.equal(first.context.getEvent().sender.userId, aliceId);
    const bobs = await carol.searchRoomEvents({ term: "needle", filter: { rooms: [room], senders: [bobId] } });
    assert.equal(bobs.count, 12);
    const people = await carol.searchUserDirectory({ term: "Bob" });
    assert.ok(people.results.some((person) => person.user_id === bobId && person.display_name === "Bob"));
}

// Counts by mention and by rules of one's own, muting, and the list of what notified.
export async function notifications(room) {
    await bob.sendReadReceipt(timeline(bob, room).at(-1), "m.read", true);
    await until("nothing unread", () => unread(phone, room) === 0);
    const plain = { "msgtype": "m.text", "body": "hello Bob", "m.mentions": {} };
    await alice.sendMessage(room, plain);
    await until("one", () => unread(phone, room) === 1 && unread(phone, room, "highlight") === 0);
    const mention = { ...plain, "m.mentions": { user_ids: [bobId] } };
    const { event_id: mentioned } = await alice.sendMessage(room, mention);
    await until("a mention", () => unread(phone, room) === 2 && unread(phone, room, "highlight") === 1);
    const { event_id: everyone } = await alice.sendMessage(room, { ...plain, "m.mentions": { room: true } });
    await until("a mention of all", () => unread(phone, room) === 3 && unread(phone, room, "highlight") === 2);
    await carol.sendMessage(room, { ...plain, "m.mentions": { room: true } });
    await until("one who may not", () => unread(phone, room) === 4);
    assert.equal(unread(phone, room, "highlight"), 2);

    const highlighting = [sdk.PushRuleActionName.Notify, { set_tweak: "highlight" }];
    await bob.addPushRule("global", "content", "plums", { pattern: "plum*", actions: highlighting });
    const plums = (client) => client.pushRules.global.content.find((rule) => rule.rule_id === "plums");
    await until("the rule", () => plums(phone));
    const { event_id: keyword } = await alice.sendMessage(room, { ...plain, body: "PLUMS for all" });
    await until("a keyword", () => unread(phone, room, "highlight") === 3);
    assert.equal(phone.getPushActionsForEvent(await heard(phone, room, keyword)).tweaks.highlight, true);

    const listed = new sdk.EventTimelineSet(undefined, { timelineSupport: true });
    phone.setNotifTimelineSet(listed);
    const notified = listed.getLiveTimeline();
    notified.setPaginationToken("", sdk.EventTimeline.BACKWARDS);
    while (await phone.paginateEventTimeline(notified, { backwards: true, limit: 2 }));
    const told = notified.getEvents().map((event) => event.getId());
    assert.deepEqual(told.filter((id) => [mentioned, everyone, keyword].includes(id)), [mentioned, everyone, keyword]);
    assert.equal(new Set(told).size, told.length);

    await bob.setPushRuleEnabled("global", "content", "plums", false);
    await until("the rule's end", () => plums(phone).enabled === false);
    await bob.deletePushRule("global", "content", "plums");
    await until("no rule", () => !plums(phone));
    await bob.sendReadReceipt(await heard(bob, room, keyword), "m.read", true);
    await until("all read", () => unread(phone, room) === 0 && unread(phone, room, "highlight") === 0);
    await bob.setRoomMutePushRule("global", room, true);
    await until("the mute", () => phone.getRoomPushRule("global", room));
    const { event_id: muted } = await alice.sendTextMessage(room, "into the void");
    await heard(phone, room, muted);
    assert.equal(unread(phone, room), 0);
    await bob.setRoomMutePushRule("global", room, false);
    await until("no mute", () => !phone.getRoomPushRule("global", room));
}
