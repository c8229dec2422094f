// The classes of errors of OpenAI's client for Node.js; an assertion that fails ends this with a status.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.PACKAGES}/package.json`);
const { default: OpenAI, ...errors } = require("openai");

const connect = (apiKey, more) =>
  new OpenAI({ baseURL: process.env.BASE_URL, apiKey, maxRetries: 0, ...more });

for (const [error, status, key, headers, body] of JSON.parse(readFileSync(0))) {
  await assert.rejects(
    connect(key).chat.completions.create(body, { headers }),
    (caught) => caught instanceof errors[error] && caught.status === status,
    `${error} ${status}`,
  );
}

const messages = [{ role: "user", content: "One two three four five six" }];
await assert.rejects(
  connect("none", { timeout: 500 }).chat.completions.create({ model: "slow-echo", messages }),
  errors.APIConnectionTimeoutError,
);
await assert.rejects(
  connect("none", { baseURL: "http://127.0.0.1:9" }).models.list(),
  errors.APIConnectionError,
);
