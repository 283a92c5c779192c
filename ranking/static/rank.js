// Makes the ranking page fast: dragging, keys, drafts, and sending until it is stored. The form works without it, too.
import { allBad, form, list, local, pair, say, t, touch } from "./page.js";
import { canUndo, cards, changed, choose, onChange, tie, unplaced } from "./order.js";
import { draggable } from "./drag.js";
import { undoOrGoBack } from "./keys.js";
import "./send.js";
import * as draft from "./draft.js";

document.querySelector(".problem")?.focus();

allBad.addEventListener("change", () => {
  if (allBad.checked) form.querySelectorAll("input[name=choice]").forEach((radio) => { radio.checked = false; });
  changed();
  say(allBad.checked ? t("All bad: the order does not count.") : t("The order counts."));
});

if (pair) {
  form.querySelectorAll("input[name=choice]").forEach((radio) =>
    radio.addEventListener("change", () => choose(radio.value)));
} else {
  cards().forEach((card) => {
    draggable(card);
    card.querySelector(".tie").addEventListener("click", () => tie(card));
  });
}

const undo = document.getElementById("undo");
undo.addEventListener("click", undoOrGoBack);
onChange(() => { undo.disabled = !canUndo() && !document.querySelector("#saved a, #previous"); });

draft.start();
if (!pair && !touch && !document.querySelector(".problem"))
  (unplaced()[0] || list).querySelector(".grip").focus({ preventScroll: true });

/* Formatted text, or as it was written */

const written = document.getElementById("written");
const box = written.querySelector("input");
written.hidden = !document.querySelector(".formatted");
box.checked = local.get("written") === "yes";
const format = () => document.body.classList.toggle("as-written", box.checked);
box.addEventListener("change", () => {
  local.set("written", box.checked ? "yes" : "no");
  format();
});
format();

/* The prompt stays within reach when it has been scrolled away */

const peek = document.getElementById("peek");
const prompt = document.getElementById("prompt");
const place = prompt.parentElement;

function pull(open) {
  place.style.minHeight = open ? `${place.offsetHeight}px` : "";
  prompt.classList.toggle("pulled", open);
  peek.setAttribute("aria-expanded", String(open));
}

new IntersectionObserver(([seen]) => {
  const isAbove = !seen.isIntersecting && seen.boundingClientRect.top < 0;
  if (peek.hidden === !isAbove) return;
  peek.hidden = !isAbove;
  if (!isAbove) pull(false);
}, { rootMargin: "-24px 0px 0px 0px" }).observe(place);
peek.addEventListener("click", () => pull(!prompt.classList.contains("pulled")));
document.addEventListener("keydown", (event) => { if (event.key === "Escape") pull(false); });

// What was sent is confirmed once: a reload of the page does not say it again.
if (document.getElementById("saved")) {
  say(document.querySelector("#saved span").textContent.replace("✓", "").trim());
  window.history.replaceState(null, "", window.location.pathname);
}
// Reload a page from the browser's cache: its ranking may be stored by now.
window.addEventListener("pageshow", (event) => { if (event.persisted) window.location.reload(); });
