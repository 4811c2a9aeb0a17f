/* page.js - the page at /: a form, the queue, one job watched closely.
 *
 * The server's jobs are the truth; `jobs` here is a copy of them. It is filled by a poll of the list
 * every few seconds and, for one job at a time, by its event stream: a browser opens six connections
 * to a server in all, over all its tabs, and a stream holds one. Streams are read through fetch,
 * since an EventSource cannot send a token. What a job brings (prompts, messages) only ever becomes
 * text. A lost server is a banner and another try; nothing here needs a reload. */
"use strict";

const POLL_MS = 3000, POLL_HIDDEN_MS = 20000, SILENCE_MS = 60000, UPLOAD_MS = 600000;
const STAGES = ["text", "image", "denoise", "decode", "mux"];
const PAGE = 100, PAGES = 20, SHOWN = 40;

/* The events of a stream, as {event, data}, until it ends, is stopped, or is silent for too long. */
async function* eventsOf(path, stop) {
  let late = 0;
  const alive = () => { clearTimeout(late); late = setTimeout(() => stop.abort(), SILENCE_MS); };
  try {
    alive();
    const answer = await fetch(path, { headers: headersWithToken({ Accept: "text/event-stream" }), signal: stop.signal, cache: "no-store" });
    if (!answer.ok) throw await failureOf(answer);
    const reader = answer.body.getReader(), decoder = new TextDecoder();
    let text = "", event = "message", data = [];
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      text += decoder.decode(value, { stream: true });
      const lines = text.split(/\r\n|\n|\r(?!$)/);
      text = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { event, data: data.join("\n") };
          event = "message"; data = [];
        } else if (line.startsWith("event:")) event = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      }
    }
  } finally { clearTimeout(late); }
}

const hex = (n) => Array.from(crypto.getRandomValues(new Uint8Array(n)), (b) => b.toString(16).padStart(2, "0")).join("");
const pathOf = (id, rest = "") => `v1/videos/${encodeURIComponent(id)}${rest}`;

/* ---- whether the server is there ---- */
let lostSince = 0, tries = 0, tokenWanted = false;

function banner(text, is) {
  $("banner").hidden = !text;
  $("banner").dataset.is = is || "";
  put($("banner-text"), text || "");
}
function serverIs(is, text) { $("server").dataset.is = is; put($("server-text"), text); }

function serverLost(e) {
  if (!lostSince) { lostSince = Date.now(); say("The connection to the server is lost."); }
  tries++;
  serverIs("lost", "no connection");
  banner(`${e.message}. Trying again every few seconds. Jobs go on without this page, and a restarted server goes on with them.`, "lost");
}
function serverFound() {
  if (!lostSince) return;
  banner(`Connected again after ${seconds((Date.now() - lostSince) / 1000)}. The queue is up to date.`, "good");
  say("Connected to the server again.");
  lostSince = 0; tries = 0;
  setTimeout(() => { if (!lostSince) banner(""); }, 6000);
  askReady();
  if (!defaults) askDefaults();
}

async function askReady() {
  try {
    const answer = await fetch("ready", { cache: "no-store" });
    const body = await answer.json().catch(() => ({}));
    const why = (body.error && body.error.message) || body.status || body.state || "";
    if (answer.ok) serverIs("ready", "ready");
    else serverIs("busy", why ? String(why) : "not ready yet");
  } catch { /* the poll tells */ }
}

/* ---- the token ---- */
function wantToken(why) {
  tokenWanted = true;
  $("token-open").hidden = false;
  serverIs("busy", "wants a token");
  put($("token-error"), token ? why : "");
  openToken();
}
function openToken() {
  if ($("token-dialog").open) return;
  $("token").value = token;
  $("token-keep").checked = keep;
  $("token-forget").hidden = !token;
  $("token-dialog").showModal();
}
function setToken(text, kept) {
  token = text; keep = kept;
  try {
    sessionStorage.removeItem("sluice-token"); localStorage.removeItem("sluice-token");
    if (token) (kept ? localStorage : sessionStorage).setItem("sluice-token", token);
  } catch { /* storage is off */ }
  $("token-open").hidden = !token && !tokenWanted;
  tokenWanted = false;
  forgetPictures();
  jobs.clear();
  serverIs("asking", "asking the server");
  put($("token-error"), "");
  $("token-dialog").close();
  askReady();
  askDefaults();
  pollSoon();
  if (selected) select(selected, { again: true });
}
$("token-open").addEventListener("click", openToken);
$("token-cancel").addEventListener("click", () => $("token-dialog").close());
$("token-forget").addEventListener("click", () => setToken("", false));
$("token-form").addEventListener("submit", (e) => { e.preventDefault(); setToken($("token").value.trim(), $("token-keep").checked); });

/* A question; true: yes. */
function sure(title, text, yes, no) {
  put($("ask-title"), title); put($("ask-text"), text); put($("ask-yes"), yes); put($("ask-no"), no);
  $("ask").returnValue = "no";
  $("ask").showModal();
  return new Promise((done) => $("ask").addEventListener("close", () => done($("ask").returnValue === "yes"), { once: true }));
}

/* ---- pictures of jobs ----
 * An <img> or <video> cannot send a token: with one, bytes come by fetch and are shown as a blob. */
const pictures = new Map(); /* key -> promise of {url, blob} */

function pictureOf(key, path) {
  if (!pictures.has(key)) {
    const found = token ? ask(path, { as: "blob", wait: UPLOAD_MS }).then((b) => ({ url: URL.createObjectURL(b), blob: true })) : Promise.resolve({ url: path, blob: false });
    pictures.set(key, found);
    found.catch(() => pictures.delete(key));
  }
  return pictures.get(key).then((p) => p.url);
}
function forgetPicture(key) {
  const p = pictures.get(key);
  pictures.delete(key);
  if (p) p.then((x) => { if (x.blob) URL.revokeObjectURL(x.url); }, () => {});
}
function forgetPictures() { for (const key of [...pictures.keys()]) forgetPicture(key); }
function forgetPicturesOf(id) { for (const what of ["thumb", "video", "preview"]) forgetPicture(`${what} ${id}`); }

/* ---- the queue ---- */
const jobs = new Map(), heard = new Map(), rows = new Map(); /* by id: the job, when it was heard of, its row */
let selected = "", shown = SHOWN, moreOnServer = false, polling = 0, pollNumber = 0, listed = false;

/* Take a job's object. asked: when the question was put; an answer older than the last event is no news. */
function take(job, asked = performance.now()) {
  const before = jobs.get(job.id);
  if (before && heard.get(job.id) > asked) return;
  jobs.set(job.id, job);
  heard.set(job.id, performance.now());
  if (before && before.status !== job.status) {
    if (job.status === "completed") say(`Done: ${titleOf(job).slice(0, 80)}`);
    else if (job.status === "failed") say(`${isCancelled(job) ? "Cancelled" : "Failed"}: ${titleOf(job).slice(0, 80)}`);
    else if (job.status === "in_progress") say(`Running: ${titleOf(job).slice(0, 80)}`);
  }
  if (job.id === selected) showJob(before);
}
function drop(id) {
  jobs.delete(id); heard.delete(id); forgetPicturesOf(id);
  if (id === selected) showGone();
}

