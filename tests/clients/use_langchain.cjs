// LangChain for JavaScript: OpenAIEmbeddings.
"use strict";

const { OpenAIEmbeddings } = require("@langchain/openai");
const { run } = require("./exchange.cjs");

run(async ({ url, model }, texts) => {
  const client = new OpenAIEmbeddings({ model, apiKey: "unused", configuration: { baseURL: `${url}/v1` } });
  const vectors = await client.embedDocuments(texts);
  const query = await client.embedQuery(texts[0]);
  if (String(query) !== String(vectors[0])) throw new Error("a query has another vector than the same document");
  return { vectors };
});
