// @huggingface/inference with the URL of an endpoint.
"use strict";

const { InferenceClient } = require("@huggingface/inference");
const { run } = require("./exchange.cjs");

run(async ({ url, model }, texts) => {
  const client = new InferenceClient("unused").endpoint(url);
  return { vectors: await client.featureExtraction({ model, inputs: texts }) };
});