async function poll() {
  const asked = performance.now(), seen = new Set();
  let after = "", all = false, last = null;
  for (let page = 0; page < PAGES; page++) {
    const list = await ask(`v1/videos?limit=${PAGE}&order=desc${after ? `&after=${encodeURIComponent(after)}` : ""}`);
    for (const job of list.data) { seen.add(job.id); take(job, asked); last = job; }
    after = list.last_id;
    all = !list.has_more || !list.data.length;
    /* Running jobs are old ones: the list is read until they are in it. */
    if (all || (!isActive(last) && seen.size >= shown)) break;
  }
  moreOnServer = !all;
  for (const [id, job] of jobs)
    if (!seen.has(id) && heard.get(id) < asked && (all || (last && job.created_at > last.created_at))) drop(id);
  listed = true;
}

function pollSoon(ms = 0) { clearTimeout(polling); polling = setTimeout(pollNow, ms); }
async function pollNow() {
  clearTimeout(polling);
  const number = ++pollNumber;
  let wait = document.hidden ? POLL_HIDDEN_MS : POLL_MS;
  try {
    if (tokenWanted) { wait = POLL_HIDDEN_MS; return; }
    await poll();
    serverFound();
    if ($("server").dataset.is !== "ready" || number % 5 === 0) askReady();
  } catch (e) {
    if (!(e instanceof Failure)) throw e;
    if (e.status === 0 || e.status === 502 || e.status === 504) { serverLost(e); wait = Math.min(1000 * tries, 8000); }
    else if (e.status === 503) { serverIs("busy", e.message); wait = 2000; }
    else if (e.status !== 401) { banner(e.message, "lost"); wait = 5000; }
  } finally {
    showQueue();
    watch();
    if (number === pollNumber) { clearTimeout(polling); polling = setTimeout(pollNow, wait); }
  }
}

const GROUPS = {
  running: { has: (j) => j.status === "in_progress", order: (a, b) => a.started_at - b.started_at || a.created_at - b.created_at },
  waiting: { has: (j) => j.status === "queued", order: (a, b) => (a.queue_position ?? 1e9) - (b.queue_position ?? 1e9) || a.created_at - b.created_at },
  ended: { has: (j) => !isActive(j), order: (a, b) => (b.completed_at || b.created_at) - (a.completed_at || a.created_at) || b.created_at - a.created_at },
};

function makeRow(id) {
  const row = { picture: "" };
  row.image = make("img", { alt: "", loading: "lazy", hidden: true });
  row.mark = make("span", { "aria-hidden": "true" });
  row.what = make("span", { className: "what" });
  row.when = make("span", { className: "when" });
  row.how = make("span", { className: "how" });
  row.now = make("span", { className: "now" });
  row.fillOf = make("i");
  row.bar = make("span", { className: "bar", "aria-hidden": "true" }, row.fillOf);
  row.link = make("a", { className: "job", href: `#${id}` }, make("span", { className: "thumb" }, row.image, row.mark), row.what, row.when, row.how, row.now, row.bar);
  row.item = make("li", {}, row.link);
  row.image.addEventListener("error", () => { row.image.hidden = true; row.mark.hidden = false; });
  rows.set(id, row);
  return row;
}

function showRow(job) {
  const row = rows.get(job.id) || makeRow(job.id), is = stateOf(job), pct = percentOf(job);
  row.link.dataset.is = is;
  if (job.id === selected) row.link.setAttribute("aria-current", "true");
  else row.link.removeAttribute("aria-current");
  put(row.what, titleOf(job));
  put(row.when, clock(job.status === "completed" && job.completed_at ? job.completed_at : job.created_at));
  put(row.how, [`${job.size}, ${job.frames} frames, ${job.steps} steps`, job.priority ? `priority ${job.priority}` : ""].filter(Boolean).join(", "));
  let now = IN_WORDS[is];
  if (is === "in_progress") now = `${pct} %${job.eta_seconds ? `, ${seconds(job.eta_seconds)} left` : ""}`;
  if (is === "queued" && job.queue_position !== null && job.queue_position !== undefined)
    now = `${job.queue_position === 0 ? "next" : `${job.queue_position} before it`}${job.eta_seconds ? `, about ${seconds(job.eta_seconds)}` : ""}`;
  if (is === "queued" && job.waiting_for) now = "waits for another server";
  put(row.now, now);
  row.bar.hidden = is !== "in_progress";
  row.fillOf.style.transform = `scaleX(${pct / 100})`;
  put(row.mark, is === "in_progress" ? `${pct} %` : is === "failed" ? "!" : is === "cancelled" ? "×" : is === "queued" ? "…" : "");
  if (is === "completed" && row.picture !== "thumb") {
    row.picture = "thumb";
    pictureOf(`thumb ${job.id}`, pathOf(job.id, "/content?variant=thumbnail")).then((url) => showRowPicture(row, url), () => { row.picture = ""; });
  }
  return row.item;
}
function showRowPicture(row, url) { row.image.src = url; row.image.hidden = false; row.mark.hidden = true; }

/* Moves only what is not in its place; the keyboard's place in the list stays. */
function fill(list, items) {
  const at = document.activeElement;
  while (list.children.length > items.length && !items.includes(list.lastElementChild)) list.lastElementChild.remove();
  items.forEach((item, i) => { if (list.children[i] !== item) list.insertBefore(item, list.children[i] || null); });
  while (list.children.length > items.length) list.lastElementChild.remove();
  if (at && at !== document.activeElement && list.contains(at)) at.focus();
}

function showQueue() {
  const words = $("filter").value.trim().toLowerCase();
  const match = (j) => !words || `${titleOf(j)} ${j.id} ${j.size} ${j.seed} ${IN_WORDS[stateOf(j)]}`.toLowerCase().includes(words);
  const all = [...jobs.values()];
  let visible = 0, cut = 0;
  for (const [name, group] of Object.entries(GROUPS)) {
    const box = document.querySelector(`[data-group="${name}"]`), mine = all.filter(group.has), found = mine.filter(match).sort(group.order);
    const some = name === "ended" ? found.slice(0, shown) : found;
    cut += found.length - some.length;
    fill(box.querySelector("ol"), some.map(showRow));
    put(box.querySelector("h3 span"), String(found.length) + (name === "ended" && moreOnServer ? "+" : ""));
    box.hidden = !some.length;
    visible += some.length;
  }
  for (const id of [...rows.keys()]) if (!jobs.has(id)) { rows.get(id).item.remove(); rows.delete(id); }
  $("more").hidden = !cut && !moreOnServer;
  $("queue-empty").hidden = visible > 0;
  put($("queue-empty"), tokenWanted ? "The queue is shown to who has a token." : !listed ? "Asking the server for the queue." : words ? "No job has this text." : "Nothing here yet. What you make appears in this list.");
  const running = all.filter(GROUPS.running.has).length, waiting = all.filter(GROUPS.waiting.has).length;
  put($("counts"), listed ? `${running} running, ${waiting} waiting` : "");
  const job = jobs.get(selected);
  document.title = job && job.status === "in_progress" ? `${percentOf(job)} % - Sluice` : running + waiting ? `(${running + waiting}) Sluice` : "Sluice";
}

