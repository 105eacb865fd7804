// node bundle.mjs NODE_MODULES OUT: page.mjs and what it imports as one script for a browser.
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const [modules, outfile] = process.argv.slice(2);
const esbuild = createRequire(`${modules}/`)("esbuild");
await esbuild.build({
    entryPoints: [fileURLToPath(new URL("page.mjs", import.meta.url))],
    bundle: true,
    format: "iife",
    logLevel: "error",
    define: { global: "globalThis" },
    nodePaths: [modules],
    outfile,
});
