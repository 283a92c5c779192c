// Makes the ranking page fast: dragging, keys, and sending until it is stored. The form works without it, too.
"use strict";

const form = document.getElementById("rank");
const list = document.getElementById("answers");
const status = document.getElementById("status");
const allBad = document.getElementById("all_bad");
const address = form.getAttribute("action"); // form.action is the button of that name
const pair = form.querySelector(".choice") !== null;
const stored = list.dataset.stored === "yes";
const cards = () => [...list.children];
const letter = (card) => card.dataset.letter;
const say = (text) => { status.textContent = text; };
let moves = 0;
let confirmed = stored;

/* Order and ties */

// A card may be tied with the one above it, so ranks follow from the order: dense, 1 is best.
function ranks() {
  let rank = 0;
  return cards().map((card, i) => (i && card.dataset.tied ? rank : ++rank));
}

function refresh() {
  const all = cards();
  const places = ranks();
  all.forEach((card, i) => {
    const shared = places.filter((rank) => rank === places[i]).length > 1;
    const place = `${places[i]}${shared ? "=" : ""}`;
    card.querySelector(".place").textContent = place;
    card.querySelector(".grip .spoken").textContent =
      `Answer ${letter(card)}: place ${places[i]}${shared ? ", tied," : ""} of ${all.length}`;
    card.querySelector(".up").disabled = i === 0;
    card.querySelector(".down").disabled = i === all.length - 1;
    const tie = card.querySelector(".tie");
    tie.disabled = i === 0;
    tie.setAttribute("aria-pressed", String(Boolean(i && card.dataset.tied)));
    card.querySelector("input[type=number]").value = places[i];
    card.classList.toggle("joined", Boolean(i && card.dataset.tied));
    card.classList.toggle("first", places[i] === 1);
  });
  list.classList.toggle("void", allBad.checked);
}

// The other cards keep their ties; a card that is put between two tied ones joins them.
function place(card, to) {
  const from = cards().indexOf(card);
  if (to === from || to < 0 || to >= list.children.length) return false;
  const next = card.nextElementSibling;
  if (next && !card.dataset.tied) delete next.dataset.tied;
  const others = cards().filter((other) => other !== card);
  const below = others[to];
  const inside = below && below.dataset.tied && to > 0;
  const focused = document.activeElement;
  list.insertBefore(card, below || null);
  if (card.contains(focused)) focused.focus({ preventScroll: true });
  if (inside) card.dataset.tied = "yes";
  else delete card.dataset.tied;
  delete cards()[0].dataset.tied;
  changed();
  return true;
}

function changed() {
  moves += 1;
  confirmed = true;
  if (allBad.checked) allBad.checked = false;
  refresh();
}

function describe(card) {
  const places = ranks();
  const i = cards().indexOf(card);
  const tied = cards().filter((other, j) => j !== i && places[j] === places[i]).map(letter);
  say(`Answer ${letter(card)}: place ${places[i]} of ${cards().length}${tied.length ? `, tied with ${tied.join(", ")}` : ""}.`);
}

function move(card, to) {
  if (place(card, to)) {
    describe(card);
    card.scrollIntoView({ block: "nearest" });
  }
}

function tie(card) {
  if (!card.previousElementSibling) return;
  if (card.dataset.tied) delete card.dataset.tied;
  else card.dataset.tied = "yes";
  changed();
  describe(card);
}

/* Drag: by mouse, pen or finger */

let drag = null;

function follow() {
  const { card, y, grab } = drag;
  card.style.translate = "";
  const all = cards();
  const i = all.indexOf(card);
  const middle = (other) => {
    const box = other.getBoundingClientRect();
    return box.top + box.height / 2;
  };
  if (i < all.length - 1 && y > middle(all[i + 1])) place(card, i + 1);
  else if (i > 0 && y < middle(all[i - 1])) place(card, i - 1);
  card.style.translate = `0 ${y - grab - card.getBoundingClientRect().top}px`;
}

function roll() {
  if (!drag) return;
  const edge = 70;
  const bottom = window.innerHeight - form.querySelector(".send").offsetHeight;
  const speed = drag.y < edge ? drag.y - edge : Math.max(0, drag.y - bottom + edge);
  if (speed) {
    window.scrollBy(0, speed / 5);
    follow();
  }
  requestAnimationFrame(roll);
}

function release() {
  if (!drag) return;
  const { card } = drag;
  drag = null;
  card.classList.remove("dragged");
  card.style.translate = "";
  describe(card);
}

function draggable(card) {
  const grip = card.querySelector(".grip");
  grip.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    grip.setPointerCapture(event.pointerId);
    drag = { card, y: event.clientY, grab: event.clientY - card.getBoundingClientRect().top };
    card.classList.add("dragged");
    requestAnimationFrame(roll);
  });
  // Moves are handled on the document: a card loses the pointer capture when it moves in the list.
  card.querySelector(".up").addEventListener("click", () => move(card, cards().indexOf(card) - 1));
  card.querySelector(".down").addEventListener("click", () => move(card, cards().indexOf(card) + 1));
  card.querySelector(".tie").addEventListener("click", () => tie(card));
}

/* Keys */

const keys = document.getElementById("keys");
try { keys.checked = localStorage.getItem("keys") !== "off"; } catch { /* no storage: on */ }
keys.addEventListener("change", () => {
  try { localStorage.setItem("keys", keys.checked ? "on" : "off"); } catch { /* for this page only */ }
});

