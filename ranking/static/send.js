// Sending: repeated until the server confirms. The id makes a submission count once.
import { allBad, flag, form, pair, say, t, time } from "./page.js";
import { changes, isComplete, letter, onChange, unplaced } from "./order.js";
import { clear } from "./draft.js";

const address = form.getAttribute("action"); // form.action is the button of that name
const primary = form.querySelector(".primary");
const label = primary.querySelector("span");
const usual = label.textContent;
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
    say(t("Not saved yet: the server does not respond. Trying again; keep this page open."));
    await wait(1000 * pause);
  }
}

const isReady = () => allBad.checked || isComplete();

function missing() {
  if (pair) return t("Choose first which answer is better.");
  const left = unplaced().map(letter);
  if (left.length === 1) return t("Answer {letter} has no place yet.", { letter: left[0] });
  const values = { letters: left.slice(0, -1).join(", "), last: left.at(-1) };
  return t("Answers {letters} and {last} have no place yet.", values);
}

// A flag may be sent without an order: as a skipped item.
function update() {
  const skips = flag.checked && !isReady();
  label.textContent = skips ? t("Flag and skip") : usual;
  primary.setAttribute("aria-disabled", String(!isReady() && !skips));
}

let sending = false;
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (sending) return;
  let action = event.submitter?.value || "rank";
  if (action === "rank" && !isReady()) {
    if (!flag.checked) {
      say(missing());
      return;
    }
    action = "skip";
  }
  sending = true;
  form.elements.submission.value = newId();
  form.elements.seconds.value = time.seconds;
  form.elements.moves.value = changes.moves;
  const fields = new URLSearchParams(new FormData(form));
  fields.set("action", action);
  const timer = setTimeout(() => say(t("Saving …")), 300);
  const answer = await send(new Blob([fields.toString()], { type: "application/x-www-form-urlencoded" }));
  clearTimeout(timer);
  form.classList.remove("waiting");
  if (answer.next) {
    clear();
    window.location.assign(answer.next);
    return;
  }
  sending = false;
  say(answer.error || t("Something went wrong. Reload the page."));
});

form.noValidate = true;
flag.addEventListener("change", update);
onChange(update);