$("filter").addEventListener("input", showQueue);
$("more").addEventListener("click", () => { shown += SHOWN; showQueue(); pollSoon(); });
$("groups").addEventListener("keydown", (e) => {
  if (!["ArrowDown", "ArrowUp", "Home", "End"].includes(e.key)) return;
  const links = [...$("groups").querySelectorAll(".group:not([hidden]) .job")], i = links.indexOf(document.activeElement);
  const to = { ArrowDown: i + 1, ArrowUp: i - 1, Home: 0, End: links.length - 1 }[e.key];
  if (i < 0 || !links[to]) return;
  e.preventDefault();
  links[to].focus();
});
$("groups").addEventListener("click", (e) => { /* the same job again: its part of the page, on a phone */
  const link = e.target.closest(".job");
  if (link && link.hash.slice(1) === selected) { e.preventDefault(); view("job"); }
});

/* ---- the stream of one job: the chosen one, else the first that runs ---- */
let watched = "", watchStop = null;

function watch() {
  const chosen = jobs.get(selected), running = [...jobs.values()].filter(GROUPS.running.has).sort(GROUPS.running.order);
  const want = document.hidden || tokenWanted || lostSince ? "" : chosen && isActive(chosen) ? selected : running.length ? running[0].id : "";
  if (want === watched) return;
  if (watchStop) watchStop.abort();
  watched = want;
  if (want) follow(want, (watchStop = new AbortController()));
}

async function follow(id, stop) {
  let failed = 0;
  while (watched === id && watchStop === stop) {
    const once = new AbortController(), pass = () => once.abort();
    stop.signal.addEventListener("abort", pass);
    try {
      for await (const { event, data } of eventsOf(pathOf(id, "/events"), once)) {
        failed = 0;
        onEvent(id, event, parse(data));
      }
    } catch (e) {
      if (e instanceof Failure && (e.status === 404 || e.status === 401)) failed = 9;
    } finally { stop.signal.removeEventListener("abort", pass); }
    const job = jobs.get(id);
    if (watchStop !== stop || !job || !isActive(job) || ++failed > 5) break;
    await sleep(500 * failed);
  }
  if (watchStop === stop) { watched = ""; watchStop = null; }
}

function onEvent(id, event, data) {
  const job = jobs.get(id);
  if (event === "state") { take(data); showQueue(); if (!isActive(data)) pollSoon(300); }
  if (event === "step" && job) {
    const progress = Math.min(99, Math.max(job.progress || 0, data.progress || 0)); /* 100 is said of what is there alone */
    take({ ...job, status: "in_progress", stage: data.stage, step: data.step, stage_steps: data.steps, progress, step_seconds: data.seconds, eta_seconds: data.eta_seconds ?? job.eta_seconds });
    showQueue();
  }
  if (event === "preview" && job) { take({ ...job, preview: true, preview_step: data.step }); askPreview(id, data.step); }
}

let previewBusy = false;
async function askPreview(id, step) {
  if (previewBusy) return; /* the next one comes */
  previewBusy = true;
  try {
    const url = URL.createObjectURL(await ask(pathOf(id, "/preview"), { as: "blob" }));
    const before = pictures.get(`preview ${id}`);
    pictures.set(`preview ${id}`, Promise.resolve({ url, blob: true }));
    if (before) before.then((p) => setTimeout(() => URL.revokeObjectURL(p.url), 2000), () => {});
    if (rows.has(id) && isActive(jobs.get(id))) showRowPicture(rows.get(id), url);
    if (id === selected) showPreview(url, step);
  } catch { /* none yet */ } finally { previewBusy = false; }
}

/* ---- one job ---- */
let showing = {}; /* what of the chosen job is on the screen already */

function view(name) {
  document.body.dataset.view = name;
  for (const b of $("views").children)
    if (b.dataset.to === name) b.setAttribute("aria-current", "true");
    else b.removeAttribute("aria-current");
}
$("views").addEventListener("click", (e) => { if (e.target.dataset.to) { view(e.target.dataset.to); scrollTo(0, 0); } });

function select(id, { again = false } = {}) {
  if (id === selected && !again) return;
  selected = id;
  showing = {};
  $("job-video").pause();
  $("job-video").removeAttribute("src");
  $("job-video").removeAttribute("poster");
  $("job-video").load();
  $("job-preview").removeAttribute("src");
  for (const part of ["job-video", "job-preview", "preview-tag", "timeline"]) $(part).hidden = true;
  put($("log-text"), "");
  if (!id) showGone("Choose a job in the queue to watch it here.");
  else if (jobs.has(id)) showJob();
  else askJob(id);
  showQueue();
  watch();
}
async function askJob(id) {
  showGone("Asking the server for this job.");
  try { take(await ask(pathOf(id))); showQueue(); watch(); }
  catch (e) { if (id === selected) showGone(e.status === 404 ? "This job is not here: it was deleted, has expired, or belongs to another token." : e.message); }
}
function showGone(text = "This job was deleted.") {
  $("job-one").hidden = true;
  $("job-none").hidden = false;
  put($("job-none"), text);
}

function showJob(before) {
  const job = jobs.get(selected), is = stateOf(job), pct = percentOf(job), active = isActive(job);
  $("job-one").hidden = false;
  $("job-none").hidden = true;
  put($("job-badge"), IN_WORDS[is]);
  $("job-badge").dataset.is = is;
  put($("job-prompt"), titleOf(job));
  $("screen").style.aspectRatio = job.width && job.height ? `${job.width} / ${job.height}` : "16 / 9";
  showProgress(job, is, pct);
  put($("job-error"), job.status === "failed" && !isCancelled(job) && job.error ? job.error.message : "");
  $("job-cancel").hidden = !active;
  $("job-download").hidden = job.status !== "completed";
  showFacts(job);
  showFiles(job);

  if (job.status === "completed") showVideo(job);
  else showPicture(job, is);
  const moment = `${job.status} ${job.stage}`;
  if (showing.moment !== moment) {
    showing.moment = moment;
    if (!active) askTrace(job.id);
    if ($("log").open) askLog();
  }
  if (before && active && Math.floor(percentOf(before) / 25) < Math.floor(pct / 25)) say(`${pct} percent`);
}

