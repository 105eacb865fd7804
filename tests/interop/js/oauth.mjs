// A client that logs in by the OAuth 2.0 API (matrix-js-sdk's OAuth2), with its user's browser (see walk.mjs).
import * as sdk from "matrix-js-sdk";
import { OAuth2, isValidAuthMetadata } from "matrix-js-sdk/lib/oauth/index.js";
import assert from "node:assert/strict";
import { baseUrl, register, restartServer, suffix } from "./walk.mjs";

const REDIRECT = "http://localhost:4711/back";
const username = `alice${suffix}`;
await register(username);

// A browser: it keeps its cookie, sends forms, and shows where it is sent in the end.
let cookie = "";
async function visit(url, form) {
    const options = { redirect: "manual", headers: { cookie } };
    if (form) Object.assign(options, { method: "POST", body: new URLSearchParams(form) });
    const answer = await fetch(new URL(url, baseUrl), options);
    cookie = answer.headers.get("set-cookie")?.split(";")[0] ?? cookie;
    const location = answer.headers.get("location");
    if (location) return { location };
    const text = await answer.text();
    const action = text.match(/<form method="post" action="([^"]+)"/)?.[1];
    return { text, action, task: text.match(/name="task" value="([^"]+)"/)?.[1] };
}

async function signIn(page) {
    return visit(page.action, { task: page.task, user: username, password: `${username}-secret` });
}

async function agree(page) {
    return visit(page.action, { task: page.task, decision: "allow" });
}

const metadata = await sdk.createClient({ baseUrl }).getAuthMetadata();
assert.ok(isValidAuthMetadata(metadata));
const clientId = await OAuth2.registerClient(metadata, {
    client_name: "A client in Node",
    client_uri: "https://client.example/",
    application_type: "native",
    redirect_uris: ["http://localhost/back"],
    grant_types: ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"],
});

// The authorisation code grant.
const oauth = new OAuth2(metadata, { clientId });
const url = await oauth.generateAuthorizationCodeGrantUrl("the state", REDIRECT);
const page = await visit(url);
assert.match(page.text, /A client in Node/);
await restartServer();
const { location } = await agree(await signIn(page));
const answer = new URLSearchParams(new URL(location).hash.slice(1));
assert.ok(location.startsWith(`${REDIRECT}#`));
assert.equal(answer.get("state"), "the state");
await restartServer();
const tokens = await oauth.completeAuthorizationCodeGrant(answer.get("code"), REDIRECT);
assert.equal(tokens.token_type, "Bearer");

// The client works with it, and goes on with new tokens for old ones by itself.
let refreshed = 0;
const client = sdk.createClient({
    baseUrl,
    userId: `@${username}:chat.example`,
    deviceId: oauth.context.deviceId,
    accessToken: tokens.access_token,
    refreshToken: tokens.refresh_token,
    oauthClientId: clientId,
    onTokenRefresh: async () => {
        refreshed += 1;
    },
});
assert.deepEqual(await client.whoami(), {
    user_id: `@${username}:chat.example`,
    device_id: oauth.context.deviceId,
    is_guest: false,
});
const { room_id: roomId } = await client.createRoom({ name: "By OAuth" });
await new Promise((resolve) => setTimeout(resolve, tokens.expires_in * 1_000 + 500));
await restartServer();
await client.sendTextMessage(roomId, "after the token's end");
assert.equal(refreshed, 1);

// The device authorisation grant, in the same browser.
const device = new OAuth2(metadata, { clientId });
const begun = await device.startDeviceAuthorizationGrant();
const waiting = device.waitForDeviceAuthorizationGrant(begun);
const shown = await visit(begun.verification_uri_complete);
assert.ok(shown.text.includes(begun.user_code));
const consent = await signIn(await visit(shown.action, { user_code: begun.user_code }));
assert.match(consent.text, /Go on only if the device is in front of you/);
await agree(consent);
const linked = await waiting;
const other = sdk.createClient({ baseUrl, accessToken: linked.access_token });
assert.equal((await other.whoami()).device_id, device.context.deviceId);

// Its end.
const last = client.getAccessToken();
await client.logout();
await assert.rejects(sdk.createClient({ baseUrl, accessToken: last }).whoami(), { httpStatus: 401 });
const left = (await other.getDevices()).devices.map((one) => one.device_id);
assert.ok(left.includes(device.context.deviceId) && !left.includes(oauth.context.deviceId));
console.log(`DONE ${JSON.stringify({ refreshed })}`);
process.exit(0);
