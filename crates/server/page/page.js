// The page of an Everstream server: a conversation in a session with a name, and beside it what its
// cache holds and what it remembers. Everything comes from the paths of docs/SERVER.md.

const $ = (id) => document.getElementById(id);

// What the page knows.
let key = sessionStorage.getItem("key") ?? "";
let session = localStorage.getItem("session") || "main";
let state = null;
let answering = null;

// An element with attributes and children; text stays text.
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (attribute.startsWith("on")) made.addEventListener(attribute.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(attribute, value);
  }
  made.append(...children);
  return made;
}

function drawn(name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (attribute.startsWith("on")) made.addEventListener(attribute.slice(2), value);
    else made.setAttribute(attribute, value);
  }
  made.textContent = text;
  return made;
}

function complain(error) {
  $("error").textContent = error.message ?? String(error);
  $("error").hidden = false;
  clearTimeout(complain.timer);
  complain.timer = setTimeout(() => ($("error").hidden = true), 8000);
}

class RequestError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Asks the server. A missing key is asked for, and then the request is made again.
async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (options.json !== undefined) {
    headers["Content-Type"] = "application/json";
    options = { ...options, body: JSON.stringify(options.json) };
  }
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) {
    await askForKey();
    return ask(path, options);
  }
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // The status says it.
  }
  throw new RequestError(response.status, message);
}

// Several requests may wait for the same key.
function askForKey() {
  askForKey.asked ??= new Promise((resolve, reject) => {
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      key = $("key-text").value;
      sessionStorage.setItem("key", key);
      $("key").close();
      resolve();
    };
    $("key").oncancel = () => reject(new Error("this server answers only to those who have a key"));
    $("key").showModal();
  }).finally(() => (askForKey.asked = null));
  return askForKey.asked;
}

const path = (rest = "", of = session) => `/v1/sessions/${encodeURIComponent(of)}${rest}`;

// Sessions.

async function showSessions() {
  const { data } = await (await ask("/v1/sessions")).json();
  const names = data.map((of) => of.id);
  if (!names.includes(session)) names.unshift(session);
  $("sessions").replaceChildren(
    ...names.map((name) =>
      element(
        "li",
        {},
        element(
          "button",
          { type: "button", class: "name", "aria-current": String(name === session), onclick: () => guarded(open)(name) },
          name,
        ),
        element(
          "button",
          { type: "button", "aria-label": `Delete session ${name}`, onclick: () => guarded(remove)(name) },
          "×",
        ),
      ),
    ),
  );
}

async function open(name) {
  if (answering) answering.abort();
  session = name;
  localStorage.setItem("session", name);
  $("turns").replaceChildren();
  $("found").replaceChildren();
  await showSessions();
  await showState();
  if (state) await showPast();
  $("text").focus();
}

async function remove(name) {
  if (!confirm(`Delete session ${name} with all that it remembers?`)) return;
  try {
    await ask(`/v1/sessions/${encodeURIComponent(name)}`, { method: "DELETE" });
  } catch (error) {
    if (error.status !== 404) throw error;
  }
  await open(name === session ? "main" : session);
}

// The newest blocks of a session that goes on.
async function showPast() {
  const from = Math.max(0, state.n_tokens - 2000);
  const { data } = await (await ask(path(`/memory?from=${from}&limit=40`))).json();
  for (const block of data) say(block.role, block.text, "past");
}

// The conversation.

function say(who, text, kind = who) {
  const turn = element("div", { class: `turn ${kind}` }, element("span", { class: "who" }, who), text);
  $("turns").append(turn);
  $("turns").scrollTop = $("turns").scrollHeight;
  return turn;
}

async function send(text) {
  const of = session;
  say("user", text);
  const turn = say("assistant", "");
  const controller = (answering = new AbortController());
  $("send").hidden = true;
  $("stop").hidden = false;
  try {
    const response = await ask("/v1/chat/completions", {
      method: "POST",
      signal: controller.signal,
      json: {
        session: of,
        stream: true,
        stream_options: { include_usage: true },
        messages: [{ role: "user", content: text }],
      },
    });
    let begun = 0;
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.everstream) {
        begun = performance.now();
        showRecalled(event.everstream.recalled);
        showState().catch(complain);
      }
      const piece = event.choices?.[0]?.delta?.content;
      if (piece) {
        turn.append(piece);
        $("turns").scrollTop = $("turns").scrollHeight;
      }
      if (event.usage) {
        const seconds = (performance.now() - begun) / 1000;
        const speed = event.usage.completion_tokens / seconds;
        $("speed").textContent = `${speed.toFixed(0)} tokens/s`;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      turn.append(" …");
      throw error;
    }
  } finally {
    answering = null;
    $("send").hidden = false;
    $("stop").hidden = true;
    await showState();
    await showSessions();
  }
}