function showProgress(job, is, pct) {
  const bar = document.querySelector("#job-progress .bar");
  bar.setAttribute("aria-valuenow", pct);
  bar.firstElementChild.style.transform = `scaleX(${pct / 100})`;
  $("job-progress").hidden = !isActive(job);
  const took = (job.completed_at || Date.now() / 1000) - job.started_at;
  let text = "";
  if (is === "queued" && job.waiting_for) text = `Waiting: ${job.waiting_for}`;
  else if (is === "queued") text = job.queue_position ? `Waiting, ${job.queue_position} before it` : "Waiting, next in line";
  else if (job.stage && job.stage_steps) text = `${pct} %, ${job.stage}: ${job.step || 0} of ${job.stage_steps}${job.step_seconds ? `, ${seconds(job.step_seconds)} each` : ""}`;
  else text = `${pct} %${job.stage ? `, ${job.stage}` : ""}`;
  put($("progress-text"), text);
  bar.setAttribute("aria-valuetext", text);
  const left = job.eta_seconds ? job.eta_seconds - (performance.now() - heard.get(job.id)) / 1000 : 0;
  put($("progress-eta"), [job.started_at ? `${seconds(Math.max(0, took))} so far` : "", left > 0.5 ? `about ${seconds(left)} left` : ""].filter(Boolean).join(", "));
  const names = STAGES.filter((s) => s !== "image" || !defaults || defaults.picture !== false), at = names.indexOf(job.stage);
  if ($("stages").children.length !== names.length) $("stages").replaceChildren(...names.map((s) => make("li", { textContent: s })));
  [...$("stages").children].forEach((li, i) => {
    li.dataset.is = is === "queued" || at < 0 || i > at ? "" : i < at ? "done" : "now";
    if (i === at) li.setAttribute("aria-current", "step"); else li.removeAttribute("aria-current");
  });
}

function showFacts(job) {
  const facts = [["Size", job.size], ["Frames", `${job.frames} at ${job.fps} fps, ${seconds(Number(job.frames) / Number(job.fps) || 0)}`], ["Steps", job.steps],
    ["Guidance", job.guidance], ["Seed", job.seed], ["Priority", job.priority || ""], ["Asked", clock(job.created_at)],
    ["Waited", job.started_at ? whole(job.started_at - job.created_at) : ""], ["Took", job.completed_at && job.started_at ? whole(job.completed_at - job.started_at) : ""],
    ["Video", job.output_bytes ? bytes(job.output_bytes) : ""], ["Kept until", job.expires_at ? clock(job.expires_at) : ""], ["Attempts", job.attempts > 1 ? job.attempts : ""],
    ["Negative prompt", job.negative_prompt || "", "wide"], ["Id", job.id, "wide"]].filter((f) => f[1] !== "" && f[1] !== null && f[1] !== undefined);
  const key = JSON.stringify(facts);
  if (showing.facts === key) return;
  showing.facts = key;
  $("facts").replaceChildren(...facts.map(([name, value, wide]) =>
    make("div", { className: wide || "" }, make("dt", { textContent: name }), make("dd", { textContent: String(value) }))));
}

/* ---- its picture or video ---- */
function showPicture(job, is) {
  $("job-video").hidden = true;
  const hasPreview = pictures.has(`preview ${job.id}`);
  if (hasPreview || showing.preview) {
    if (!showing.preview) pictures.get(`preview ${job.id}`).then((p) => { if (job.id === selected) showPreview(p.url, job.preview_step); }, () => {});
  } else if (job.preview && isActive(job) && showing.asked !== job.step) {
    showing.asked = job.step;
    askPreview(job.id, null);
  }
  const text = is === "queued" ? "It has not begun yet." : is === "in_progress" ? "The first preview comes after the first steps." : is === "cancelled" ? "Cancelled." : "No video: the job failed.";
  put($("screen-text"), showing.preview ? "" : text);
}
function showPreview(url, step) {
  const job = jobs.get(selected);
  if (!job || job.status === "completed") return;
  showing.preview = true;
  $("job-preview").src = url;
  $("job-preview").alt = step ? `Preview after step ${step}` : "Preview";
  $("job-preview").hidden = false;
  $("preview-tag").hidden = false;
  put($("preview-tag"), step ? `preview after step ${step}` : "preview");
  put($("screen-text"), "");
}

async function showVideo(job) {
  const id = job.id, video = $("job-video"), name = `sluice-${id.replace(/^video_/, "").slice(0, 8)}.mp4`;
  if (showing.video) return;
  showing.video = true;
  $("job-preview").hidden = $("preview-tag").hidden = true;
  put($("screen-text"), token ? `Fetching the video${job.output_bytes ? `, ${bytes(job.output_bytes)}` : ""}.` : "");
  pictureOf(`thumb ${id}`, pathOf(id, "/content?variant=thumbnail")).then((url) => { if (id === selected) video.poster = url; }, () => {});
  try {
    const url = await pictureOf(`video ${id}`, pathOf(id, "/content"));
    if (id !== selected) return;
    video.src = url;
    video.setAttribute("aria-label", `Video: ${titleOf(job)}`);
    video.hidden = false;
    $("job-download").href = url;
    $("job-download").download = name;
    put($("screen-text"), "");
  } catch (e) {
    if (id === selected) { put($("screen-text"), `The video cannot be fetched: ${e.message}`); showing.video = false; }
  }
}
$("job-video").addEventListener("error", () => {
  if (!$("job-video").getAttribute("src")) return;
  $("job-video").hidden = true;
  put($("screen-text"), "This browser cannot play the video. Download it to see it.");
});

/* ---- its files and its log ---- */
const FILES = [["report", "/report", "json"], ["trace", "/trace", "json"], ["log", "/logs", "jsonl"], ["sprite sheet", "/content?variant=spritesheet", "jpg"]];

