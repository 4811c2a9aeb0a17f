/* base.js - what the pages have in common: elements, figures in words, asking the server with a
 * token. A page says what is done when a token is wanted (wantToken). */
"use strict";

const ANSWER_MS = 20000;

const $ = (id) => document.getElementById(id);

/* An element with properties, attributes (where the name has a dash or is role) and children. */
function make(tag, props = {}, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(props))
    if (k.includes("-") || k === "role" || k === "for") e.setAttribute(k, v);
    else e[k] = v;
  e.append(...children);
  return e;
}
function put(e, text) { if (e.textContent !== text) e.textContent = text; }
function say(text) { $("said").textContent = ""; setTimeout(() => { $("said").textContent = text; }, 50); }
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/* ---- figures in words ---- */
function seconds(s) {
  if (s === null || s === undefined || !isFinite(s)) return "";
  if (s < 0.00005) return s > 0 ? "under 0.1 ms" : "0 s";
  if (s < 0.0995) return `${(s * 1000).toFixed(s < 0.00995 ? 1 : 0)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 100) return `${Math.round(s)} s`;
  if (s < 3570) return `${Math.floor(Math.round(s) / 60)} min ${Math.round(s) % 60} s`;
  const minutes = Math.round(s / 60);
  return minutes < 2880 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.round(minutes / 1440)} days`;
}
const whole = (s) => (s < 1 ? "under 1 s" : seconds(s)); /* of two times in whole seconds */
function bytes(n) {
  if (n < 1000) return `${n} bytes`;
  const unit = ["kB", "MB", "GB", "TB"];
  let i = -1;
  do { n /= 1000; i++; } while (n >= 999.5 && i < 3);
  return `${n < 10 ? n.toFixed(1) : Math.round(n)} ${unit[i]}`;
}
function clock(s) {
  const d = new Date(s * 1000), today = new Date().toDateString() === d.toDateString();
  return today ? d.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })
    : d.toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
}
const isCancelled = (job) => job.status === "failed" && job.error && job.error.code === "cancelled";
const isActive = (job) => job.status === "queued" || job.status === "in_progress";
const stateOf = (job) => (isCancelled(job) ? "cancelled" : job.status);
const IN_WORDS = { queued: "waiting", in_progress: "running", completed: "done", failed: "failed", cancelled: "cancelled" };
const percentOf = (job) => Math.max(0, Math.min(100, Math.round(job.progress || 0)));
const titleOf = (job) => job.prompt || "(no prompt)";

/* ---- asking the server ---- */
class Failure extends Error {
  constructor(status, message, more = {}) { super(message); this.status = status; Object.assign(this, more); }
}

let token = "", keep = false;
try {
  token = sessionStorage.getItem("sluice-token") || localStorage.getItem("sluice-token") || "";
  keep = !!localStorage.getItem("sluice-token");
} catch { /* storage is off: the token lives as long as the page */ }

function headersWithToken(more) { return token ? { ...more, Authorization: `Bearer ${token}` } : { ...more }; }

async function failureOf(answer) {
  let e = {};
  try { e = (await answer.json()).error || {}; } catch { /* a proxy's page, or nothing */ }
  const retry = Number(answer.headers.get("Retry-After")) || 0;
  return new Failure(answer.status, e.message || `The server answered ${answer.status} ${answer.statusText}`.trim(),
    { param: e.param || "", code: e.code || "", retry });
}

/* JSON, where a seed of 64 bits stays as it is: as a text if a number here cannot hold it. Within a
 * string the quotes of "seed": would be escaped. */
const parse = (text) => JSON.parse(text.replace(/"seed":\s*(\d{16,})/g, '"seed":"$1"'));

/* The answer as JSON, text or blob. Throws Failure; status 0: no answer at all. */
async function ask(path, { method = "GET", body, headers, as = "json", wait = ANSWER_MS } = {}) {
  const stop = new AbortController(), late = setTimeout(() => stop.abort(), wait);
  try {
    const answer = await fetch(path, { method, body, headers: headersWithToken(headers), signal: stop.signal, cache: "no-store" });
    if (!answer.ok) throw await failureOf(answer);
    return as === "json" ? parse(await answer.text()) : await answer[as]();
  } catch (e) {
    if (e instanceof Failure) { if (e.status === 401) wantToken(e.message); throw e; }
    if (e instanceof SyntaxError) throw new Failure(500, "The server's answer is no JSON");
    throw new Failure(0, stop.signal.aborted ? `The server gave no answer in ${wait / 1000} s` : "The server cannot be reached");
  } finally { clearTimeout(late); }
}
