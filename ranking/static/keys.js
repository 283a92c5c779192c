// The keyboard: places and moves, shortcuts of the page, and Enter to send.
import { allBad, flag, form, local, pair, store } from "./page.js";
import { cards, changes, choose, isPlaced, move, tie, undo, unplaced } from "./order.js";
import { focusNext } from "./drag.js";

const keys = document.getElementById("keys");
keys.checked = local.get("keys") !== "off";
keys.addEventListener("change", () => local.set("keys", keys.checked ? "on" : "off"));

const show = (card) => card.scrollIntoView({ block: "nearest" });

function step(by) {
  const all = cards();
  const at = all.findIndex((card) => card.contains(document.activeElement));
  const to = all[at < 0 ? 0 : Math.min(Math.max(at + by, 0), all.length - 1)];
  to.querySelector(".grip").focus({ preventScroll: true });
  show(to);
}

function toggle(box) {
  box.checked = !box.checked;
  box.dispatchEvent(new Event("change", { bubbles: true }));
}

export function undoOrGoBack() {
  if (!undo()) (document.querySelector("#saved a") || document.getElementById("previous"))?.click();
}

const common = {
  b: () => toggle(allBad),
  s: () => document.getElementById("skip").click(),
  p: () => document.getElementById("previous")?.click(),
  u: undoOrGoBack,
  f: () => {
    if (!flag.checked) toggle(flag);
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

function digit(card, number) {
  const isNew = !isPlaced(card);
  move(card, number - 1);
  show(isNew ? focusNext(card) : card);
}

// Two Enters within a second count as one, also where the first one has opened this page: nobody reads that fast.
const session = store("sessionStorage");
const AGAIN = 1000;

function enter(event) {
  event.preventDefault();
  const last = Number(session.get("enter"));
  const now = Date.now();
  session.set("enter", String(now));
  if (event.repeat || (now - last < AGAIN && changes.at <= last)) return;
  form.requestSubmit(form.querySelector(".primary"));
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  const on = event.target;
  const key = event.key.toLowerCase();
  if (on.matches("textarea, input[type=text], input[type=number]")) {
    if (key === "enter" && !on.matches("textarea")) event.preventDefault(); // it would send the form
    return;
  }
  if ((event.ctrlKey || event.metaKey) && key === "z" && !event.shiftKey && !event.altKey) {
    event.preventDefault();
    undo();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === "enter") {
    if (!on.matches("a, summary, button:not(.grip)")) enter(event);
    return;
  }
  const radio = on.matches("input[type=radio]") && on.name !== "choice";
  const arrow = key.startsWith("arrow");
  if ((!arrow && !keys.checked) || (arrow && on.matches("input[type=radio]"))) return;
  const card = on.closest?.(".answer");
  let act = common[key] || (pair ? !radio && ofPair[key] : ofList[key]);
  if (!act && !pair && !radio && /^[1-9]$/.test(key) && Number(key) <= cards().length) {
    const target = card || unplaced()[0];
    if (target) act = () => digit(target, Number(key));
  }
  if (!act && !pair && card && ofCard[key] && (!arrow || on.matches(".grip")))
    act = () => { ofCard[key](card, cards().indexOf(card)); show(card); };
  if (!act) return;
  event.preventDefault();
  act();
});
