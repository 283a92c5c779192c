// The order of the answers. Each answer has a place only once the annotator has given it one.
//
// The list has as many places as answers. An answer with a place stays at it, unless another one is put there; the
// answers without a place fill the gaps in the order in which they came.
import { allBad, form, list, pair, say, t } from "./page.js";

export const cards = () => [...list.children];
export const letter = (card) => card.dataset.letter;
export const isPlaced = (card) => card.dataset.placed === "yes";
export const unplaced = () => cards().filter((card) => !isPlaced(card));
const isTied = (card) => card?.dataset.tied === "yes";
const set = (card, name, on) => { if (on) card.dataset[name] = "yes"; else delete card.dataset[name]; };
const chosen = () => form.querySelector("input[name=choice]:checked");

export const changes = { moves: 0, at: 0 };
const listeners = [];
export const onChange = (act) => listeners.push(act);

// Places as in sports: 1, 2, 2, 4. Null for an answer without one.
function places() {
  let place = 0;
  return cards().map((card, i) => {
    if (!isPlaced(card)) return null;
    if (!isTied(card)) place = i + 1;
    return place;
  });
}

export function isComplete() {
  return pair ? chosen() !== null : unplaced().length === 0;
}

export function refresh() {
  if (!pair) {
    const all = cards();
    const numbers = places();
    all.forEach((card, i) => {
      const shared = numbers[i] !== null && numbers.filter((place) => place === numbers[i]).length > 1;
      const values = { letter: letter(card), place: numbers[i], count: all.length };
      card.querySelector(".place").textContent = numbers[i] === null ? "" : `${numbers[i]}${shared ? "=" : ""}`;
      card.querySelector(".grip .spoken").textContent =
        numbers[i] === null ? t("Answer {letter}: no place yet", values)
          : shared ? t("Answer {letter}: place {place}, tied, of {count}", values)
            : t("Answer {letter}: place {place} of {count}", values);
      card.querySelector(".up").disabled = i === 0;
      card.querySelector(".down").disabled = i === all.length - 1;
      const tie = card.querySelector(".tie");
      tie.disabled = i === 0 || !isPlaced(all[i - 1]);
      tie.setAttribute("aria-pressed", String(isTied(card)));
      card.querySelector("input[type=number]").value = numbers[i] ?? "";
      card.classList.toggle("unplaced", numbers[i] === null);
      card.classList.toggle("joined", isTied(card));
      card.classList.toggle("first", numbers[i] === 1);
    });
    list.classList.toggle("void", allBad.checked);
    offerRest();
  }
  listeners.forEach((act) => act());
}

/* Undo */

const history = [];

export function snapshot() {
  return {
    cards: pair ? [] : cards().map((card) => [card.dataset.position, isPlaced(card), isTied(card)]),
    choice: chosen()?.value || "",
    bad: allBad.checked,
  };
}

export function restore(state) {
  const by = Object.fromEntries(cards().map((card) => [card.dataset.position, card]));
  if (state.cards.length && state.cards.length === cards().length && state.cards.every(([position]) => by[position])) {
    for (const [position, isIn, tied] of state.cards) {
      set(by[position], "placed", isIn);
      set(by[position], "tied", tied);
    }
    show(state.cards.map(([position]) => by[position]));
  }
  for (const radio of form.querySelectorAll("input[name=choice]")) radio.checked = radio.value === state.choice;
  allBad.checked = state.bad;
  refresh();
}

let before = snapshot();

// To call after every change: what was before can be brought back.
export function changed() {
  const now = snapshot();
  if (JSON.stringify(now) !== JSON.stringify(before)) history.push(before);
  before = now;
  changes.moves += 1;
  changes.at = Date.now();
  refresh();
}

export const settle = () => { before = snapshot(); };

export function undo() {
  const state = history.pop();
  if (!state) return false;
  restore(state);
  before = snapshot();
  changes.at = Date.now();
  say(t("Undone."));
  return true;
}
export const canUndo = () => history.length > 0;

/* Changes */

const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

// Shows the answers in an order. Those that move slide, except the one that is dragged.
function show(wanted) {
  const tops = new Map(wanted.map((card) => [card, card.offsetTop]));
  const focused = document.activeElement;
  wanted.forEach((card, i) => {
    if (list.children[i] !== card) list.insertBefore(card, list.children[i]);
  });
  if (list.contains(focused) && focused !== document.activeElement) focused.focus({ preventScroll: true });
  if (calm.matches) return;
  for (const card of wanted) {
    const by = tops.get(card) - card.offsetTop;
    if (by && !card.classList.contains("dragged"))
      card.animate([{ translate: `0 ${by}px` }, { translate: "0 0" }], { duration: 160, easing: "ease-out" });
  }
}

