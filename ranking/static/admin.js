// The admin's page: keeps the numbers current, and copies links.
const main = document.getElementById("admin");
const status = document.getElementById("status");
const EVERY = 3000;

// Replaces the parts that changed. Open details stay open, and the focus stays where it was.
function update(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html").getElementById("live");
  const live = document.getElementById("live");
  live.dataset.version = fresh.dataset.version;
  for (const part of fresh.querySelectorAll("[id^=live-]")) {
    const old = document.getElementById(part.id);
    const opened = [...old.querySelectorAll("details[open]")].map((details) => details.dataset.key);
    const keyOf = (element) => element?.closest("[data-key]")?.dataset.key;
    const focused = old.contains(document.activeElement) && old !== document.activeElement && keyOf(document.activeElement);
    for (const details of part.querySelectorAll("details")) details.open = opened.includes(details.dataset.key);
    if (old.innerHTML === part.innerHTML) continue;
    old.replaceChildren(...part.childNodes);
    if (focused) old.querySelector(`[data-key="${CSS.escape(focused)}"] summary`)?.focus({ preventScroll: true });
  }
}

async function refresh() {
  if (document.hidden) return;
  try {
    const version = document.getElementById("live").dataset.version;
    const response = await fetch(`${main.dataset.live}?version=${version}`);
    if (response.status === 200) update(await response.text());
    if (status.dataset.lost) {
      delete status.dataset.lost;
      status.textContent = "";
    }
  } catch {
    status.dataset.lost = "yes";
    status.textContent = "The server does not respond: it has finished, or was stopped. The numbers are the last ones.";
  }
}

setInterval(refresh, EVERY);
document.addEventListener("visibilitychange", refresh);

main.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  const code = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(code.textContent);
    status.textContent = "Copied.";
  } catch { // the browser refuses, or the page came over the network unencrypted
    window.getSelection().selectAllChildren(code);
    status.textContent = document.execCommand("copy") ? "Copied." : "The link is selected: copy it with Ctrl-C.";
  }
});
