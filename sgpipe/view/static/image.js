// The page of an image: what is chosen, where to go next, and keys. The address always says what is shown.
import { html, bdi, counted, getJson, isolated, sentence, shortened } from "./image_dom.js";
import { Stage } from "./image_stage.js";
import { Graph } from "./image_graph.js";
import { Judge } from "./image_judge.js";
import { changeForm, addForm } from "./image_forms.js";
import { showCaptions, showComparison, showProvenance, showRelations } from "./image_panels.js";

const element = (id) => document.getElementById(id);
const readOnly = document.body.dataset.readOnly === "true";
const NAME = "sgpipe-name", SEARCHES = ["q", "subject", "predicate", "object", "dataset", "split", "status", "judged", "queue", "low", "high"];
let person = (readOnly ? "" : localStorage.getItem(NAME)) || document.body.dataset.name || "anonymous";
let values = JSON.parse(element("values").textContent);
let chosenKey = null, otherKey = null, pinned = null, pointed = null, form = null, all = false, moving = false;
let judged = new Map(), ahead = null;

const act = { choose, pick, point };
const stage = new Stage("Image", act);
const otherStage = new Stage("Image in the other run", { choose: chooseOther, pick: () => {}, point: () => {} });
const graph = new Graph(element("graph"), act);
const judge = new Judge(values.run, showBar);

// --- what is shown

// The run's relations, and those that people added.
function relations() {
  const added = [...judged.values()].filter((state) => state.added && !values.relations.some((relation) => relation.key === state.key) && state.subject < values.objects.length && state.object < values.objects.length);
  return [...values.relations, ...added.map(({ key, subject, object, predicate }) => ({
    key, subject, object, predicate, confidence: null, rank: null, agreement: null, stated: [], elsewhere: [], added: true, origin: "It was added by hand: the run does not have it." }))];
}

const chosen = () => relations().find((relation) => relation.key === chosenKey) ?? null;
const params = () => new URLSearchParams(location.search);

function show() {
  const { image } = values;
  document.title = `Image ${isolated(image.image_id)} · sgpipe view`;
  element("image-id").textContent = image.image_id;
  element("about").replaceChildren(bdi(image.dataset), " · ", bdi(image.split), " · ", bdi(shortened(image.file_name, 80)), ` · ${image.width} × ${image.height} · ${counted(values.objects.length, "box").replace("boxs", "boxes")} · `, html("span", { title: `row ${image.row}` }, bdi(image.shard)));
  element("failed").hidden = image.status !== "error";
  element("failed").replaceChildren(html("b", {}, "The image failed: "), bdi(shortened(image.error ?? "", 500)));
  element("back").href = values.gallery;
  stage.show(image, values.objects);
  const two = values.other && !values.other.lacks;
  stage.caption.textContent = values.other ? "This run" : "";
  if (two) {
    otherStage.show(values.other.image, values.other.objects);
    otherStage.caption.replaceChildren(bdi(values.other.title));
  }
  element("photos").replaceChildren(...(two ? [stage.element, otherStage.element] : [stage.element]));
  element("photos").classList.toggle("two", Boolean(two));
  graph.show(values);
  showCaptions(element("captions"), values);
}

function draw() {
  const now = chosen(), list = relations(), box = pointed ?? pinned;
  const differs = values.other && !values.other.lacks ? new Set(values.other.here) : new Set();
  stage.draw({ relations: list, chosen: now, pointed: box, picked: form?.picked ?? null, differs: (relation) => differs.has(relation.key) });
  graph.draw({ chosen: now, pointed: box });
  if (values.other && !values.other.lacks) drawOther(now);
}

// The same relation in the other run, or the one chosen there.
function drawOther(now) {
  const { other } = values, only = new Set(other.there);
  const key = otherKey ?? other.both.find(([here]) => here === now?.key)?.[1];
  const relation = other.relations.find((each) => each.key === key) ?? null;
  otherStage.draw({ relations: other.relations, chosen: relation, pointed: null, differs: (each) => only.has(each.key), named: !now });
}

function showAll() {
  showLists();
  draw();
  showBar();
}

function showLists() {
  const now = chosen();
  showProvenance(element("provenance"), values, now, judged.get(chosenKey), { name: person, undo: readOnly ? null : (answer) => takeBack({ ...answer }) });
  showRelations(element("relations"), values, { relations: relations(), chosen: now, pinned, judged, all, choose,
    showAll: () => { all = true; showLists(); }, unpin: () => pick(null) });
  showComparison(element("comparison"), values, { chosen: now, choose, chooseOther });
}