export const arrangement = () => cards().map((card) => [card, isPlaced(card), isTied(card)]);

// Puts an answer at a place, from 0. If that place is taken, the answers between there and where it was make room. Ties
// of others stay. `start` is the arrangement to begin with: that before a drag, so that what a card passes stays put.
function put(card, to, start) {
  for (const [other, isIn, tied] of start) {
    set(other, "placed", isIn);
    set(other, "tied", tied);
  }
  const all = start.map(([other]) => other);
  const from = all.indexOf(card);
  to = Math.min(Math.max(to, 0), all.length - 1);
  if (to === from && isPlaced(card)) {
    show(all);
    return false;
  }
  const next = all[from + 1];
  if (isTied(next) && !isTied(card)) set(next, "tied", false);
  set(card, "tied", false);
  const slots = all.map((other) => (other !== card && isPlaced(other) ? other : null));
  const step = from > to ? 1 : -1;
  for (let at = to, moving = card; moving; at += step) [slots[at], moving] = [moving, slots[at]];
  set(card, "placed", true);
  set(card, "tied", to > 0 && slots[to - 1] !== null && isTied(slots[to + 1]));
  slots.forEach((other, i) => { // a tie stays together
    if (!isTied(other)) return;
    let at = i;
    while (at > 0 && slots[at - 1] === null) {
      [slots[at - 1], slots[at]] = [other, null];
      at -= 1;
    }
    if (at === 0) set(other, "tied", false);
  });
  const rest = all.filter((other) => !slots.includes(other));
  show(slots.map((other) => other || rest.shift()));
  return true;
}

function describe(card) {
  const numbers = places();
  const i = cards().indexOf(card);
  const tied = cards().filter((other, j) => j !== i && numbers[j] === numbers[i]).map(letter);
  const left = unplaced().length;
  const values = { letter: letter(card), place: numbers[i], count: numbers.length, others: tied.join(", ") };
  const place = tied.length ? t("Answer {letter}: place {place} of {count}, tied with {others}.", values)
    : t("Answer {letter}: place {place} of {count}.", values);
  say(left ? `${place} ${t("{count} without a place.", { count: left })}` : place);
}

export function move(card, to) {
  if (put(card, to, arrangement())) {
    allBad.checked = false;
    changed();
  }
  describe(card);
}

// As `move`, while a drag goes on: it counts as a change when it ends.
export function drop(card, to, start) {
  put(card, to, start);
  allBad.checked = false;
  refresh();
  describe(card);
}

// Puts an answer without a place at the first free one.
export function placeNext(card) {
  if (isPlaced(card)) describe(card);
  else move(card, cards().findIndex((other) => !isPlaced(other)));
}

export function tie(card) {
  const above = card.previousElementSibling;
  if (!above || !isPlaced(above)) {
    say(above ? t("Give answer {letter} a place first.", { letter: letter(above) }) : t("There is no answer above."));
    return;
  }
  set(card, "tied", !isTied(card) || !isPlaced(card));
  set(card, "placed", true);
  allBad.checked = false;
  changed();
  describe(card);
}

export function choose(value) {
  form.querySelector(`input[name=choice][value=${value}]`).checked = true;
  allBad.checked = false;
  changed();
  say({ first: t("A is better."), tie: t("About equal."), second: t("B is better.") }[value]);
}

/* The rest: those that have no place yet, once some have one */

const rest = document.getElementById("rest");

function offerRest() {
  const all = cards();
  const left = unplaced();
  rest.hidden = left.length === 0 || left.length === all.length || allBad.checked;
  rest.querySelector("span").textContent =
    left.length === 1 ? t("Answer {letter} has no place yet.", { letter: letter(left[0]) })
      : t("{count} answers have no place yet.", { count: left.length });
  const together = all.indexOf(left.at(-1)) - all.indexOf(left[0]) === left.length - 1;
  document.getElementById("rest-tied").hidden = left.length < 2 || !together;
  document.getElementById("rest-ordered").textContent =
    left.length === 1 ? t("It stays where it is") : t("The rest is in this order");
}

function placeRest(tied) {
  unplaced().forEach((card, i) => {
    set(card, "placed", true);
    set(card, "tied", tied && i > 0);
  });
  changed();
  say(t("All answers have a place."));
}

if (rest) {
  document.getElementById("rest-ordered").addEventListener("click", () => placeRest(false));
  document.getElementById("rest-tied").addEventListener("click", () => placeRest(true));
}
