/* fleet.js - the page at /fleet: who serves the queue, what each does, and what waits. It asks
 * /v1/fleet every two seconds, and keeps what it showed when no answer comes, with a banner. What
 * servers tell of themselves only ever becomes text. */
"use strict";

const POLL_MS = 2000, POLL_HIDDEN_MS = 20000;
let polling = 0, lost = false, tokenWanted = false;
const servers = new Map(); /* by name: its elements */

/* ---- the token ---- */
function wantToken(why) {
  tokenWanted = true;
  $("token-open").hidden = false;
  put($("token-error"), token ? why : "");
  put($("server-text"), "wants a token");
  $("server").dataset.is = "busy";
  if (!$("token-dialog").open) $("token-dialog").showModal();
}
$("token-open").addEventListener("click", () => $("token-dialog").showModal());
$("token-cancel").addEventListener("click", () => $("token-dialog").close());
$("token-form").addEventListener("submit", (e) => {
  e.preventDefault();
  token = $("token").value.trim();
  try { sessionStorage.setItem("sluice-token", token); } catch { /* storage is off */ }
  tokenWanted = false;
  $("token-dialog").close();
  poll();
});

/* ---- figures ---- */
function tile(name, value, is = "") {
  const one = make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }));
  one.dataset.is = is;
  return one;
}
function showTiles(fleet) {
  const q = fleet.queue, up = fleet.data.filter((s) => s.up), works = up.filter((s) => s.role !== "front");
  const silent = fleet.data.length - up.length;
  const tiles = [tile("Waiting", String(q.waiting)), tile("Oldest waits", q.waiting ? whole(q.oldest_seconds) : "-"),
    tile("Running", String(q.running)), tile("Workers up", String(works.length), works.length ? "" : "bad")];
  if (fleet.shared)
    tiles.push(tile("Silent", String(silent), silent ? "warn" : ""), tile("Stuck", String(q.stuck), q.stuck ? "bad" : ""),
      tile("Taken over", String(fleet.taken_over)), tile("Fenced writes", String(fleet.fenced)), tile("Given up", String(fleet.given_up), fleet.given_up ? "warn" : ""));
  $("tiles").replaceChildren(...tiles);
  $("stuck").hidden = !q.stuck;
  put($("stuck"), q.stuck ? `${q.stuck} ${q.stuck === 1 ? "job waits" : "jobs wait"} for another server: ${q.stuck_why}` : "");
}

