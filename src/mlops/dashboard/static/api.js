// The way to the server: the same JSON routes that every program has, with a key if one was given.

import { clock, say } from "./dom.js";

export const root = new URL("../../", import.meta.url).pathname.replace(/\/$/, "");
const KEY = "mlops-key";

/** What the server, or the way to it, said no with. `status` is 0 if nobody answered. */
export class Trouble extends Error {
  constructor(status, message, wait = 0) {
    super(message);
    this.status = status;
    this.wait = wait;
  }

  get needsKey() {
    return this.status === 401 || this.status === 403;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

async function ask(path, options = {}) {
  const headers = { accept: "application/json", ...options.headers };
  const given = key.get();
  if (given) headers["x-api-key"] = given;
  let answer;
  try {
    answer = await fetch(root + path, { ...options, headers, cache: "no-store" });
  } catch {
    throw new Trouble(0, "the server does not answer");
  }
  const body = await answer.json().catch(() => null);
  if (answer.ok) return body;
  throw new Trouble(answer.status, reason(answer.status, body, needed(path, options.method)), Number(answer.headers.get("retry-after")) || 0);
}

const needed = (path, method) => (path.startsWith("/admin/") ? "admin" : method ? "predict" : "read");

function reason(status, body, role) {
  const said = Array.isArray(body?.detail) ? body.detail.map((one) => one.msg).join("; ") : body?.message;
  if (status === 401) {
    const made = role === "admin" ? " One is made with: mlops keys add NAME --role admin." : "";
    return `An API key with the role ${role} is needed: give one with the button “API key”.${made}`;
  }
  if (status === 403) return `A key with the role ${role === "admin" ? role : `${role}, or admin,`} for this use case is needed: ${said || "this one is refused"}.`;
  return said || `the server answered with status ${status}`;
}

export const get = (path) => ask(path);

export const post = (path, body) =>
  ask(path, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "content-type": "application/json", "x-client-id": "dashboard" },
  });

/** Ask; return what `absent` says where the route, or what it tells of, is not there. */
export async function getOr(path, absent) {
  try {
    return [await get(path), null];
  } catch (trouble) {
    if (!(trouble instanceof Trouble)) throw trouble;
    return [null, trouble.status === 404 ? absent || trouble.message : trouble.message];
  }
}

// --- live values

const pulse = document.getElementById("pulse");
const said = document.getElementById("said");
let lastAnswer = null;
let connected = true;

function beat(trouble) {
  pulse.className = trouble ? "pulse stale" : "pulse";
  if (trouble) {
    const since = lastAnswer ? `, shown is ${clock(lastAnswer)}` : "";
    say(pulse, trouble.status ? `not live: status ${trouble.status}${since}` : `no answer${since}`);
    if (connected) say(said, `Values are not live any more: ${trouble.message}`);
  } else {
    lastAnswer = Date.now();
    say(pulse, `live ${clock(lastAnswer)}`);
    if (!connected) say(said, "Values are live again");
  }
  connected = !trouble;
}

/**
 * Call `load` and hand its result to `show`, now and every `seconds`, as long as the page is seen.
 * When it fails, `show` is not called: what was shown stays, and the header says since when.
 * Waits as long as the server asks to. `failed` is told of the first failure, before any success.
 */
export function live(load, show, failed, seconds = 2) {
  let timer = 0;
  let shown = false;
  async function turn() {
    clearTimeout(timer);
    if (document.hidden) return;
    let wait = seconds;
    try {
      const found = await load();
      beat(null);
      show(found);
      shown = true;
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      beat(trouble);
      if (!shown) failed(trouble.message);
      wait = Math.max(wait, trouble.wait);
    } finally {
      timer = setTimeout(turn, wait * 1000);
    }
  }
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) turn();
  });
  return turn();
}