function showBar() {
  const now = chosen(), unsaved = element("unsaved");
  element("sentence").replaceChildren(now ? sentence(now, values.objects) : html("span", { class: "quiet" }, values.relations.length ? "No relation is chosen." : values.why ?? "No relations."));
  for (const [id, url] of [["previous", values.previous], ["next", values.next]]) {
    if (url) element(id).href = url;
    else element(id).removeAttribute("href");
    element(id).setAttribute("aria-disabled", String(!url));
  }
  if (readOnly) return;
  const failed = judge.state === "unsaved" || judge.state === "refused";
  unsaved.hidden = !failed;
  if (failed) {
    const again = judge.state === "unsaved" ? html("button", { type: "button", click: () => judge.post() }, "Try again") : "";
    unsaved.replaceChildren(html("b", {}, "Not saved: "), bdi(judge.reason), html("span", {}, " Your answer is kept here: ", bdi(judge.pending.text), judge.state === "unsaved" ? "; it is sent again by itself. " : ". "),
      again, " ", html("button", { type: "button", click: () => judge.discard() }, "Discard it"));
  }
  for (const button of element("acts").querySelectorAll("button")) {
    const needs = !["add", "undo"].includes(button.dataset.act);
    button.disabled = judge.busy || (needs && !now) || (button.dataset.act === "undo" && !judge.last) || (button.dataset.act === "swap" && now && (now.subject === now.object || values.objects[now.object].missing));
    const mine = judged.get(chosenKey)?.answers.find((answer) => answer.by === person);
    button.setAttribute("aria-pressed", String(mine !== undefined && (mine.verdict === button.dataset.act || mine.change?.action === button.dataset.act)));
  }
  if (judge.state !== "idle") say(judge.state === "saving" ? "Saving …" : "");
}

function say(text) { element("status").textContent = text; }

// --- choosing

function choose(key, { keepFocus = false } = {}) {
  chosenKey = key;
  otherKey = null;
  pinned = null;
  const address = new URL(location.href);
  address.searchParams.set("relation", key);
  history.replaceState(null, "", address);
  showAll();
  if (keepFocus) element("relations").querySelector("[aria-selected=true]")?.focus({ preventScroll: true });
  reveal(element("relations").querySelector("[aria-selected=true]"));
  findNeighbours();
}

// Scrolls the list, and not the page: the image stays where it is.
function reveal(item) {
  if (!item) return;
  const list = item.parentElement, top = item.offsetTop - list.offsetTop;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + item.offsetHeight - list.clientHeight;
}

function chooseOther(key) {
  otherKey = key;
  draw();
}

function pick(index) {
  if (form?.pick) return index !== null && form.pick(index);
  pinned = index === pinned ? null : index;
  showLists();
  draw();
}

function point(index) {
  if (index === pointed) return;
  pointed = index;
  draw();
}

async function findNeighbours() {
  const { split, image_id } = values.image, key = chosenKey;
  try {
    const found = await getJson(`/api/neighbours/${path(split, image_id)}?${params()}`);
    if (key !== chosenKey || values.image.image_id !== image_id) return;
    Object.assign(values, found);
    showBar();
    prefetch();
  } catch (error) {
    say(error.message);
  }
}

// --- going on

const path = (split, image_id) => `${encodeURIComponent(split)}/${image_id.split("/").map(encodeURIComponent).join("/")}`;
const asJson = (address) => `/api${address.pathname}${address.search}`;

// The next image is there when it is wanted.
function prefetch() {
  if (!values.next || ahead?.url === values.next) return;
  const url = values.next;
  ahead = { url, values: getJson(asJson(new URL(url, location.href))).then((found) => { new Image().src = found.image.photo; return found; }) };
  ahead.values.catch(() => { if (ahead?.url === url) ahead = null; });
}

async function go(url, { push = true } = {}) {
  if (moving) return;
  moving = true;
  try {
    const found = ahead?.url === url ? await ahead.values : await getJson(asJson(new URL(url, location.href)));
    const states = await readJudged(found.image);
    if (push) history.pushState(null, "", url);
    ahead = null;
    arrive(found, states);
  } catch (error) {
    say(`The image cannot be shown: ${error.message}`);
  } finally {
    moving = false;
  }
}

