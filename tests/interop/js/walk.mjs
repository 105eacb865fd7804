// What the scripts on matrix-js-sdk begin with. The Python test starts a script with the server's URL and a suffix for names,
// kills and restarts the server when the script asks for it, and reads the last line, "DONE {...}".
import * as sdk from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";
import assert from "node:assert/strict";
import readline from "node:readline";

logger.setLevel("silent");
export const [baseUrl, suffix] = process.argv.slice(2);
const WAIT_MS = 60_000;
const input = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

export async function register(username) {
    const anonymous = sdk.createClient({ baseUrl });
    const body = { username, password: `${username}-secret`, initial_device_display_name: "js" };
    let session;
    try {
        await anonymous.registerRequest(body);
        assert.fail("registration without authentication was accepted");
    } catch (error) {
        session = error.data?.session;
        assert.ok(session, `no UIA session: ${error}`);
    }
    await anonymous.registerRequest({ ...body, auth: { type: "m.login.dummy", session } });
    return logIn(username);
}

// Another device of someone who is registered.
export async function logIn(username) {
    const login = await sdk.createClient({ baseUrl }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: username },
        password: `${username}-secret`,
    });
    return sdk.createClient({
        baseUrl,
        userId: login.user_id,
        accessToken: login.access_token,
        deviceId: login.device_id,
        timelineSupport: true,
    });
}

// A value that is true, as soon as `condition` has one.
export function until(what, condition) {
    const deadline = Date.now() + WAIT_MS;
    return new Promise((resolve, reject) => {
        const look = () => {
            const value = condition();
            if (value) resolve(value);
            else if (Date.now() > deadline) reject(new Error(`timed out waiting for ${what}`));
            else setTimeout(look, 20);
        };
        look();
    });
}

// Have the server killed and started again.
export async function restartServer() {
    console.log("RESTART");
    await input.next();
}

export async function refused(promise, errcode) {
    await assert.rejects(promise, (error) => {
        assert.equal(error.errcode, errcode, String(error));
        return true;
    });
}
