// The official client of OpenAI for Node.js; an assertion that fails ends this with a status.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.PACKAGES}/package.json`);
const { default: OpenAI, NotFoundError } = require("openai");

const client = new OpenAI({
  baseURL: process.env.BASE_URL,
  apiKey: process.env.API_KEY,
  maxRetries: 0,
});
const messages = [{ role: "user", content: "One two three" }];

const answer = await client.chat.completions.create({ model: "echo", messages });
assert.equal(answer.choices[0].message.content, "One two three");

let text = "";
const stream = await client.chat.completions.create({ model: "echo", messages, stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert.equal(text, "One two three");

const embedded = await client.embeddings.create({
  model: "all-minilm-l6-v2",
  input: ["a cat", "a dog"],
});
assert.deepEqual(
  embedded.data.map((each) => each.embedding.length),
  [384, 384],
);

await assert.rejects(
  client.chat.completions.create({ model: "none-such", messages }),
  NotFoundError,
);