// Nothing waits in here: what is drawn is always of one image.
function arrive(found, states) {
  values = found;
  judged = states;
  all = false;
  pinned = pointed = otherKey = null;
  closeForm();
  chosenKey = [values.chosen, params().get("relation")].find((key) => key && relations().some((relation) => relation.key === key)) ?? relations()[0]?.key ?? null;
  show();
  showAll();
  prefetch();
  const plan = params().get("plan");
  if (plan && !element("precision").textContent) showPlan(plan);
  if (!readOnly) {
    element("walk").value = walk();
    element("walking").hidden = plan !== null;
  }
}

// Where an answer leads: to the next relation of the image or of the search; by default of the search if there is one.
const walk = () => params().get("walk") ?? (SEARCHES.some((name) => params().has(name)) ? "search" : "image");

async function proceed() {
  const plan = params().get("plan"), list = relations();
  if (plan) return ask(plan);
  if (walk() === "search") return step("next");
  const next = list[list.findIndex((relation) => relation.key === chosenKey) + 1];
  if (next) choose(next.key);
  else say("This was the last relation of the image.");
}

async function step(where) {
  if (values[where]) return go(values[where]);
  say(where === "next" ? "This is the last hit of the search." : "This is the first hit of the search.");
}

async function ask(plan) {
  const found = await showPlan(plan);
  if (!found?.question) return found && say("All questions of the plan are answered.");
  const { split, image_id, subject, object, predicate } = found.question, next = params();
  next.set("relation", `${subject}-${object}-${predicate}`);
  await go(`/image/${path(split, image_id)}?${next}`);
}

// The precision so far; a plan's next open question is in the answer.
async function showPlan(plan) {
  try {
    const found = await getJson(`/api/plans/${encodeURIComponent(plan)}?by=${encodeURIComponent(person)}`);
    const { value, low, high } = found.precision, share = (number) => `${(100 * number).toFixed(1)}%`;
    const more = found.more === null ? "" : found.more ? `; about ${found.more.toLocaleString("en")} more answers until ±${100 * found.margin}%` : `; within ±${100 * found.margin}%`;
    const precision = value === null ? "no precision yet" : `precision ${share(value)} (95% interval ${share(low)} to ${share(high)})${more}`;
    element("precision").textContent = `Plan: ${counted(found.open, "question")} open, ${precision}`;
    return found;
  } catch (error) {
    say(`The plan does not answer: ${error.message}`);
    return null;
  }
}

// --- judging

// What people said about the relations of an image, by key.
async function readJudged({ split, image_id }) {
  try {
    const found = await getJson(`/api/judgements?${new URLSearchParams({ split, image_id })}`);
    return new Map(found.relations.map((state) => [`${state.subject}-${state.object}-${state.predicate}`, { ...state, key: `${state.subject}-${state.object}-${state.predicate}` }]));
  } catch (error) {
    say(`Judgements cannot be read: ${error.message}`);
    return new Map();
  }
}

async function renewJudged() {
  const { image } = values, found = await readJudged(image);
  if (image === values.image) judged = found;
}

const address = (relation) => ({ split: values.image.split, image_id: values.image.image_id, subject: relation.subject, object: relation.object, predicate: relation.predicate });
const named = (relation) => [values.objects[relation.subject].name, relation.predicate, values.objects[relation.object].name].map((text) => isolated(shortened(text, 40))).join(" ");

// Sends an answer about a relation; true once it is saved. `text`: in words.
async function send(relation, answer, text) {
  if (judge.busy || moving) return false;
  const plan = params().get("plan");
  const stored = await judge.save({ ...address(relation), by: person, ...(plan ? { plan } : {}), ...answer }, `${named(relation)}: ${text}`);
  if (stored) {
    await renewJudged();
    say(`Saved: ${named(relation)}: ${text}.`);
  }
  showAll();
  return stored !== null;
}

// Goes on once the answer is saved, unless the person went elsewhere meanwhile.
async function answer(relation, value, text) {
  const { href } = location;
  if (await send(relation, value, text) && location.href === href) await proceed();
}

async function takeBack(last) {
  if (judge.busy || moving) return;
  const { id, split, image_id, subject, object, predicate } = last;
  const stored = await judge.save({ split, image_id, subject, object, predicate, by: person, undoes: id }, "undo");
  if (!stored) return showAll();
  const key = `${subject}-${object}-${predicate}`, here = params();
  here.set("relation", key);
  if (split === values.image.split && image_id === values.image.image_id) {
    await renewJudged();
    if (relations().some((relation) => relation.key === key)) choose(key);
    else showAll();
  } else await go(`/image/${path(split, image_id)}?${here}`);
  say("Your answer is taken back.");
}

