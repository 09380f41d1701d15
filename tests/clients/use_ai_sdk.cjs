// Vercel's AI SDK with an OpenAI-compatible server.
"use strict";

const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const { embedMany } = require("ai");
const { run } = require("./exchange.cjs");

run(async ({ url, model }, texts) => {
  const provider = createOpenAICompatible({ name: "embeddings", baseURL: `${url}/v1`, apiKey: "unused" });
  const answer = await embedMany({ model: provider.embeddingModel(model), values: texts });
  return { vectors: answer.embeddings, prompt_tokens: answer.usage.tokens };
});
