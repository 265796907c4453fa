// Keeps the page current: the server sends the page's contents again whenever something changed.
"use strict";
const main = document.querySelector("main");
const live = document.getElementById("live");

function ago(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

function age() {
  for (const time of main.querySelectorAll("time[datetime]")) {
    time.textContent = ago((Date.now() - Date.parse(time.dateTime)) / 1000);
  }
}

const events = new EventSource(`/events?as=page&${location.search.slice(1)}`);
events.addEventListener("page", (event) => {
  const open = new Set(Array.from(main.querySelectorAll("details[open]"), (details) => details.id));
  main.innerHTML = event.data;
  for (const details of main.querySelectorAll("details")) details.open = details.open || open.has(details.id);
  document.title = main.querySelector("[data-title]")?.dataset.title ?? document.title;
  age();
});
events.addEventListener("open", () => { live.textContent = "● live"; live.className = "ok"; });
events.addEventListener("error", () => { live.textContent = "○ connection lost, trying again"; live.className = "bad"; });
setInterval(() => { if (!document.hidden) age(); }, 5000);
