// OpenAI's client for Node against a running cluster: chats, tools, structured outputs, responses.
//
//   npm install --prefix /tmp/node openai zod
//   NODE_PATH=/tmp/node/node_modules node bench/openai_node.mjs http://127.0.0.1:8080/v1 smollm2-135m
//
// Says what it did, line by line; ends with an error at the first thing that is not as it should be.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

// Modules by NODE_PATH, which imports do not look at.
const require = createRequire(import.meta.url);
const { OpenAI } = require("openai");

const [baseURL, model] = process.argv.slice(2);
assert(baseURL && model, "usage: node bench/openai_node.mjs URL MODEL");
const client = new OpenAI({ baseURL, apiKey: process.env.OPENAI_API_KEY ?? "none", maxRetries: 0 });

const chat = { model, temperature: 0, max_tokens: 24 };
const messages = [{ role: "user", content: "What is the capital of France? One word." }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const schema = {
  type: "object",
  properties: { name: { type: "string", maxLength: 12 }, age: { type: "integer", minimum: 0, maximum: 150 } },
  required: ["name", "age"],
  additionalProperties: false,
};

async function chats() {
  const whole = await client.chat.completions.create({ ...chat, messages });
  const said = whole.choices[0].message.content;
  const stream = client.chat.completions.stream({ ...chat, messages });
  let deltas = "";
  stream.on("content", (delta) => (deltas += delta));
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, said);
  assert.equal(deltas, said);
  console.log("chat, whole and streamed:", JSON.stringify(said));
}

async function tools() {
  const tool = { type: "function", function: { name: "weather", parameters, strict: true } };
  const asked = { ...chat, max_tokens: 64, messages, tools: [tool], tool_choice: "required" };
  const stream = client.chat.completions.stream(asked);
  const { message, finish_reason } = (await stream.finalChatCompletion()).choices[0];
  assert.equal(finish_reason, "tool_calls");
  const [call] = message.tool_calls;
  assert.equal(call.function.name, "weather");
  const { city } = JSON.parse(call.function.arguments);
  assert(["Paris", "Rome"].includes(city));
  const result = { role: "tool", tool_call_id: call.id, content: `It is sunny in ${city}.` };
  const after = await client.chat.completions.create({ ...chat, messages: [...messages, message, result] });
  assert(after.choices[0].message.content);
  console.log("a tool was called and its result used:", city);
}

async function responses() {
  const asked = { model, temperature: 0, max_output_tokens: 24, input: messages };
  const first = await client.responses.create(asked);
  const stream = client.responses.stream({ ...asked, previous_response_id: null });
  let deltas = "";
  const types = [];
  for await (const event of stream) {
    types.push(event.type);
    if (event.type === "response.output_text.delta") deltas += event.delta;
  }
  const final = await stream.finalResponse();
  assert.equal(final.output_text, first.output_text);
  assert.equal(deltas, first.output_text);
  assert.equal(types[0], "response.created");
  console.log("response, whole and streamed:", JSON.stringify(deltas));

  const more = await client.responses.create({ ...asked, input: "Why?", previous_response_id: first.id });
  assert.equal(more.previous_response_id, first.id);
  assert.deepEqual((await client.responses.retrieve(more.id)).output, more.output);
  const items = [];
  for await (const item of client.responses.inputItems.list(more.id)) items.push(item);
  assert.equal(items[0].content[0].text, "Why?");
  console.log("gone on from, retrieved, listed");

  const format = { type: "json_schema", name: "person", schema, strict: true };
  const parsed = await client.responses.parse({
    ...asked,
    max_output_tokens: 64,
    input: "Ann is thirty years old. Give her name and age as JSON.",
    text: { format },
  });
  assert.equal(typeof JSON.parse(parsed.output_text).age, "number");
  console.log("structured:", parsed.output_text);

  const tool = { type: "function", name: "weather", parameters, strict: true };
  const forced = { ...asked, max_output_tokens: 64, tools: [tool], tool_choice: "required" };
  const calling = await client.responses.stream(forced).finalResponse();
  const call = calling.output.find((item) => item.type === "function_call");
  const { city } = JSON.parse(call.arguments);
  const output = { type: "function_call_output", call_id: call.call_id, output: `It is sunny in ${city}.` };
  const after = await client.responses.create({ ...asked, input: [output], previous_response_id: calling.id });
  assert(after.output_text);
  console.log("a tool was called and its result used:", city);

  let background = await client.responses.create({ ...asked, background: true });
  while (["queued", "in_progress"].includes(background.status)) {
    await new Promise((done) => setTimeout(done, 50));
    background = await client.responses.retrieve(background.id);
  }
  assert.equal(background.output_text, first.output_text);
  const again = [];
  for await (const event of await client.responses.retrieve(background.id, { stream: true, starting_after: 3 }))
    again.push(event.sequence_number);
  assert.equal(again[0], 4);
  const long = await client.responses.create({ ...asked, max_output_tokens: 2000, background: true });
  assert.equal((await client.responses.cancel(long.id)).status, "cancelled");
  await client.responses.delete(long.id);
  await assert.rejects(client.responses.retrieve(long.id), OpenAI.NotFoundError);
  console.log("in the background: polled, listened to again, cancelled, deleted");
}

for (const part of [chats, tools, responses]) await part();
