// The page of a recall plan: a person names what holds between numbered boxes, by keyboard, and sees nothing of the run's
// relations. An answer is all relations of an image; the page goes on once the server has it.
import { bdi, dot, getJson, html, isolated } from "./image_dom.js";
import { Judge } from "./image_judge.js";
import { Stage } from "./image_stage.js";
import { person, readOnly, rename } from "./person.js";

const PLAIN = { phrase: null, score: null, attributes: [], crowd: false, missing: false };
const element = (id) => document.getElementById(id);
const say = (text) => { element("status").textContent = text; };
const plan = element("answer")?.dataset.plan ?? location.pathname.split("/").at(-1);
const entry = element("entry");
const stage = new Stage("the image", { choose: () => {}, point: () => {}, pick: write });
element("photos").append(stage.element);
let asked = null, named = [], words = [], moving = false;

const judge = new Judge(element("answer")?.dataset.run, () => {
  const { state, reason } = judge, box = element("unsaved");
  box.hidden = !["unsaved", "refused"].includes(state);
  box.replaceChildren(
    `Not saved: ${reason}. `,
    html("button", { type: "button", click: () => judge.post() }, "Try again"),
    state === "refused" ? html("button", { type: "button", click: () => judge.discard() }, "Discard") : "",
  );
});

async function load(at = null) {
  if (moving) return;
  moving = true;
  const params = new URLSearchParams({ by: person(), ...(at === null ? {} : { at }) });
  try {
    asked = await getJson(`/api/recall/${encodeURIComponent(plan)}?${params}`);
    named = asked.question?.relations ?? [];
    show();
  } catch (error) {
    say(`The question cannot be shown: ${error.message}`);
  } finally {
    moving = false;
  }
}

function show() {
  const { question, number, of, left } = asked;
  element("about").textContent = question ? `Question ${number + 1} of ${of}, ${left} open` : `You have answered all ${of} questions.`;
  element("photos").hidden = !question;
  if (element("answer")) element("answer").hidden = !question;
  if (question) stage.show(question.image, question.objects.map((object, at) => ({ ...object, ...PLAIN, name: `${at + 1}` })));
  stage.caption.replaceChildren(...(question?.objects ?? []).flatMap(({ name, colour }) => [dot(colour), " ", bdi(name), "  "]));
  draw();
  if (question && entry) {
    entry.focus();
    suggest();
  }
}

const place = (index) => asked.question.objects.findIndex((object) => object.index === index);

function draw() {
  const objects = asked.question?.objects ?? [];
  if (asked.question) stage.draw({ relations: [], chosen: null, pointed: null, picked: [...objects.keys()] }); // all have their names
  const item = (each, at) => html("li", {},
    bdi(`${objects[place(each.subject)].name} ${each.predicate} ${objects[place(each.object)].name}`),
    html("button", { type: "button", "aria-label": `Take back ${isolated(each.predicate)}`, click: () => take(at) }, "✕"));
  element("named").replaceChildren(...(asked.question ? named : []).map(item));
}

function take(at) {
  named = named.filter((_, other) => other !== at);
  draw();
  entry.focus();
}

function write(index) {
  if (index === null || !entry) return;
  entry.value = `${entry.value.trim()} ${index + 1} `.trimStart();
  entry.focus();
  suggest();
}

const parsed = (text) => /^(\d+)\s+(.+?)\s+(\d+)$/.exec(text.trim());
const typed = () => /^\d+\s+(\D.*?)?\s*$/.exec(entry.value)?.[1]?.trim() ?? null;

// Words of the whole run, whatever it says of this image.
async function suggest() {
  const prefix = typed() ?? "";
  const found = await getJson(`/api/predicates?${new URLSearchParams({ prefix })}`).catch(() => []);
  if (prefix !== (typed() ?? "")) return;
  words = found.map(({ predicate }) => predicate);
  const name = (word, at) => [at ? ", " : "", prefix && !at ? html("b", {}, bdi(word)) : bdi(word)];
  element("suggested").replaceChildren(prefix ? "Tab: " : "Words of the run: ", ...words.flatMap(name));
}

function add() {
  const found = parsed(entry.value), objects = asked.question.objects;
  if (!found) return say("Type a number, a predicate and a number, such as 1 riding 2.");
  const [subject, object] = [found[1], found[3]].map((text) => objects[Number(text) - 1]?.index);
  const predicate = found[2].trim().replace(/\s+/g, " ");
  if (subject === undefined || object === undefined) return say(`The boxes are numbered from 1 to ${objects.length}.`);
  if (subject === object) return say("A relation is one between two boxes.");
  if (predicate.length > 200) return say("A predicate has at most 200 characters.");
  if (!named.some((each) => each.subject === subject && each.object === object && each.predicate === predicate)) named.push({ subject, object, predicate });
  entry.value = "";
  say("");
  suggest();
  draw();
}

async function save(relations) {
  if (judge.busy || moving) return;
  const { split, image_id } = asked.question.image, { number } = asked;
  const line = { plan, split, image_id, by: person(), relations };
  entry.value = ""; // what is typed from here on is for the next question
  if (!(await judge.save(line, `question ${number + 1}`))) return;
  await load();
  say(`Saved: question ${number + 1}, ${relations === null ? "skipped" : relations.length === 1 ? "1 relation" : `${relations.length} relations`}.`);
}

function enter() {
  const text = entry.value.trim();
  if (text === "-") save(null);
  else if (text) add();
  else save(named);
}

const before = () => (asked?.number ?? 0) > 0 && load(asked.number - 1);
element("before").addEventListener("click", before);
if (!readOnly) {
  element("answer").addEventListener("submit", (event) => { event.preventDefault(); enter(); });
  element("skip").addEventListener("click", () => save(null));
  entry.addEventListener("input", suggest);
  entry.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.repeat) event.preventDefault();
    else if (event.key === "Escape") entry.value = "";
    else if (event.key === "Tab" && !event.shiftKey && words.length && typed() && typed() !== words[0]) {
      event.preventDefault();
      entry.value = entry.value.replace(/^(\d+\s+).*$/, (_, start) => `${start}${words[0]} `);
      suggest();
    } else if (event.key === "Backspace" && !entry.value && named.length) take(named.length - 1);
    else if (event.key === "ArrowUp" && !entry.value) { event.preventDefault(); before(); }
  });
  element("person").value = person();
  element("person").addEventListener("change", () => { element("person").value = rename(element("person").value); load(); });
}
if (!readOnly) await judge.resume();
await load();
document.body.dataset.ready = "true";