function showFiles(job) {
  if (showing.files === job.status) return;
  showing.files = job.status;
  const some = FILES.filter((f) => f[0] === "log" || (f[0] === "sprite sheet" ? job.status === "completed" : !isActive(job)));
  $("files").replaceChildren(...some.map(([name, path, kind]) => {
    const b = make("button", { type: "button", className: "link", textContent: name });
    b.addEventListener("click", () => saveFile(job.id, name, path, kind));
    return b;
  }));
}
async function saveFile(id, name, path, kind) {
  try {
    const url = URL.createObjectURL(await ask(pathOf(id, path), { as: "blob", wait: UPLOAD_MS }));
    make("a", { href: url, download: `sluice-${id.replace(/^video_/, "").slice(0, 8)}-${name.replace(" ", "")}.${kind}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  } catch (e) { put($("job-error"), `The ${name} cannot be fetched: ${e.message}`); }
}

async function askLog() {
  const id = selected;
  try {
    const lines = (await ask(pathOf(id, "/logs"), { as: "text" })).trim().split("\n").slice(-500).map((line) => {
      try {
        const l = JSON.parse(line);
        return `${String(l.time || "").slice(11, 23)} ${l.level && l.level !== "info" ? `${l.level} ` : ""}${l.process || ""}: ${l.message}`;
      } catch { return line; }
    });
    if (id === selected) put($("log-text"), lines.join("\n") || "Nothing was logged.");
  } catch (e) { if (id === selected) put($("log-text"), e.status === 404 ? "Nothing was logged yet." : e.message); }
}
$("log").addEventListener("toggle", () => { if ($("log").open && selected) askLog(); });

/* ---- what can be done to it ---- */
async function act(button, work) {
  const id = selected;
  button.disabled = true;
  put($("job-error"), "");
  try { await work(id); }
  catch (e) {
    if (!(e instanceof Failure)) throw e;
    if (id === selected) put($("job-error"), e.message);
  } finally { button.disabled = false; pollSoon(200); }
}
$("job-cancel").addEventListener("click", async () => {
  const job = jobs.get(selected);
  if (!job) return;
  if (job.status === "in_progress" && !await sure("Cancel this job?", `${percentOf(job)} % of it is done, and would be lost.`, "Cancel the job", "Let it run")) return;
  act($("job-cancel"), async (id) => { take(await ask(pathOf(id, "/cancel"), { method: "POST" })); showQueue(); });
});
$("job-delete").addEventListener("click", async () => {
  const job = jobs.get(selected);
  if (!job) return;
  if (!await sure("Delete this job?", isActive(job) ? "It is cancelled, and nothing of it is kept." : "Its video and files are removed from the server.", "Delete", "Keep")) return;
  act($("job-delete"), async (id) => {
    await ask(pathOf(id), { method: "DELETE" });
    drop(id);
    forgetSent(id);
    history.replaceState(null, "", location.pathname + location.search);
    select("");
    showGone("The job was deleted.");
    say("The job was deleted.");
    showQueue();
    $("queue").focus({ preventScroll: true });
    view("queue");
  });
});
$("job-again").addEventListener("click", () => again(jobs.get(selected)));

setInterval(() => { const job = jobs.get(selected); if (job && job.status === "in_progress" && !document.hidden) showProgress(job, "in_progress", percentOf(job)); }, 1000);

/* ---- its timeline ---- */
const KINDS = ["compute", "step", "rank", "load", "start", "handover", "spool", "queue", "wait", "turn", "job"];
let chart = null, zoom = 1;

async function askTrace(id) {
  try {
    const found = chartOf(await ask(pathOf(id, "/trace")));
    if (id !== selected) return;
    if (!chart || chart.id !== id) zoom = 1;
    chart = found;
    if (chart) chart.id = id;
    $("timeline").hidden = !chart;
    if (chart) { drawChart(); drawSums(); }
  } catch { if (id === selected && (!chart || chart.id !== id)) $("timeline").hidden = true; }
}

/* Chrome's trace as lanes: {lanes: [{title, first, bars: [{name, kind, a, b}]}], a, b}, in seconds. */
function chartOf(trace) {
  const process = new Map(), thread = new Map(), bars = [];
  const at = (map, key) => { if (!map.has(key)) map.set(key, { name: "", sort: 0, labels: "" }); return map.get(key); };
  for (const e of trace.traceEvents || []) {
    const args = e.args || {}, key = `${e.pid} ${e.tid}`;
    if (e.ph === "M") {
      if (e.name === "process_name") at(process, e.pid).name = String(args.name);
      if (e.name === "process_labels") at(process, e.pid).labels = String(args.labels);
      if (e.name === "process_sort_index") at(process, e.pid).sort = Number(args.sort_index);
      if (e.name === "thread_name") at(thread, key).name = String(args.name);
      if (e.name === "thread_sort_index") at(thread, key).sort = Number(args.sort_index);
    } else if (e.ph === "X" && isFinite(e.ts) && isFinite(e.dur)) {
      const cat = String(e.cat || e.name), kind = KINDS.includes(cat) ? cat : "other";
      bars.push({ pid: e.pid, key, name: String(e.name), kind, a: e.ts / 1e6, b: (e.ts + e.dur) / 1e6, args });
      at(process, e.pid); at(thread, key);
    }
  }
  if (!bars.length) return null;
  const lanes = [];
  for (const [pid, p] of [...process].sort((x, y) => x[1].sort - y[1].sort || x[0] - y[0])) {
    const name = `${p.name || `process ${pid}`}${p.labels ? ` (${p.labels})` : ""}`;
    const mine = [...thread].filter(([key]) => key.startsWith(`${pid} `)).sort((x, y) => x[1].sort - y[1].sort);
    mine.forEach(([key, t], i) => {
      const own = bars.filter((b) => b.key === key).sort((x, y) => x.a - y.a);
      if (own.length) lanes.push({ process: p.name || String(pid), device: p.labels, title: i ? t.name : name, first: !i, full: `${name}, ${t.name}`, bars: own });
    });
  }
  return { lanes, a: bars.reduce((m, b) => Math.min(m, b.a), Infinity), b: bars.reduce((m, b) => Math.max(m, b.b), -Infinity) };
}

const SVG = "http://www.w3.org/2000/svg";
function shape(tag, attributes, text) {
  const e = document.createElementNS(SVG, tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text !== undefined) e.textContent = text;
  return e;
}

function drawChart() {
  const LANE = 16, TOP = 20, plot = $("plot"), wide = Math.max(200, Math.floor((plot.clientWidth || 400) * zoom)), high = TOP + chart.lanes.length * LANE + 4;
  const span = Math.max(chart.b - chart.a, 1e-6), x = (t) => ((t - chart.a) / span) * (wide - 8) + 4;
  const svg = shape("svg", { width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, "aria-hidden": "true" });
  const rough = span / Math.max(2, wide / 90), power = 10 ** Math.floor(Math.log10(rough)), tick = [1, 2, 5, 10].map((m) => m * power).find((t) => t >= rough);
  for (let i = 0; i * tick <= span + 1e-9; i++) {
    const at = x(chart.a + i * tick);
    svg.append(shape("line", { x1: at, x2: at, y1: TOP - 4, y2: high }));
    if (at < wide - 30) svg.append(shape("text", { x: at + 3, y: 12 }, i ? `${Number((i * tick).toPrecision(6))} s` : "0"));
  }
  chart.lanes.forEach((lane, i) => {
    const y = TOP + i * LANE;
    let drawn = -1, odd = false;
    if (lane.first && i) svg.append(shape("line", { class: "part", x1: 0, x2: wide, y1: y, y2: y }));
    for (const bar of lane.bars) {
      const from = x(bar.a), to = x(bar.b);
      odd = !odd;
      if (to < drawn + 0.5) continue; /* within the pixel before it */
      drawn = to;
      const rect = shape("rect", { class: `k-${bar.kind}${odd ? " odd" : ""}`, x: from.toFixed(2), y: y + 3, width: Math.max(1, to - from).toFixed(2), height: LANE - 5 });
      rect.tip = `${lane.full}: ${bar.name}, ${seconds(bar.b - bar.a)}, from ${seconds(bar.a - chart.a)}`;
      svg.append(rect);
    }
  });
  plot.replaceChildren(svg);
  plot.setAttribute("aria-label", `Timeline: ${chart.lanes.length} lanes over ${seconds(span)}; the table below has the sums`);
  $("lanes").replaceChildren(...chart.lanes.map((l) => make("div", { className: l.first ? "first" : "", textContent: l.title, title: l.full })));
  const used = KINDS.concat("other").filter((k) => chart.lanes.some((l) => l.bars.some((b) => b.kind === k)));
  $("kinds").replaceChildren(...used.map((k) => make("li", {}, make("i", { className: `k-${k}` }), k)));
}

/* Seconds by process and kind; steps and ranks lie over the computing and are left out. */
function drawSums() {
  const kinds = KINDS.filter((k) => !["step", "rank", "job"].includes(k) && chart.lanes.some((l) => l.bars.some((b) => b.kind === k)));
  const sums = new Map();
  for (const lane of chart.lanes)
    for (const bar of lane.bars) {
      if (!kinds.includes(bar.kind)) continue;
      if (!sums.has(lane.process)) sums.set(lane.process, { device: lane.device });
      const s = sums.get(lane.process);
      s[bar.kind] = (s[bar.kind] || 0) + bar.b - bar.a;
    }
  const cell = (tag, text, scope) => make(tag, scope ? { scope, textContent: text } : { textContent: text });
  $("sums").replaceChildren(
    make("thead", {}, make("tr", {}, cell("th", "stage", "col"), cell("th", "device", "col"), ...kinds.map((k) => cell("th", k, "col")))),
    make("tbody", {}, ...[...sums].map(([name, s]) => make("tr", {}, cell("th", name, "row"), cell("td", s.device || ""),
      ...kinds.map((k) => cell("td", s[k] === undefined ? "" : seconds(s[k])))))));
}

function zoomTo(z) {
  const plot = $("plot"), middle = (plot.scrollLeft + plot.clientWidth / 2) / (plot.clientWidth * zoom);
  zoom = Math.max(1, Math.min(z, 256));
  drawChart();
  plot.scrollLeft = middle * plot.clientWidth * zoom - plot.clientWidth / 2;
}
$("zoom-in").addEventListener("click", () => zoomTo(zoom * 2));
$("zoom-out").addEventListener("click", () => zoomTo(zoom / 2));
$("zoom-fit").addEventListener("click", () => zoomTo(1));
$("plot").addEventListener("pointerover", (e) => { if (e.target.tip) put($("plot-tip"), e.target.tip); });
$("plot").addEventListener("click", (e) => { if (e.target.tip) put($("plot-tip"), e.target.tip); });
let plotWidth = 0;
new ResizeObserver(() => {
  if (!chart || $("timeline").hidden || $("plot").clientWidth === plotWidth) return;
  plotWidth = $("plot").clientWidth;
  drawChart();
}).observe($("plot"));

/* ---- the form ---- */
let defaults = null, sendKey = "", draft = {};
const files = { picture: null, last: null }; /* what is chosen */
const MAIN = ["prompt", "negative", "width", "height", "max-area", "frames", "fps", "steps", "guidance", "seed"];
const ELSEWHERE = [...MAIN, "model", "image", "last-image", "input-reference", "output", "json", "preview"];

/* What only a server's job has, or what is a file there. */
const OWN = [
  { name: "priority", kind: "integer", what: "more is sooner (default 0)", arg: "N" },
  { name: "noise", kind: "file", what: "safetensors with `noise` [16, T, h/8, w/8] F32, instead of a seed", arg: "FILE" },
  { name: "dump", kind: "boolean", what: "keep every hand-over, to be fetched from the job", arg: null },
];

const fieldsOf = () => [...$("form").querySelectorAll("input[name], textarea[name], select[name]")].filter((f) => f.type !== "radio");

async function askDefaults() {
  try { defaults = await ask("v1/defaults"); }
  catch (e) { if (e.status && e.status !== 401 && e.status !== 503) banner(e.message, "lost"); return; }
  put($("model"), defaults.model || "");
  $("picture-field").hidden = defaults.picture === false;
  $("last-field").hidden = !defaults.last_picture;
  put($("area-text"), defaults.picture === false ? "The model's" : "As the picture");
  const d = defaults.defaults || {};
  for (const f of $("form").querySelectorAll("[data-default]")) {
    const v = d[f.name];
    f.placeholder = v !== undefined && v !== null && v !== "" ? String(v) : f.getAttribute("placeholder") || "";
  }
  if (d.width && d.height) { $("width").placeholder = d.width; $("height").placeholder = d.height; }
  makeOptions();
  restoreDraft();
  showHints();
}

function makeOptions() {
  const listed = (defaults.options || []).filter((o) => !ELSEWHERE.includes(o.name)), d = defaults.defaults || {};
  const more = OWN.filter((o) => !listed.some((l) => l.name === o.name)).concat(listed);
  $("all").hidden = !more.length;
  $("all-fields").replaceChildren(...more.map((o) => {
    const id = `option-${o.name}`, kind = String(o.kind), flag = kind === "flag" || kind === "boolean" || o.arg === null || o.name === "dump";
    const isFile = o.name === "noise", what = make("span", { className: "what", id: `${id}-what`, textContent: o.what || "" });
    const input = make("input", { id, name: o.name, type: flag ? "checkbox" : isFile ? "file" : "text", "aria-describedby": what.id });
    if (!flag && !isFile && d[o.name] !== undefined && d[o.name] !== null) input.placeholder = String(d[o.name]);
    if (["int", "integer", "i64", "u64"].includes(kind)) input.inputMode = "numeric";
    if (["real", "number"].includes(kind)) input.inputMode = "decimal";
    const label = flag ? make("label", {}, input, o.name) : make("label", { htmlFor: id, textContent: o.name });
    const box = make("div", { className: `field${flag ? " flag" : ""}` }, label, ...(flag ? [] : [input]), what, make("span", { className: "error", role: "alert" }));
    box.dataset.param = `${o.name} ${o.name.replaceAll("-", "_")}`;
    return box;
  }));
}

function showHints() {
  const value = (name) => Number($(name).value || $(name).placeholder), d = (defaults && defaults.defaults) || {};
  const frames = value("frames"), fps = value("fps"), exact = document.querySelector('[name="shape"]:checked').value === "size";
  $("by-size").hidden = !exact;
  $("by-area").hidden = exact || (!!defaults && defaults.picture === false && !!d.width);
  put($("length-hint"), frames > 0 && fps > 0 ? `${frames} frames at ${fps} a second: ${seconds(frames / fps)}${frames % 4 !== 1 ? "; frames must be 4k + 1" : ""}` : "");
  const img = $("picture-view"), area = value("max-area") || 399360;
  let text = "";
  if (!exact && files.picture && img.naturalWidth) { /* as sl_picture_video_size has it */
    const ratio = img.naturalHeight / img.naturalWidth, edge = (defaults && defaults.edge) || 16, side = (a) => Math.max(edge, Math.floor(Math.round(Math.sqrt(a)) / edge) * edge);
    let w = side(area / ratio), h = side(area * ratio);
    const rest = (a) => Math.max(edge, Math.floor(area / a / edge) * edge);
    if (w * h > area) { if (w > h) w = rest(h); else h = rest(w); }
    text = `= ${w} × ${h}`;
  }
  put($("area-hint"), text);
  let changed = 0;
  for (const f of fieldsOf()) {
    const set = f.type === "checkbox" ? f.checked : f.value !== "";
    if (f.dataset.default !== undefined || $("all").contains(f)) f.classList.toggle("set", set);
    if (set && $("all").contains(f)) changed++;
  }
  put($("all-count"), changed ? `(${changed} set)` : "");
}

function saveDraft() {
  draft = { shape: document.querySelector('[name="shape"]:checked').value };
  for (const f of fieldsOf()) if (f.type !== "file") draft[f.name] = f.type === "checkbox" ? f.checked : f.value;
  try { sessionStorage.setItem("sluice-draft", JSON.stringify(draft)); } catch { /* storage is off or full */ }
}
function restoreDraft() {
  if (!Object.keys(draft).length) try { draft = JSON.parse(sessionStorage.getItem("sluice-draft")) || {}; } catch { draft = {}; }
  writeFields(draft);
}
function writeFields(values) {
  for (const f of fieldsOf()) {
    if (f.type === "file" || !(f.name in values)) continue;
    if (f.type === "checkbox") f.checked = values[f.name] === true;
    else f.value = values[f.name];
    if ($("all").contains(f) && (f.checked || (f.type === "text" && f.value))) $("all").open = true;
  }
  if (values.shape) document.querySelector(`[name="shape"][value="${values.shape === "size" ? "size" : "area"}"]`).checked = true;
}

/* Any change makes the next submit another job: a new Idempotency-Key. */
$("form").addEventListener("input", (e) => { sendKey = ""; clearError(e.target.closest(".field")); saveDraft(); showHints(); });
$("prompt").addEventListener("keydown", (e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { e.preventDefault(); $("form").requestSubmit(); } });
$("seed-roll").addEventListener("click", () => { $("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]); $("seed").dispatchEvent(new Event("input", { bubbles: true })); });
$("reset").addEventListener("click", () => {
  for (const f of fieldsOf()) if (f.type === "checkbox") f.checked = false; else f.value = "";
  document.querySelector('[name="shape"][value="area"]').checked = true;
  choose("picture", null); choose("last", null);
  clearErrors(); saveDraft(); showHints();
  $("prompt").focus();
});

/* ---- its pictures ---- */
function choose(which, file) {
  files[which] = file;
  sendKey = "";
  const img = $(`${which}-view`), old = img.getAttribute("src");
  if (old) URL.revokeObjectURL(old);
  img.removeAttribute("src");
  $(which).value = "";
  img.hidden = !file;
  if (file) img.src = URL.createObjectURL(file);
  $(`${which}-drop`).classList.toggle("full", !!file);
  put($(`${which}-name`), file ? `${file.name || "pasted picture"}, ${bytes(file.size)}` : "");
  $(`${which}-clear`).hidden = !file;
  clearError($(`${which}-field`));
  showHints();
  keepSent("draft", files);
  if (file) say(`Picture chosen: ${file.name || "pasted"}`);
}
for (const which of ["picture", "last"]) {
  $(which).addEventListener("change", () => { if ($(which).files.length) choose(which, $(which).files[0]); });
  $(`${which}-clear`).addEventListener("click", () => { choose(which, null); $(which).focus(); });
  $(`${which}-view`).addEventListener("load", () => {
    const img = $(`${which}-view`);
    put($(`${which}-name`), `${files[which].name || "pasted picture"}, ${img.naturalWidth} × ${img.naturalHeight}, ${bytes(files[which].size)}`);
    showHints();
  });
  $(`${which}-view`).addEventListener("error", () => { $(`${which}-view`).hidden = true; $(`${which}-drop`).classList.remove("full"); put($(`${which}-hint`), "This browser cannot show the file; the server may still take it."); });
}
const fileOf = (data) => [...(data ? data.files : [])].find((f) => f.type.startsWith("image/"));
let dragging = 0;
function showDrag(on, target) { for (const w of ["picture", "last"]) $(`${w}-drop`).classList.toggle("over", on && w === dragTarget(target)); }
function dragTarget(target) { return !$("last-field").hidden && target instanceof Element && target.closest("#last-field") ? "last" : "picture"; }
addEventListener("dragenter", (e) => { if (e.dataTransfer && e.dataTransfer.types.includes("Files")) { dragging++; view("new"); showDrag(true, e.target); } });
addEventListener("dragleave", () => { if (dragging && !--dragging) showDrag(false); });
addEventListener("dragover", (e) => { if (e.dataTransfer && e.dataTransfer.types.includes("Files")) { e.preventDefault(); showDrag(true, e.target); } });
addEventListener("drop", (e) => {
  const file = fileOf(e.dataTransfer);
  dragging = 0; showDrag(false);
  if (e.dataTransfer && e.dataTransfer.files.length) e.preventDefault();
  if (file) choose(dragTarget(e.target), file);
  else if (e.dataTransfer && e.dataTransfer.files.length) showError("input_reference", "This file is no picture; PNG, JPEG, WebP, GIF, TIFF or AVIF is wanted.");
});
addEventListener("paste", (e) => {
  const file = fileOf(e.clipboardData);
  if (!file) return;
  e.preventDefault();
  choose(!$("last-field").hidden && files.picture && !files.last ? "last" : "picture", file);
  view("new");
});

/* ---- errors by their fields ---- */
const ALSO = { num_frames: "frames", seconds: "frames", num_inference_steps: "steps", guidance_scale: "guidance", size: "width" };

function clearError(box) {
  if (!box || !box.dataset.param) return;
  put(box.querySelector(".error"), "");
  for (const f of box.querySelectorAll("[aria-invalid]")) f.removeAttribute("aria-invalid");
}
function clearErrors() { document.querySelectorAll("#form [data-param]").forEach(clearError); put($("form-error"), ""); }
function showError(param, message) {
  const name = String(param || "").split(/[.[]/)[0];
  const box = name && [...document.querySelectorAll("#form [data-param]")].find((b) => !b.hidden && b.dataset.param.split(" ").includes(name));
  if (!box) { put($("form-error"), message); $("form-error").scrollIntoView({ block: "nearest" }); return; }
  const line = box.querySelector(".error"), fields = [...box.querySelectorAll("input, textarea, select")].filter((f) => f.type !== "radio" && !f.closest("[hidden]"));
  if (!line.id) line.id = `error-${name.replace(/[^a-z0-9]/gi, "-")}`;
  put(line, message);
  const field = fields.find((f) => f.name === (ALSO[name] || name)) || fields[0];
  if ($("all").contains(box)) $("all").open = true;
  if (field) { field.setAttribute("aria-invalid", "true"); field.setAttribute("aria-errormessage", line.id); field.focus(); }
}

/* ---- sending it ---- */
$("form").addEventListener("submit", async (e) => {
  e.preventDefault();
  if ($("submit").disabled) return;
  clearErrors();
  const body = new FormData(), exact = document.querySelector('[name="shape"]:checked').value === "size";
  const limits = (defaults && defaults.limits) || {}, mine = { picture: files.picture, last: files.last };
  for (const f of fieldsOf()) {
    if (exact ? f.name === "max-area" : f.name === "width" || f.name === "height") continue;
    if (f.type === "checkbox") { if (f.checked) body.append(f.name, "true"); }
    else if (f.type === "file") { if (f.files.length) body.append(f.name, f.files[0]); }
    else if (f.name === "prompt" || f.value.trim() !== "") body.append(f.name, f.name === "prompt" || f.name === "negative" ? f.value : f.value.trim());
  }
  if (exact && !$("width").value.trim() && $("width").placeholder !== "width") { body.append("width", $("width").placeholder); body.append("height", $("height").placeholder); }
  if (mine.picture && !$("picture-field").hidden) body.append("input_reference", mine.picture, mine.picture.name || "picture");
  if (mine.last && !$("last-field").hidden) body.append("last_image", mine.last, mine.last.name || "last");
  for (const f of [mine.picture, mine.last])
    if (f && limits.body_bytes && f.size > limits.body_bytes) { showError(f === mine.last ? "last_image" : "input_reference", `The picture has ${bytes(f.size)}, the server takes at most ${bytes(limits.body_bytes)}.`); return; }
  sendKey = sendKey || hex(16);
  $("submit").disabled = true;
  put($("submit"), "Sending");
  try {
    const job = await ask("v1/videos", { method: "POST", body, headers: { "Idempotency-Key": sendKey }, wait: UPLOAD_MS });
    sendKey = "";
    if (mine.picture || mine.last) keepSent(job.id, mine);
    take(job);
    showQueue();
    location.hash = job.id;
    view("job");
    say("The job was accepted.");
    pollSoon(500);
  } catch (err) {
    if (!(err instanceof Failure)) throw err;
    if (err.status === 0) showError("", `${err.message}. Whether the job was accepted is not known; sending the same again cannot make it twice.`);
    else if (err.status !== 401) showError(err.param, err.message + (err.retry ? ` Try again in ${seconds(err.retry)}.` : ""));
  } finally {
    $("submit").disabled = false;
    put($("submit"), "Make the video");
  }
});

/* The form as the job was. Its picture comes from this page, else from the server. */
async function again(job) {
  if (!job) return;
  const d = (defaults && defaults.defaults) || {}, values = { shape: "size", prompt: job.prompt || "", width: job.width, height: job.height, seed: job.seed ?? "" };
  for (const f of fieldsOf()) if (f.type !== "file" && !(f.name in values)) values[f.name] = f.type === "checkbox" ? false : "";
  for (const [name, v] of Object.entries({ frames: job.frames, fps: job.fps, steps: job.steps, guidance: job.guidance, negative: job.negative_prompt }))
    values[name] = v === undefined || v === null || String(v) === String(d[name] ?? "") ? "" : String(v);
  for (const f of fieldsOf()) { /* the other options, where the job tells them */
    const v = job[f.name.replaceAll("-", "_")];
    if (MAIN.includes(f.name) || v === undefined || v === null) continue;
    if (f.type === "checkbox") values[f.name] = v === true;
    else if (String(v) !== String(d[f.name] ?? "") && !(f.name === "guidance-2" && v === job.guidance) && !(f.name === "priority" && !v)) values[f.name] = String(v);
  }
  writeFields(values);
  clearErrors();
  choose("picture", null); choose("last", null);
  saveDraft(); showHints();
  view("new");
  $("new").scrollTop = 0;
  $("prompt").focus();
  $("prompt").select();
  say("The form is filled from the job.");
  const mine = await findSent(job.id);
  for (const which of ["picture", "last"]) {
    if ($(`${which}-field`).hidden) continue;
    if (mine[which]) choose(which, mine[which]);
    else put($(`${which}-name`), "The job's picture is not kept here: choose it again.");
  }
}

/* ---- pictures of jobs that this browser sent ----
 * The server keeps a picture until the video is made; the browser keeps the newest ones, for "again
 * with changes". Where it has no database, nothing is kept. */
const SENT = 60;

function sentStore(mode, work) {
  return new Promise((done, failed) => {
    const open = indexedDB.open("sluice", 1);
    open.onupgradeneeded = () => open.result.createObjectStore("sent", { keyPath: "id" }).createIndex("at", "at");
    open.onerror = () => failed(open.error);
    open.onsuccess = () => {
      const change = open.result.transaction("sent", mode), asked = work(change.objectStore("sent"));
      change.oncomplete = () => { open.result.close(); done(asked && asked.result); };
      change.onabort = () => { open.result.close(); failed(change.error); };
    };
  });
}
function keepSent(id, { picture, last }) {
  sentStore("readwrite", (store) => {
    store.put({ id, picture, last, at: Date.now() });
    store.index("at").getAllKeys().onsuccess = (e) => { for (const old of e.target.result.slice(0, -SENT)) store.delete(old); };
  }).catch(() => {});
}
const findSent = (id) => sentStore("readonly", (store) => store.get(id)).then((found) => found || {}, () => ({}));
const forgetSent = (id) => sentStore("readwrite", (store) => { store.delete(id); }).catch(() => {});

/* ---- begin ---- */
function fromHash() {
  const id = location.hash.slice(1);
  if (!/^video_[0-9a-zA-Z_-]+$/.test(id)) { if (!id) select(""); return; }
  select(id);
  view("job");
}
addEventListener("hashchange", fromHash);
document.addEventListener("visibilitychange", () => { if (!document.hidden) pollSoon(); else watch(); });
addEventListener("online", () => pollSoon());

view("new");
$("token-open").hidden = !token;
restoreDraft();
showHints();
findSent("draft").then((mine) => { for (const which of ["picture", "last"]) if (mine[which] && !files[which]) choose(which, mine[which]); });
fromHash();
askReady();
askDefaults();
pollNow();