function step(by) {
  const all = cards();
  const at = all.findIndex((card) => card.contains(document.activeElement));
  const to = all[at < 0 ? 0 : Math.min(Math.max(at + by, 0), all.length - 1)];
  to.querySelector(".grip").focus();
  to.scrollIntoView({ block: "nearest" });
}

function choose(value) {
  form.querySelector(`input[name=choice][value=${value}]`).checked = true;
  moves += 1;
  confirmed = true;
  allBad.checked = false;
  say({ first: "A is better.", tie: "About equal.", second: "B is better." }[value]);
}

function toggleBad() {
  allBad.checked = !allBad.checked;
  allBad.dispatchEvent(new Event("change"));
}

const common = {
  b: toggleBad,
  s: () => document.getElementById("skip").click(),
  p: () => document.getElementById("previous")?.click(),
  f: () => {
    const box = document.getElementById("flag");
    box.closest("details").open = true;
    box.checked = true;
    form.elements.flag_reason.focus();
  },
  "?": () => {
    const help = document.getElementById("help");
    help.open = !help.open;
    help.querySelector("summary").focus();
  },
};
const ofPair = {
  1: () => choose("first"), arrowleft: () => choose("first"),
  2: () => choose("second"), arrowright: () => choose("second"),
  0: () => choose("tie"), "=": () => choose("tie"), t: () => choose("tie"),
};
const ofList = { j: () => step(1), k: () => step(-1) };
const ofCard = {
  arrowup: (card, i) => move(card, i - 1),
  arrowdown: (card, i) => move(card, i + 1),
  t: tie,
  "=": tie,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const on = event.target;
  if (on.matches("textarea, input[type=text], input[type=number]")) return;
  const key = event.key.toLowerCase();
  const radio = on.matches("input[type=radio]") && on.name !== "choice";
  if (key === "enter") {
    if (on.matches("a, summary, button:not(.grip)")) return;
    event.preventDefault();
    form.requestSubmit(form.querySelector(".primary"));
    return;
  }
  const arrow = key.startsWith("arrow");
  if ((!arrow && !keys.checked) || (arrow && on.matches("input[type=radio]"))) return;
  const card = on.closest?.(".answer");
  let act = common[key] || (pair ? !radio && ofPair[key] : ofList[key]);
  if (!act && !pair && card && (!arrow || on.matches(".grip"))) {
    const i = cards().indexOf(card);
    if (ofCard[key]) act = () => ofCard[key](card, i);
    else if (/^[1-9]$/.test(key) && Number(key) <= cards().length) act = () => move(card, Number(key) - 1);
  }
  if (!act) return;
  event.preventDefault();
  act();
});

/* Time: counted only while the annotator is active */

const IDLE = 60;
let seconds = 0;
let active = Date.now();
for (const kind of ["pointerdown", "pointermove", "keydown", "scroll", "wheel", "touchmove"])
  document.addEventListener(kind, () => { active = Date.now(); }, { passive: true });
setInterval(() => {
  if (!document.hidden && Date.now() - active < IDLE * 1000) seconds += 0.5;
}, 500);

/* Sending: repeated until the server confirms; the id makes it count once */

const wait = (ms) => new Promise((done) => { setTimeout(done, ms); });

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function send(body) {
  for (let pause = 1; ; pause = Math.min(2 * pause, 15)) {
    try {
      const response = await fetch(address, { method: "POST", body, headers: { Accept: "application/json" } });
      if (response.status < 500) return { status: response.status, ...(await response.json()) };
    } catch { /* no answer */ }
    form.classList.add("waiting");
    say("Not saved yet: the server does not respond. Trying again; keep this page open.");
    await wait(1000 * pause);
  }
}

let sending = false;
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (sending) return;
  const action = event.submitter?.value || "rank";
  if (action === "rank" && !allBad.checked && pair && !form.querySelector("input[name=choice]:checked")) {
    say("Choose first which answer is better.");
    return;
  }
  if (action === "rank" && !confirmed && !allBad.checked) {
    confirmed = true;
    say("You have not changed the order. If it is right, send again.");
    return;
  }
  sending = true;
  form.elements.submission.value = newId();
  form.elements.seconds.value = seconds;
  form.elements.moves.value = moves;
  const fields = new URLSearchParams(new FormData(form));
  fields.set("action", action);
  const body = fields.toString();
  const timer = setTimeout(() => say("Saving …"), 300);
  const answer = await send(new Blob([body], { type: "application/x-www-form-urlencoded" }));
  clearTimeout(timer);
  form.classList.remove("waiting");
  if (answer.next) {
    window.location.assign(answer.next);
    return;
  }
  sending = false;
  say(answer.error || "Something went wrong. Reload the page.");
});

/* Start */

form.noValidate = true;
document.querySelector(".problem")?.focus();
allBad.addEventListener("change", () => {
  if (allBad.checked) form.querySelectorAll("input[name=choice]").forEach((radio) => { radio.checked = false; });
  if (!pair) refresh();
  say(allBad.checked ? "All bad: the order does not count." : "The order counts.");
});
if (pair) {
  form.querySelectorAll("input[name=choice]").forEach((radio) =>
    radio.addEventListener("change", () => choose(radio.value)));
} else {
  cards().forEach(draggable);
  document.addEventListener("pointermove", (event) => {
    if (!drag) return;
    drag.y = event.clientY;
    follow();
  });
  document.addEventListener("pointerup", release);
  document.addEventListener("pointercancel", release);
  refresh();
}
// Reload a page from the browser's cache: its ranking may be stored by now.
window.addEventListener("pageshow", (event) => { if (event.persisted) window.location.reload(); });
