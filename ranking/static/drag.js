// Dragging an answer by its number: by mouse, pen or finger.
import { form, list, sendBar } from "./page.js";
import { arrangement, cards, changed, drop, isPlaced, letter, move, placeNext, unplaced } from "./order.js";

const START = 6; // pixels that the pointer moves before a press becomes a drag
const EDGE = 70;
let drag = null;
let swallow = null; // the card that was dragged: the click that ends the drag is none

const top = () => {
  const peek = document.getElementById("peek");
  return peek.hidden ? 0 : peek.getBoundingClientRect().bottom;
};
const bottom = () => sendBar.getBoundingClientRect().top;

function begin() {
  const { card } = drag;
  drag.on = true;
  drag.before = arrangement();
  card.classList.add("dragged");
  drag.grab = Math.min(drag.grab, card.offsetHeight - 10); // a long answer is shortened while it is dragged
  requestAnimationFrame(roll);
}

function follow() {
  const { card, y, grab } = drag;
  const box = list.getBoundingClientRect();
  const height = card.offsetHeight;
  const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));
  // The card stays within the list and between the bars at the top and the bottom of the screen.
  const at = clamp(y - grab, Math.max(top(), box.top), Math.min(bottom(), box.bottom) - height);
  const pointer = clamp(y, top(), bottom()) - box.top;
  const middle = (other) => other.offsetTop + other.offsetHeight / 2; // without running animations
  const all = cards();
  const from = all.indexOf(card);
  let to = from;
  while (to >= from && to < all.length - 1 && pointer > middle(all[to + 1])) to += 1;
  while (to <= from && to > 0 && pointer < middle(all[to - 1])) to -= 1;
  if (to !== from || !isPlaced(card)) {
    drag.moved = true;
    drop(card, to, drag.before);
  }
  card.style.translate = `0 ${at - list.getBoundingClientRect().top - card.offsetTop}px`;
}

function roll() {
  if (!drag?.on) return;
  const low = bottom();
  const speed = drag.y < top() + EDGE ? drag.y - top() - EDGE : Math.max(0, drag.y - low + EDGE);
  if (speed) {
    window.scrollBy(0, speed / 5);
    follow();
  }
  requestAnimationFrame(roll);
}

function release() {
  if (!drag) return;
  const { card, on, moved } = drag;
  drag = null;
  if (!on) return;
  swallow = card;
  setTimeout(() => { swallow = null; }, 50);
  card.classList.remove("dragged");
  card.style.translate = "";
  if (moved) changed();
}

// The next answer without a place, for keys.
export function focusNext(card) {
  const left = unplaced();
  const next = left.find((other) => letter(other) > letter(card)) || left[0] || card;
  next.querySelector(".grip").focus({ preventScroll: true });
  return next;
}

export function draggable(card) {
  const grip = card.querySelector(".grip");
  grip.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || drag) return;
    grip.setPointerCapture(event.pointerId);
    drag = { card, y: event.clientY, start: event.clientY, grab: event.clientY - card.getBoundingClientRect().top };
  });
  grip.addEventListener("click", () => {
    if (swallow === card) return;
    const isNew = !isPlaced(card);
    placeNext(card);
    if (isNew) focusNext(card);
  });
  card.querySelector(".up").addEventListener("click", () => move(card, cards().indexOf(card) - 1));
  card.querySelector(".down").addEventListener("click", () => move(card, cards().indexOf(card) + 1));
}

// Moves are handled on the document: a card loses the pointer capture when it moves in the list.
document.addEventListener("pointermove", (event) => {
  if (!drag) return;
  drag.y = event.clientY;
  if (!drag.on && Math.abs(drag.y - drag.start) > START) begin();
  if (drag.on) follow();
});
document.addEventListener("pointerup", release);
document.addEventListener("pointercancel", release);
form.addEventListener("submit", release);
