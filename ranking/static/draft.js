// Drafts: what is entered but not sent outlives a reload, in this browser. The key names campaign, annotator, item and
// revision, so a draft never returns to another version of the item.
import { form, local, time } from "./page.js";
import { changes, onChange, refresh, restore, settle, snapshot } from "./order.js";

const key = form.dataset.draft;
const DAYS = 30;
const SENT_ALWAYS = new Set(["submission", "seconds", "moves", "action"]);
let cleared = false;
let timer = 0;

function entries() {
  return [...new FormData(form)].filter(([name]) => !SENT_ALWAYS.has(name) && !name.startsWith("rank-"));
}

const content = () => JSON.stringify([snapshot(), entries()]);
let initial = "";

function save() {
  clearTimeout(timer);
  if (cleared) return;
  if (content() === initial) local.remove(key);
  else {
    local.set(key, JSON.stringify({
      at: Date.now(), seconds: time.seconds, moves: changes.moves, state: snapshot(), entries: entries(),
    }));
  }
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(save, 150);
}

export function clear() {
  cleared = true;
  clearTimeout(timer);
  local.remove(key);
}

function fill(saved) {
  const has = new Set(saved.entries.map(([name, value]) => `${name}\n${value}`));
  for (const field of form.elements) {
    if (field.type === "checkbox" || field.type === "radio") field.checked = has.has(`${field.name}\n${field.value}`);
    else if (field.type === "text" || field.type === "textarea")
      field.value = saved.entries.find(([name]) => name === field.name)?.[1] || "";
  }
  if (form.elements.note.value) form.querySelector(".remarks").open = true;
  time.seconds = saved.seconds;
  changes.moves = saved.moves;
  restore(saved.state);
  settle();
}

function forgetOld() {
  for (const name of local.keys().filter((name) => name.startsWith("draft/"))) {
    try {
      if (JSON.parse(local.get(name)).at > Date.now() - DAYS * 86_400_000) continue;
    } catch { /* damaged */ }
    local.remove(name);
  }
}

export function start() {
  initial = content();
  forgetOld();
  const saved = local.get(key);
  if (saved) {
    fill(JSON.parse(saved));
    document.getElementById("restored").hidden = false;
  }
  document.getElementById("restart").addEventListener("click", () => {
    clear();
    window.location.reload();
  });
  onChange(soon);
  form.addEventListener("input", soon);
  form.addEventListener("change", soon);
  window.addEventListener("pagehide", save);
  document.addEventListener("visibilitychange", () => { if (document.hidden) save(); });
  refresh();
}
