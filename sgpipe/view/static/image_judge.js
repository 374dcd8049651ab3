// Sending judgements. A judgement is pending from the moment it is given until the server says that it is in the file; it is
// kept in the browser meanwhile, so that neither a failing server nor a closed page loses it.
import { getJson } from "./image_dom.js";

const PENDING = "sgpipe-unsaved ", DONE = "sgpipe-answers", REMEMBERED = 500;
const PATIENCE = 15000, FIRST_WAIT = 2000, LONGEST_WAIT = 30000; // milliseconds
const PERMANENT = [400, 403, 404, 409, 413, 415, 422]; // trying again cannot help

// storage: by name, as a browser that stores nothing refuses even to name it.
function read(storage, key) {
  try {
    return JSON.parse(window[storage].getItem(key));
  } catch {
    return null;
  }
}

function write(storage, key, value) {
  try {
    if (value === null) window[storage].removeItem(key);
    else window[storage].setItem(key, JSON.stringify(value));
  } catch {
    // Without storage, answers are safe as long as the page is open.
  }
}

function unsaved(run) {
  try {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(PENDING));
    return keys.map((key) => read("localStorage", key)).filter((kept) => kept?.run === run);
  } catch {
    return [];
  }
}

// Pages that are not local and not encrypted have no crypto.randomUUID.
const identifier = () =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export class Judge {
  // changed(): the state is another. States: idle, saving, unsaved (tried again), refused (not tried again).
  constructor(run, changed) {
    this.run = run;
    this.changed = changed;
    this.state = "idle";
    this.reason = "";
    this.pending = null;
  }

  get busy() {
    return this.pending !== null;
  }

  // Sends what closed pages left unsaved; resolves to how many answers are saved now. An answer that another open page
  // still sends is not written twice, as it has the same id.
  async resume() {
    let saved = 0;
    for (const kept of unsaved(this.run)) {
      if (this.busy) break;
      this.pending = kept;
      if (await this.attempt()) saved += 1;
    }
    return saved;
  }

  // Resolves to the stored line once the server has it, or to null if the answer is given up.
  save(line, text) {
    if (this.busy) return Promise.resolve(null);
    this.pending = { line: { id: identifier(), run: this.run, ...line }, text, run: this.run };
    write("localStorage", PENDING + this.pending.line.id, this.pending);
    return this.attempt();
  }

  attempt() {
    this.wait = FIRST_WAIT;
    const promise = new Promise((resolve) => {
      this.resolve = resolve;
    });
    this.post();
    return promise;
  }

  async post() {
    clearTimeout(this.timer);
    if (this.state === "saving") return;
    this.change("saving");
    try {
      const stored = await getJson("/api/judgements", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(this.pending.line),
        signal: AbortSignal.timeout(PATIENCE),
      });
      const done = read("sessionStorage", DONE) ?? [];
      const { id, split, image_id, subject, object, predicate, undoes } = this.pending.line;
      const own = { id, split, image_id, subject, object, predicate, run: this.run };
      if (undoes) write("sessionStorage", DONE, done.filter((answer) => answer.id !== undoes));
      else if (predicate !== undefined) write("sessionStorage", DONE, [...done, own].slice(-REMEMBERED));
      this.end(stored);
    } catch (error) {
      const refused = PERMANENT.includes(error.status);
      this.reason = error.status ? error.message : "the server does not answer";
      if (!refused) {
        this.timer = setTimeout(() => this.post(), this.wait);
        this.wait = Math.min(2 * this.wait, LONGEST_WAIT);
      }
      this.change(refused ? "refused" : "unsaved");
    }
  }

  discard() {
    clearTimeout(this.timer);
    this.end(null);
  }

  end(stored) {
    write("localStorage", PENDING + this.pending.line.id, null);
    this.pending = null;
    this.change("idle");
    this.resolve?.(stored);
  }

  change(state) {
    this.state = state;
    this.changed();
  }

  // This session's answers that are not taken back, the latest last.
  get last() {
    return (read("sessionStorage", DONE) ?? []).filter((answer) => answer.run === this.run).at(-1) ?? null;
  }
}
