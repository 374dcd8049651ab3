// The page of an image: keys, clicks and judgements. The address always says what is shown.
import { addForm, changeForm } from "./image_forms.js";
import { isolated } from "./image_dom.js";
import { Judge } from "./image_judge.js";
import { chosen, element, find, keyOf, named, page, params, readJudged, readOnly } from "./image_state.js";
import { relations, rename, renewJudged, say } from "./image_state.js";
import { View } from "./image_view.js";
import { Walk } from "./image_walk.js";

const judge = new Judge(page.values.run, () => view.bar());
const view = new View({ choose, chooseOther, pick, point, undo: takeBack }, judge);
const walk = new Walk(view, { choose, leave: closeForm });

// --- choosing

function choose(key) {
  const list = element("relations"), focused = list.contains(document.activeElement);
  Object.assign(page, { chosenKey: key, otherKey: null });
  if (page.pinned !== null && ![find(key)?.subject, find(key)?.object].includes(page.pinned)) page.pinned = null;
  const address = new URL(location.href);
  address.searchParams.set("relation", key);
  history.replaceState(null, "", address);
  view.update();
  const item = list.querySelector("[aria-selected=true]");
  if (focused) item?.focus({ preventScroll: true });
  if (item) reveal(item, item.parentElement);
  walk.findNeighbours();
}

// Scrolls the list, and not the page: the image stays where it is.
function reveal(item, list) {
  const top = item.offsetTop - list.offsetTop, bottom = top + item.offsetHeight;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
}

function chooseOther(key) {
  page.otherKey = key;
  view.draw();
}

// A click on a box, or beside all boxes.
function pick(index) {
  if (page.form) return index !== null && page.form.pick?.(index);
  page.pinned = index === page.pinned ? null : index;
  view.list();
  view.draw();
}

function point(index) {
  if (index === page.pointed) return;
  page.pointed = index;
  view.draw();
}

// Along the list, or that part of it which is of one box.
function move(by) {
  say("");
  const { pinned } = page;
  const list = relations().filter((relation) => pinned === null || relation.subject === pinned || relation.object === pinned);
  const next = list[list.findIndex((relation) => relation.key === page.chosenKey) + by];
  if (next) choose(next.key);
}

// --- judging

// Sends an answer about a relation; true once it is saved. `text`: in words.
async function send(relation, answer, text) {
  if (judge.busy || walk.moving) return false;
  const { split, image_id } = page.values.image, { subject, object, predicate } = relation, plan = params().get("plan");
  const line = { split, image_id, subject, object, predicate, by: page.person, ...(plan ? { plan } : {}), ...answer };
  const said = `${named(relation)}: ${text}`;
  const stored = await judge.save(line, said);
  if (stored) say(`Saved: ${said}.`);
  view.update();
  return stored !== null;
}

// Goes on once the answer is saved, unless the person went elsewhere meanwhile.
async function answer(relation, value, text) {
  const { href } = location;
  if (!(await send(relation, value, text))) return;
  renew();
  if (location.href === href) await walk.proceed();
}

// What people said about this image, oneself included.
async function renew() {
  await renewJudged();
  view.update();
}

// answer: an earlier one of the same person, on whatever image.
async function takeBack(answer) {
  if (judge.busy || walk.moving) return;
  const { id, split, image_id, subject, object, predicate } = answer;
  const stored = await judge.save({ split, image_id, subject, object, predicate, by: page.person, undoes: id }, "undo");
  if (stored) {
    await renewJudged();
    await walk.visit(answer);
    say("Your judgement is taken back.");
  }
  view.update();
}

function open(form) {
  page.form = form;
  element("edit").replaceChildren(...form.fields);
  element("edit").hidden = false;
  form.start();
  view.draw();
}

function closeForm() {
  page.form = null;
  if (readOnly) return;
  element("edit").hidden = true;
  element("edit").replaceChildren();
}

function cancel() {
  closeForm();
  view.draw();
}

