// OpenAI's client for JavaScript against a running server.
// usage: node client.mjs http://127.0.0.1:PORT MODEL
import assert from "node:assert";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Name a colour." }];
const common = { model, messages, temperature: 0, max_tokens: 16 };

const whole = await client.chat.completions.create(common);
let text = "";
for await (const part of await client.chat.completions.create({ ...common, stream: true })) {
  text += part.choices[0]?.delta?.content ?? "";
}
assert.strictEqual(text, whole.choices[0].message.content);
const made = await client.embeddings.create({ model: "any", input: "a boat" });
assert.strictEqual(made.data[0].embedding.length, 384);
await assert.rejects(client.chat.completions.create({ ...common, n: 2 }), OpenAI.BadRequestError);
console.log("client for JavaScript: ok");
