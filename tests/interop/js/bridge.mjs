// A bridge on matrix-bot-sdk's Appservice. The Python test starts and kills it and reads what it says on standard
// output: one line of JSON for everything that it was told or asked.
//
//     node bridge.mjs <homeserver URL> <homeserver name> <own port> <registration, JSON>
import sdk from "matrix-bot-sdk";

const [homeserverUrl, homeserverName, port, registration] = process.argv.slice(2);
const say = (kind, what) => process.stdout.write(JSON.stringify({ kind, ...what }) + "\n");

sdk.LogService.setLogger({
    info() {},
    debug() {},
    trace() {},
    warn: (module, ...rest) => console.error("warn", module, ...rest),
    error: (module, ...rest) => console.error("error", module, ...rest),
});

const appservice = new sdk.Appservice({
    port: Number(port),
    bindAddress: "127.0.0.1",
    homeserverName,
    homeserverUrl,
    registration: JSON.parse(registration),
});

appservice.on("room.event", (roomId, event) => say("event", { roomId, event }));
appservice.on("ephemeral.event", (event) => say("ephemeral", { event }));
appservice.on("query.user", (userId, answer) => {
    const localpart = userId.slice(1).split(":")[0];
    say("query.user", { userId });
    answer(localpart.endsWith("_nobody") ? false : { display_name: `${localpart.replace("_irc_", "")} (IRC)` });
});
appservice.on("query.room", (alias, answer) => {
    say("query.room", { alias });
    answer(alias.startsWith("#_irc_closed") ? false : { preset: "public_chat", name: "IRC channel" });
});
appservice.on("thirdparty.protocol", (protocol, answer) =>
    answer({
        user_fields: ["nickname"],
        location_fields: ["channel"],
        icon: "mxc://example.org/irc",
        field_types: { channel: { regexp: "#.+", placeholder: "#foobar" } },
        instances: [{ desc: "IRC", fields: {}, network_id: "main" }],
    }),
);
appservice.on("thirdparty.user.remote", (protocol, fields, answer) =>
    answer([{ protocol, userid: `@_irc_${fields.nickname}:${homeserverName}`, fields }]),
);
appservice.on("thirdparty.location.matrix", (alias, answer) =>
    answer([{ protocol: "irc", alias, fields: { channel: alias.split(":")[0].slice("#_irc".length) } }]),
);
// A ghost goes wherever it is invited, says so, and repeats what people say.
appservice.on("room.invite", async (roomId, event) => {
    const intent = appservice.getIntentForUserId(event.state_key);
    await intent.joinRoom(roomId);
    await intent.sendText(roomId, "here I am");
});
appservice.on("room.message", async (roomId, event) => {
    if (!event.content.body?.startsWith("!echo ") || appservice.isNamespacedUser(event.sender)) return;
    await appservice.getIntent("_irc_zoe").sendText(roomId, event.content.body.slice("!echo ".length));
});

await appservice.begin();
say("ready", { bot: appservice.botUserId });