function changePredicate() {
  const relation = chosen();
  const save = (predicate) => {
    closeForm();
    answer(relation, { change: { action: "predicate", predicate } }, `changed to ${isolated(predicate)}`);
  };
  open(changeForm(relation, page.values.objects, { cancel, save }));
}

function add() {
  const save = async (relation) => {
    closeForm();
    if (!(await send(relation, { change: { action: "add" } }, "added"))) return;
    await renew();
    choose(keyOf(relation));
  };
  const taken = (relation) => find(keyOf(relation)) !== null;
  open(addForm(page.values.objects, page.pinned, { cancel, save, taken, redraw: () => view.draw() }));
}

const acts = {
  right: () => answer(chosen(), { judgement: "right" }, "right"),
  wrong: () => answer(chosen(), { judgement: "wrong" }, "wrong"),
  unsure: () => answer(chosen(), { judgement: "unsure" }, "unsure"),
  skip: () => answer(chosen(), { judgement: "skip" }, "skipped"),
  swap: () => answer(chosen(), { change: { action: "swap" } }, "swapped"),
  delete: () => answer(chosen(), { change: { action: "delete" } }, "deleted"),
  undo: () => takeBack(judge.last),
  predicate: changePredicate,
  add,
};

function perform(name) {
  const button = element("acts")?.querySelector(`[data-act=${name}]`);
  if (document.body.dataset.ready && button && !button.disabled && !judge.busy && !walk.moving) acts[name]();
}

// --- keys and buttons

function turn(where) {
  say("");
  walk.step(where);
}

const keys = {
  r: () => perform("right"),
  w: () => perform("wrong"),
  u: () => perform("unsure"),
  s: () => perform("skip"),
  z: () => perform("undo"),
  c: () => perform("predicate"),
  x: () => perform("swap"),
  d: () => perform("delete"),
  a: () => perform("add"),
  n: () => turn("next"),
  p: () => turn("previous"),
  j: () => move(1),
  k: () => move(-1),
  f: () => chosen() && view.stage.fit([chosen().subject, chosen().object]),
  "+": () => view.stage.zoom(1.5),
  "=": () => view.stage.zoom(1.5),
  "-": () => view.stage.zoom(1 / 1.5),
  0: () => view.stage.whole(),
  h: () => document.body.classList.toggle("bare"),
  g: () => location.assign(page.values.gallery),
  "/": () => element("q").focus(),
  "?": () => element("keys").showModal(),
  Escape: () => (page.form ? cancel() : page.pinned !== null ? pick(null) : point(null)),
};
const inList = { ArrowDown: () => move(1), ArrowUp: () => move(-1) };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || element("keys").open) return;
  if (event.target.closest("input, select, textarea") && event.key !== "Escape") return;
  const listed = event.target.closest("[role=listbox]") && inList[event.key];
  const act = listed || keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act || (event.repeat && !listed && !["j", "k"].includes(event.key))) return;
  event.preventDefault();
  act();
});
for (const where of ["previous", "next"]) {
  element(where).addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || !page.values[where]) return;
    event.preventDefault();
    turn(where);
  });
}
element("show-keys").addEventListener("click", () => element("keys").showModal());
if (!readOnly) {
  element("acts").addEventListener("click", (event) => {
    const button = event.target.closest("[data-act]");
    if (button) perform(button.dataset.act);
  });
  element("edit").addEventListener("submit", (event) => {
    event.preventDefault();
    page.form?.submit();
  });
  element("person").value = page.person;
  element("person").addEventListener("change", () => {
    rename(element("person").value);
    element("person").value = page.person;
    view.update();
  });
  element("walk").addEventListener("change", () => {
    const address = new URL(location.href);
    address.searchParams.set("walk", element("walk").value);
    history.replaceState(null, "", address);
    element("walk").blur();
  });
}

walk.arrive(page.values, await readJudged(page.values.image));
judge.resume().then(async (saved) => {
  if (!saved) return;
  await renew();
  say("What was not saved before is saved now.");
});
document.body.dataset.ready = "true";