// The events of a streamed answer.
async function* events(response) {
  for await (const line of lines(response)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice(5).trim();
    if (data === "[DONE]") return;
    yield JSON.parse(data);
  }
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    rest += value;
    const whole = rest.split("\n");
    rest = whole.pop();
    yield* whole;
  }
  if (rest) yield rest;
}

async function read(file) {
  const progress = $("progress");
  progress.hidden = false;
  progress.removeAttribute("value");
  try {
    const response = await ask(path(`/ingest?name=${encodeURIComponent(file.name)}`), {
      method: "POST",
      headers: { "Content-Type": "text/plain" },
      body: file,
    });
    for await (const line of lines(response)) {
      if (!line) continue;
      const event = JSON.parse(line);
      if (event.error) throw new Error(event.error.message);
      progress.max = event.n_tokens;
      progress.value = event.n_read;
      $("progress-text").textContent = `${file.name}: ${event.n_read} of ${event.n_tokens} tokens`;
    }
  } finally {
    progress.hidden = true;
    await showState();
    await showSessions();
  }
}

// The cache and the memory.

async function showState() {
  const of = session;
  let found = null;
  try {
    found = await (await ask(path())).json();
  } catch (error) {
    if (error.status !== 404) throw error;
  }
  // Another session was opened meanwhile.
  if (of !== session) return;
  state = found;
  draw();
  showPins();
  if (state) showRecalled(state.recalled);
  else showRecalled([]);
}

// Sections of the cache above, the whole stream below; what was recalled is lit up in both.
function draw() {
  const svg = $("cache");
  svg.replaceChildren();
  if (!state) {
    $("cache-text").textContent = "This session begins with its first turn.";
    return;
  }
  const { sections, capacity, n_tokens, recalled } = state;
  const width = 400;
  const total = Math.max(1, Math.max(capacity.sinks, sections.sinks) + capacity.recalled + capacity.window);
  const scale = (n) => (n / total) * width;
  const box = (x, n, of) => drawn("rect", { x, y: 20, width: Math.max(0, scale(n)), height: 34, class: of });
  let x = 0;
  const put = (name, n, room, more = 0) => {
    svg.append(box(x, n, name), box(x + scale(n), more, "hiddenrows"));
    svg.append(drawn("rect", { x, y: 20, width: scale(room), height: 34, class: "frame" }));
    if (scale(room) > 30) svg.append(drawn("text", { x: x + 2, y: 14 }, `${name} ${n}`));
    const from = x;
    x += scale(room);
    return from;
  };
  put("sinks", sections.sinks, Math.max(capacity.sinks, sections.sinks));
  const recalledAt = put("recalled", sections.recalled, capacity.recalled);
  const window_ = Math.min(sections.window, capacity.window);
  const hidden = Math.min(sections.hidden, capacity.window - window_);
  put("window", window_, capacity.window, hidden);
  // The stream.
  const place = (token) => (token / Math.max(1, n_tokens)) * width;
  svg.append(drawn("line", { x1: 0, y1: 112, x2: width, y2: 112, class: "tail" }));
  const first = n_tokens - sections.window - sections.hidden;
  svg.append(
    drawn("rect", { x: place(first), y: 107, width: Math.max(2, width - place(first)), height: 10, class: "window" }),
    drawn("rect", { x: 0, y: 107, width: Math.max(2, place(sections.sinks)), height: 10, class: "sinks" }),
    drawn("text", { x: 0, y: 140 }, "0"),
    drawn("text", { x: width, y: 140, "text-anchor": "end" }, `${n_tokens} tokens`),
  );
  let at = recalledAt;
  for (const block of recalled) {
    const n = scale(block.range[1] - block.range[0]);
    const left = place(block.range[0]);
    svg.append(
      drawn("path", { d: `M ${at + n / 2} 54 C ${at + n / 2} 80, ${left} 80, ${left + 1} 105`, class: "link" }),
      drawn("rect", {
        x: left, y: 104, width: Math.max(4, place(block.range[1]) - left), height: 16, class: "lit",
        onclick: () => look(block),
      }),
    );
    at += n;
  }
  const memory = state.memory;
  const bytes = (n) => (n < 1e6 ? `${(n / 1e3).toFixed(0)} kB` : `${(n / 1e6).toFixed(1)} MB`);
  $("cache-text").textContent =
    `${sections.sinks} sinks, ${sections.recalled} recalled, ${sections.window} of the window seen` +
    (sections.hidden ? `, ${sections.hidden} hidden` : "") +
    (memory ? `; ${memory.blocks} blocks of ${memory.tokens} tokens remembered (${bytes(memory.bytes)})` : "");
}

