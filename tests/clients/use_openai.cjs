// openai for JavaScript. `--option float` asks for numbers; the client's default is base64.
"use strict";

const OpenAI = require("openai");
const { run } = require("./exchange.cjs");

run(async ({ url, model, option }, texts) => {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused" });
  const request = { input: texts, model, ...(option && { encoding_format: option }) };
  const answer = await client.embeddings.create(request);
  const inOrder = answer.data.every((item, position) => item.index === position);
  if (!inOrder) throw new Error("the vectors are not in the order of the texts");
  return { vectors: answer.data.map((item) => item.embedding), prompt_tokens: answer.usage.prompt_tokens };
});