/* ---- servers ---- */
function stateOfServer(s) {
  if (!s.up) return ["lost", `silent for ${whole(s.silent_seconds)}`];
  if (s.draining) return ["busy", "draining"];
  if (s.ready === false) return ["busy", "not ready"];
  return ["ready", "up"];
}
function factsOf(s) {
  const list = (a) => (Array.isArray(a) && a.length ? a.join(", ") : ""), loras = new Set(String(s.lora_loaded || "").split(",").filter(Boolean));
  const lora = (Array.isArray(s.lora) ? s.lora : []).map((name) => (loras.has(name) ? `${name} (loaded)` : name)).join(", ");
  return [["Devices", list(s.devices)], ["Precision", String(s.precision || "").replaceAll(",", ", ")],
    ["Largest job", s.pixels ? `${Number(s.pixels).toLocaleString("en")} pixels, ${s.frames} frames` : ""], ["LoRA", lora],
    ["Model", s.model || ""], ["Version", String(s.version || "").slice(0, 12)], ["Heard of", fleetShared ? `${whole(s.silent_seconds)} ago` : ""]].filter(([, v]) => v);
}
function jobRow(j) {
  const fill = make("i"), pct = Math.max(0, Math.min(100, Number(j.progress) || 0));
  fill.style.transform = `scaleX(${pct / 100})`;
  const name = j.id ? make("a", { href: `./#${j.id}`, textContent: j.id }) : make("span", { textContent: "another's job" });
  const steps = j.stage ? `${j.stage}${j.stage_steps ? `, step ${j.step} of ${j.stage_steps}` : ""}` : "not begun yet";
  const since = j.since ? `for ${whole(Math.max(0, Date.now() / 1000 - j.since))}` : "";
  return make("li", { className: "work" }, make("span", { className: "what" }, name), make("span", { className: "how", textContent: steps }),
    make("span", { className: "now", textContent: [`${pct} %`, since, j.attempts > 1 ? `try ${j.attempts}` : ""].filter(Boolean).join(", ") }),
    make("span", { className: "bar", "aria-hidden": "true" }, fill));
}
function makeServer(name) {
  const e = { dot: make("span", { className: "state" }), text: make("span"), role: make("span", { className: "badge" }), facts: make("dl", { className: "facts" }), jobs: make("ol") };
  e.dot.append(make("i"), e.text);
  e.box = make("li", { className: "peer" }, make("div", { className: "head" }, make("h3", { textContent: name }), e.role, make("span", { className: "fill" }), e.dot), e.facts, e.jobs);
  servers.set(name, e);
  return e;
}
let fleetShared = false;
const order = { both: 0, worker: 0, front: 1 };
function showServers(fleet) {
  fleetShared = fleet.shared;
  const all = [...fleet.data].sort((a, b) => b.up - a.up || (order[a.role] ?? 2) - (order[b.role] ?? 2) || (a.name < b.name ? -1 : 1));
  for (const s of all) {
    const e = servers.get(s.name) || makeServer(s.name), [is, words] = stateOfServer(s);
    e.dot.dataset.is = is;
    e.box.dataset.is = is;
    put(e.text, words);
    put(e.role, s.role || "unknown");
    e.facts.replaceChildren(...factsOf(s).map(([k, v]) => make("div", {}, make("dt", { textContent: k }), make("dd", { textContent: v }))));
    e.jobs.replaceChildren(...s.jobs.map(jobRow));
    if (!s.jobs.length && s.role !== "front") e.jobs.append(make("li", { className: "hint", textContent: "nothing runs" }));
  }
  for (const name of [...servers.keys()]) if (!all.some((s) => s.name === name)) servers.delete(name);
  const boxes = all.map((s) => servers.get(s.name).box), list = $("server-list");
  if (boxes.length !== list.children.length || boxes.some((b, i) => list.children[i] !== b)) list.replaceChildren(...boxes);
  $("servers-empty").hidden = all.length > 0;
  put($("servers-count"), fleet.servers_in_all > all.length ? `${all.length} of ${fleet.servers_in_all} are shown` : "");
}

/* ---- what waits ---- */
function showWaiting(fleet) {
  const all = fleet.queue.oldest || [];
  $("waiting").hidden = !all.length;
  $("waiting-rows").replaceChildren(...all.map((j) => make("tr", {},
    make("th", { scope: "row" }, j.id ? make("a", { href: `./#${j.id}`, textContent: j.id }) : "another's job"),
    make("td", { textContent: whole(Math.max(0, Date.now() / 1000 - j.created_at)) }), make("td", { textContent: String(j.priority) }),
    make("td", { textContent: j.attempts ? String(j.attempts) : "" }), make("td", { className: "words", textContent: j.waiting_for || "its turn" }))));
}

/* ---- asking ---- */
async function poll() {
  clearTimeout(polling);
  let wait = document.hidden ? POLL_HIDDEN_MS : POLL_MS;
  try {
    if (tokenWanted) return;
    const fleet = await ask("v1/fleet");
    showTiles(fleet); showServers(fleet); showWaiting(fleet);
    if (lost) say("Connected to the server again.");
    lost = false;
    $("banner").hidden = true;
    $("server").dataset.is = "ready";
    put($("server-text"), "up to date");
    document.title = `${fleet.queue.running} running, ${fleet.queue.waiting} waiting - Sluice`;
  } catch (e) {
    if (!(e instanceof Failure)) throw e;
    if (e.status === 401) return;
    if (!lost) say("The connection to the server is lost.");
    lost = true;
    wait = 4000;
    $("server").dataset.is = e.status === 503 ? "busy" : "lost";
    put($("server-text"), e.status === 503 ? "the queue is away" : "no connection");
    $("banner").hidden = false;
    $("banner").dataset.is = "lost";
    put($("banner-text"), `${e.message}. What is shown is from before. Trying again every few seconds.`);
  } finally {
    clearTimeout(polling);
    polling = setTimeout(poll, wait);
  }
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
$("token-open").hidden = !token;
poll();
