// What all modules of the ranking page share: the form, the line of news, and the browser's storage.
export const form = document.getElementById("rank");
export const base = form.dataset.base;
export const list = document.getElementById("answers");
export const pair = form.querySelector(".choice") !== null;
export const allBad = document.getElementById("all_bad");
export const flag = document.getElementById("flag");
export const sendBar = form.querySelector(".send");
export const touch = window.matchMedia("(hover: none)").matches;

// The English text, or its translation, with the values in braces filled in.
const messages = JSON.parse(form.dataset.messages);
export const t = (text, values = {}) => (messages[text] || text).replace(/\{(\w+)\}/g, (_, name) => values[name]);

const status = document.getElementById("status");
export const say = (text) => { status.textContent = text; };

// Storage may be turned off or full: everything works without it.
export function store(area) {
  const attempt = (act) => {
    try { return act(window[area]); } catch { return null; }
  };
  return {
    get: (key) => attempt((all) => all.getItem(key)),
    set: (key, value) => attempt((all) => { all.setItem(key, value); return true; }) === true,
    remove: (key) => attempt((all) => all.removeItem(key)),
    keys: () => attempt((all) => Object.keys(all)) || [],
  };
}
export const local = store("localStorage");

/* Time: counted only while the annotator is active. The server is told, so that it stays up. */

const IDLE = 60;
export const time = { seconds: 0 };
let active = Date.now();
for (const kind of ["pointerdown", "pointermove", "keydown", "scroll", "wheel", "touchmove"])
  document.addEventListener(kind, () => { active = Date.now(); }, { passive: true });
const isActive = () => !document.hidden && Date.now() - active < IDLE * 1000;
setInterval(() => { if (isActive()) time.seconds += 0.5; }, 500);
setInterval(() => { if (isActive()) fetch(`${base}alive`).catch(() => {}); }, IDLE * 1000);
