// openai for JavaScript: node use_openai.cjs URL [--model NAME] [--option float]; the client's default is base64.
// CommonJS, because only `require` looks for packages where NODE_PATH says.
"use strict";

const { readFileSync } = require("node:fs");
const { parseArgs } = require("node:util");
const OpenAI = require("openai");

async function embed(url, model, encoding, texts) {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused" });
  const request = { input: texts, model, ...(encoding && { encoding_format: encoding }) };
  const answer = await client.embeddings.create(request);
  const inOrder = answer.data.every((item, position) => item.index === position);
  if (!inOrder) throw new Error("the vectors are not in the order of the texts");
  return { vectors: answer.data.map((item) => item.embedding), prompt_tokens: answer.usage.prompt_tokens };
}

function describe(error) {
  const { status, message, param, code } = error;
  return { error: { class: error.constructor.name, status, message, param, code } };
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    model: { type: "string", default: "sentence-transformers/all-MiniLM-L6-v2" },
    option: { type: "string" },
  },
});
embed(positionals[0], values.model, values.option, JSON.parse(readFileSync(0, "utf8")))
  .catch(describe)
  .then((result) => process.stdout.write(JSON.stringify(result)));
