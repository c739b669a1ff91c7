// The TypeScript SDK against the mock, as a new user would: `node typescript_client.mjs URL`. Prints one line of JSON.
import Anthropic from "@anthropic-ai/sdk";

const model = "claude-sonnet-4-5";
const messages = [{ role: "user", content: "hello" }];
const client = new Anthropic({ apiKey: "key", baseURL: process.argv[2] });
const seen = {};

const message = await client.messages.create({ model, max_tokens: 30, messages });
seen.create = [message.content[0].type, message.stop_reason, message.usage.output_tokens];

const stream = client.messages.stream({ model, max_tokens: 30, messages });
let text = "";
stream.on("text", (piece) => (text += piece));
const final = await stream.finalMessage();
seen.stream = text === message.content[0].text && final.usage.output_tokens === 30;

const tool = {
  name: "add",
  input_schema: { type: "object", properties: { n: { type: "integer" } }, required: ["n"] },
};
const called = await client.messages.create({
  model, max_tokens: 99, messages, tools: [tool], tool_choice: { type: "any" },
});
seen.tool = [called.stop_reason, called.content[0].input];

const thought = await client.messages.create({
  model, max_tokens: 2000, messages, thinking: { type: "enabled", budget_tokens: 1024 },
});
seen.thinking = thought.content.map((block) => block.type);

seen.count = (await client.messages.countTokens({ model, messages })).input_tokens;
const models = [];
for await (const entry of client.models.list({ limit: 5 })) models.push(entry.id);
seen.models = models.includes(model);

const params = { model, max_tokens: 5, messages };
const requests = ["0", "1", "2"].map((custom_id) => ({ custom_id, params }));
let batch = await client.messages.batches.create({ requests });
const giveUp = Date.now() + 30_000;
while (batch.processing_status !== "ended") {
  if (Date.now() > giveUp) throw new Error("the batch does not end");
  batch = await client.messages.batches.retrieve(batch.id);
}
seen.batch = [];
for await (const line of await client.messages.batches.results(batch.id)) {
  seen.batch.push([line.custom_id, line.result.type]);
}
seen.batch.sort();

seen.errors = {};
for (const kind of ["400", "401", "403", "404", "413", "429", "500", "503", "529"]) {
  try {
    await client.messages.create(params, { maxRetries: 0, headers: { "x-mock-fault": `kind=${kind}` } });
  } catch (error) {
    seen.errors[kind] = error.status;
  }
}

const key = Math.random().toString(36);
const begun = Date.now();
await client.messages.create(params, {
  headers: { "x-mock-fault": `kind=529;times=2;retry_after=0.2;key=${key}` },
});
seen.retried_after_s = (Date.now() - begun) / 1000;

try {
  await client.messages
    .stream({ model, max_tokens: 30, messages }, { headers: { "x-mock-fault": "kind=drop_stream" } })
    .finalMessage();
  seen.broken = "unnoticed";
} catch (error) {
  seen.broken = error.constructor.name;
}

console.log(JSON.stringify(seen));
