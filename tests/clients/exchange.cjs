// How tests/test_clients.py talks with the JavaScript programs: node PROGRAM.cjs URL [--model NAME] [--option NAME].
// CommonJS, because only `require` looks for packages where NODE_PATH says.
"use strict";

const { readFileSync } = require("node:fs");
const { parseArgs } = require("node:util");

/**
 * Calls `embed({ url, model, option }, texts)` with a JSON array from standard input and prints its result as JSON: an
 * object with `vectors` and, where the client tells them, `prompt_tokens`. What it throws is printed as `error`.
 */
exports.run = async function run(embed) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { model: { type: "string", default: "sentence-transformers/all-MiniLM-L6-v2" }, option: { type: "string" } },
  });
  const texts = JSON.parse(readFileSync(0, "utf8"));
  const result = await embed({ url: positionals[0], ...values }, texts).catch(describe);
  process.stdout.write(JSON.stringify(result));
};

function describe(error) {
  const { message, param, code } = error;
  const status = error.status ?? error.statusCode ?? error.httpResponse?.status;
  return { error: { class: error.constructor.name, status, message, param, code } };
}