function open(made) {
  form = made;
  element("edit").replaceChildren(...made.fields);
  element("edit").hidden = false;
  made.start();
  draw();
}

function closeForm() {
  form = null;
  if (!readOnly) {
    element("edit").hidden = true;
    element("edit").replaceChildren();
  }
}

const cancel = () => { closeForm(); draw(); };

const acts = {
  right: () => answer(chosen(), { verdict: "right" }, "right"),
  wrong: () => answer(chosen(), { verdict: "wrong" }, "wrong"),
  unsure: () => answer(chosen(), { verdict: "unsure" }, "unsure"),
  skip: () => answer(chosen(), { verdict: "skip" }, "skipped"),
  swap: () => answer(chosen(), { change: { action: "swap" } }, "swapped"),
  delete: () => answer(chosen(), { change: { action: "delete" } }, "deleted"),
  undo: () => (judge.last ? takeBack(judge.last) : say("There is no answer of this session to take back.")),
  predicate: () => open(changeForm(chosen(), values.objects, { cancel, save: (predicate) => {
    const relation = chosen();
    closeForm();
    answer(relation, { change: { action: "predicate", predicate } }, `changed to ${isolated(predicate)}`);
  } })),
  add: () => open(addForm(values.objects, pinned, { cancel, redraw: draw, taken: (key) => relations().some((relation) => relation.key === key), save: async (relation) => {
    closeForm();
    if (await send(relation, { change: { action: "add" } }, "added")) choose(`${relation.subject}-${relation.object}-${relation.predicate}`);
  } })),
};

function turn(where) {
  say("");
  step(where);
}

function perform(name) {
  const button = element("acts")?.querySelector(`[data-act=${name}]`);
  if (button && !button.disabled && !moving) acts[name]();
}

// --- events

const keys = {
  r: () => perform("right"), w: () => perform("wrong"), u: () => perform("unsure"), s: () => perform("skip"), c: () => perform("predicate"),
  x: () => perform("swap"), d: () => perform("delete"), a: () => perform("add"), z: () => perform("undo"),
  n: () => turn("next"), p: () => turn("previous"), j: () => move(1), k: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1),
  f: () => chosen() && stage.fit([chosen().subject, chosen().object]), "+": () => stage.zoom(1.5), "=": () => stage.zoom(1.5), "-": () => stage.zoom(1 / 1.5), 0: () => stage.whole(),
  h: () => document.body.classList.toggle("bare"), g: () => { location.href = values.gallery; }, "?": () => element("keys").showModal(), "/": () => element("q")?.focus(),
  Escape: () => (form ? cancel() : pinned !== null ? pick(null) : point(null)),
};

function move(by) {
  say("");
  const list = pinned === null ? relations() : relations().filter((relation) => relation.subject === pinned || relation.object === pinned);
  const next = list[list.findIndex((relation) => relation.key === chosenKey) + by];
  const box = pinned;
  if (next) choose(next.key, { keepFocus: element("relations").contains(document.activeElement) });
  if (next && box !== null) pick(box);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || element("keys").open) return;
  const typing = event.target.closest("input, select, textarea");
  if (typing && event.key !== "Escape") return;
  const own = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!own || event.repeat && !["ArrowDown", "ArrowUp", "j", "k"].includes(event.key)) return;
  event.preventDefault();
  own();
});
element("acts")?.addEventListener("click", (event) => { const button = event.target.closest("[data-act]"); if (button) perform(button.dataset.act); });
element("edit")?.addEventListener("submit", (event) => { event.preventDefault(); form?.submit(); });
element("show-keys").addEventListener("click", () => element("keys").showModal());
for (const id of ["previous", "next"]) {
  element(id).addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || !values[id]) return;
    event.preventDefault();
    turn(id);
  });
}
if (!readOnly) {
  element("person").value = person;
  element("person").addEventListener("change", () => {
    person = element("person").value.trim() || document.body.dataset.name || "anonymous";
    localStorage.setItem(NAME, person);
    element("person").value = person;
    showAll();
  });
  element("walk").addEventListener("change", () => {
    const address = new URL(location.href);
    address.searchParams.set("walk", element("walk").value);
    history.replaceState(null, "", address);
    element("walk").blur();
  });
}
addEventListener("popstate", () => go(location.pathname + location.search, { push: false }));

arrive(values, await readJudged(values.image));
judge.resume()?.then(async (stored) => { await renewJudged(); showAll(); if (stored) say("The answer that was not saved before is saved now."); });
document.body.dataset.ready = "true";