function blockItem(block) {
  const back = state ? state.n_tokens - block.range[1] : 0;
  const distance = block.distance === undefined ? "" : `, distance ${block.distance.toFixed(3)}`;
  return element(
    "li",
    {},
    element(
      "button",
      { type: "button", onclick: () => look(block) },
      element("span", { class: "text" }, block.text.trim()),
      element("span", { class: "where" }, `tokens ${block.range[0]} to ${block.range[1]}, ${back} back${distance}`),
    ),
  );
}

function showRecalled(blocks) {
  const none = element("li", { class: "quiet" }, "nothing");
  $("recalled").replaceChildren(...(blocks.length ? blocks.map(blockItem) : [none]));
}

function showPins() {
  const pins = state?.pins ?? [];
  const none = element("li", { class: "quiet" }, "nothing: open a block to pin it");
  const item = (text, number) =>
    element(
      "li",
      {},
      element(
        "button",
        { type: "button", "aria-label": `Unpin: ${text}`, onclick: () => guarded(unpin)(number) },
        element("span", { class: "text" }, text),
        element("span", { class: "where" }, "click to unpin"),
      ),
    );
  $("pins").replaceChildren(...(pins.length ? pins.map(item) : [none]));
}

async function unpin(number) {
  await ask(path(`/pins/${number}`), { method: "DELETE" });
  await showState();
}

async function find(query) {
  const { data } = await (await ask(path(`/memory?limit=10&query=${encodeURIComponent(query)}`))).json();
  const none = element("li", { class: "quiet" }, "nothing");
  $("found").replaceChildren(...(data.length ? data.map(blockItem) : [none]));
}

function look(block) {
  const of = session;
  $("block-title").textContent = `tokens ${block.range[0]} to ${block.range[1]}`;
  $("block-text").textContent = block.text;
  $("block-pin").onclick = guarded(async () => {
    await ask(path("/pins", of), { method: "POST", json: { text: block.text } });
    $("block").close();
    await showState();
  });
  $("block-forget").onclick = guarded(async () => {
    await ask(path(`/memory?from=${block.range[0]}&to=${block.range[1]}`, of), { method: "DELETE" });
    $("block").close();
    $("found").replaceChildren();
    await showState();
  });
  $("block").showModal();
}

// What happens when something is done.

const guarded = (act) => async (...given) => {
  try {
    await act(...given);
  } catch (error) {
    complain(error);
  }
};

$("ask").onsubmit = guarded(async (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || answering) return;
  $("text").value = "";
  await send(text);
});
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
};
document.onkeydown = (event) => {
  if (event.key === "Escape" && answering) answering.abort();
};
$("stop").onclick = () => answering?.abort();
$("file").onchange = guarded(async () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (file) await read(file);
});
$("search").onsubmit = guarded(async (event) => {
  event.preventDefault();
  if ($("query").value.trim()) await find($("query").value);
});
$("new-session").onsubmit = guarded(async (event) => {
  event.preventDefault();
  const name = $("session-name").value.trim();
  $("session-name").value = "";
  if (name) await open(name);
});
$("theme").onclick = () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
};

const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
guarded(async () => {
  const { data } = await (await ask("/v1/models")).json();
  $("model").textContent = data[0].id;
  await open(session);
})();
