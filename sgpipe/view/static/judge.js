// The page of plans: draws samples, and follows the precision of each plan while people judge.
import { getJson } from "./image_dom.js";
import { person, rename } from "./person.js";

const BETWEEN = 5000;
const form = document.getElementById("new-plan");
let drawn = null;
let judge = person();

const percent = (share) => `${(100 * share).toFixed(1)}%`;
const number = (value) => value.toLocaleString("en");

function more(found) {
  if (found.more === 0) return `The interval is within ±${100 * found.margin}%.`;
  if (found.more === null) return `±${100 * found.margin}% takes more judgements than a plan can have.`;
  const enough = found.more <= found.open ? "" : `, more than this plan has open questions`;
  return `About ${number(found.more)} more until ±${100 * found.margin}%${enough}.`;
}

function showGroups(card, found) {
  const list = card.querySelector("[data-show=groups]");
  list.replaceChildren(...found.groups.map((group) => {
    const item = document.createElement("li"), bar = document.createElement("progress");
    bar.setAttribute("aria-label", "Evidence");
    bar.value = group.share;
    item.append(bar, ...group.lines.map((line) => Object.assign(document.createElement("bdi"), { textContent: `${line} ` })));
    return item;
  }));
  card.querySelector("[data-show=more]").textContent = `${number(found.open)} open question${found.open === 1 ? "" : "s"}`;
  go(card, found);
}

function go(card, found) {
  const aboutAnswers = card.querySelector("[data-show=about_answers]");
  if (aboutAnswers) aboutAnswers.textContent = found.about_answers;
  const link = card.querySelector("[data-go]");
  if (link) {
    link.href = `/judge/${encodeURIComponent(card.dataset.plan)}?by=${encodeURIComponent(judge)}`;
    link.hidden = !found.question;
  }
}

function show(card, found) {
  if (found.groups) return showGroups(card, found);
  const { value, low, high } = found.precision, isSample = found.kind !== "doubts", asked = found.strata.reduce((sum, stratum) => sum + stratum.sampled, 0);
  const say = (name, text) => { card.querySelector(`[data-show=${name}]`).textContent = text; };
  if (isSample) {
    say("value", value === null ? "–" : percent(value));
    say("interval", value === null ? "no judgements yet" : `correct; 95% interval ${percent(low)} to ${percent(high)}`);
  }
  const conflicts = found.conflicts ? ` (people differ on ${number(found.conflicts)})` : "";
  say("counts", `${number(asked - found.open)} judged, ${number(found.unsure)} unsure${conflicts}, ${number(found.open)} open`);
  say("more", isSample ? more(found) : "");
  card.querySelector("progress").value = asked - found.open;
  go(card, found);
}

async function follow() {
  for (const card of document.querySelectorAll(".plan")) {
    if (document.hidden) break;
    try {
      show(card, await getJson(`/api/plans/${encodeURIComponent(card.dataset.plan)}?by=${encodeURIComponent(judge)}`));
    } catch (error) {
      card.querySelector("[data-show=more]").textContent = `Not up to date: ${error.message}`;
    }
  }
  setTimeout(follow, BETWEEN);
}

async function drawSample(event) {
  event.preventDefault();
  const values = new FormData(form), kind = values.get("kind"), seed = values.get("seed"), button = form.querySelector("button");
  const status = document.getElementById("drawing");
  const plan = { id: drawn ??= crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(36).slice(2)}`, kind, count: Number(values.get("count")), by: judge, run: form.dataset.run };
  if (kind === "search") plan.search = form.dataset.search;
  if (kind === "certificate") Object.assign(plan, { precision: Number(values.get("precision")), by_predicate: values.has("by_predicate") });
  if (kind === "recall") plan.boxes = Number(values.get("boxes"));
  if (seed) plan.seed = Number(seed);
  button.disabled = true;
  status.className = "";
  status.textContent = "Drawing…";
  try {
    const made = await getJson("/api/plans", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(plan) });
    location.assign(`/judge/${encodeURIComponent(made.plan)}?by=${encodeURIComponent(judge)}`);
  } catch (error) {
    status.className = "bad";
    status.textContent = error.message;
    if (error.status) drawn = null; // without an answer, the plan may be there
  }
  button.disabled = false;
}

if (form) {
  const field = document.getElementById("person");
  field.value = judge;
  field.addEventListener("change", () => {
    judge = rename(field.value);
    field.value = judge;
  });
  form.addEventListener("submit", drawSample);
}
follow();
