// The chat page. A message goes to all selected models; their answers stand side by side, in random order. After a
// vote the conversation goes on, for all models, with the answer that was ranked best.
const $ = (id) => document.getElementById(id);
const make = (tag, text = "", name = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = name;
  return element;
};

let messages = [];
let pending = null; // the answers that wait for a vote
let running = null; // aborts the requests
let settings = { models: [], votes: null };
let key = "";
try { key = sessionStorage.getItem("key") || ""; } catch { /* storage may be turned off */ }

const say = (text) => { $("status").textContent = text; };
const headers = () => ({ "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) });

async function call(path, body, signal) {
  const method = body === undefined ? "GET" : "POST";
  const response = await fetch(path, { method, headers: headers(), signal, body: body && JSON.stringify(body) });
  if (response.ok) return response;
  if (response.status === 401) $("key-form").hidden = false;
  const content = await response.json().catch(() => ({}));
  throw new Error(content.error?.message || `the server answered ${response.status}`);
}

/* Settings */

async function start() {
  settings = await (await call("/page/settings")).json();
  $("key-form").hidden = true;
  $("title").textContent = `Chat: ${settings.title}`;
  document.title = `${settings.title}: chat`;
  const boxes = $("models");
  boxes.replaceChildren(boxes.querySelector("legend"));
  for (const name of settings.models) {
    const label = make("label", "", "check");
    const box = make("input");
    box.type = "checkbox";
    box.value = name;
    box.checked = ["base", "sft", "ppo"].includes(name) || settings.models.length < 3;
    label.append(box, make("span", name));
    boxes.append(label);
  }
  $("message").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  try { sessionStorage.setItem("key", key); } catch { /* it is asked for again */ }
  start().then(() => say("")).catch((error) => say(error.message));
});
$("settings").addEventListener("submit", (event) => event.preventDefault());

/* Answers */

function shuffled(items) {
  const order = items.map((item) => [crypto.getRandomValues(new Uint32Array(1))[0], item]);
  return order.sort((a, b) => a[0] - b[0]).map(([, item]) => item);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function answer(column, body, signal) {
  const response = await call("/v1/chat/completions", { ...body, model: column.model, stream: true }, signal);
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    const [choice] = event.choices;
    column.text += choice.delta.content || "";
    column.words.textContent = column.text;
    if (choice.finish_reason === "length") column.box.append(make("p", "cut at the longest answer", "cut"));
  }
}

async function ask(text) {
  const models = [...document.querySelectorAll("#models input:checked")].map((box) => box.value);
  if (!models.length) { say("Select a model."); return; }
  const temperature = Number($("temperature").value);
  const length = Number($("length").value);
  running = new AbortController();
  busy(true);
  say("");
  try {
    const said = [...messages, { role: "user", content: text }];
    const fit = await (await call("/page/fit", { messages: said, max_tokens: length })).json();
    $("talk").append(make("p", text, "said"));
    if (fit.notice) $("talk").append(make("p", `Note: ${fit.notice}.`, "trimmed"));
    const blind = $("blind").checked && models.length > 1;
    const grid = make("div", "", "columns");
    const columns = (blind ? shuffled(models) : models).map((model, place) => {
      const box = make("article", "", "column");
      const title = make("h3", blind ? `Answer ${letter(place)}` : model);
      const words = make("div", "", "words");
      box.append(title, words);
      grid.append(box);
      return { model, box, title, words, text: "" };
    });
    $("talk").append(grid);
    grid.scrollIntoView({ block: "nearest" });
    $("message").value = "";
    const body = { messages: fit.messages, temperature, max_tokens: length };
    const results = await Promise.allSettled(columns.map((column) => answer(column, body, running.signal)));
    const failed = results.find((result) => result.status === "rejected");
    if (failed) {
      say(failed.reason.name === "AbortError" ? "Stopped. The conversation is as it was before." : failed.reason.message);
      return;
    }
    messages = fit.messages.concat([]);
    pending = { prompt: fit.messages, columns, temperature, blind };
    if (columns.length > 1) offerVote(); else settle(columns[0]);
  } catch (error) {
    say(error.message);
  } finally {
    running = null;
    busy(false);
  }
}

function busy(on) {
  $("stop").hidden = !on;
  $("send").disabled = on || pending !== null;
  $("talk").setAttribute("aria-busy", String(on));
}

const letter = (place) => String.fromCharCode(65 + place);

/* The vote */

function offerVote() {
  const { columns, blind } = pending;
  const form = make("form", "", "vote");
  const names = columns.map((column, place) => (blind ? `Answer ${letter(place)}` : column.model));
  form.append(make("h2", "Rank the answers: 1 is the best, equal numbers are ties"));
  columns.forEach((column, place) => {
    const group = make("fieldset");
    group.append(make("legend", names[place]));
    for (let rank = 1; rank <= columns.length; rank += 1) {
      const label = make("label");
      const radio = make("input");
      Object.assign(radio, { type: "radio", name: `rank-${place}`, value: rank, required: true });
      label.append(radio, make("span", String(rank)));
      group.append(label);
    }
    form.append(group);
  });
  const actions = make("div", "", "actions");
  const send = make("button", settings.votes ? "Vote" : "Continue", "primary");
  const skip = make("button", "Skip");
  skip.type = "button";
  actions.append(send, skip);
  form.append(actions);
  const vote = crypto.getRandomValues(new Uint32Array(4)).join("-");
  skip.addEventListener("click", () => { form.remove(); settle(columns[0]); });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const ranks = columns.map((_, place) => Number(form.elements[`rank-${place}`].value));
    try {
      send.disabled = true;
      if (settings.votes) await store(ranks, vote);
      form.remove();
      settle(columns[ranks.indexOf(Math.min(...ranks))]);
    } catch (error) {
      send.disabled = false;
      say(error.message);
    }
  });
  $("talk").append(form);
  form.scrollIntoView({ block: "nearest" });
  form.querySelector("input").focus();
}

async function store(ranks, vote) {
  const { prompt, columns, temperature, blind } = pending;
  const annotator = $("annotator").value.trim() || "me";
  const completions = columns.map((column) => column.text);
  const models = columns.map((column) => column.model);
  const body = { prompt, completions, models, ranks, annotator, vote, temperature, blind };
  const { file } = await (await call("/page/vote", body)).json();
  say(`Stored in ${file}`);
}

function settle(best) {
  for (const column of pending.columns) column.title.textContent = column.model;
  best.box.classList.toggle("best", pending.columns.length > 1);
  messages = [...pending.prompt, { role: "assistant", content: best.text }];
  pending = null;
  busy(false);
  $("message").focus();
}

/* The form */

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("message").value.trim();
  if (text && !running && !pending) ask(text);
});
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
$("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  pending = null;
  $("talk").replaceChildren();
  busy(false);
  say("New conversation.");
  $("message").focus();
});

start().catch((error) => say(error.message));
