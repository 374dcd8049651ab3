// Judging the card that has the focus: R, W, U; Z takes the last answer back. The next card gets the focus once the server
// has the answer in its file.
import { Judge } from "./image_judge.js";
import { person } from "./person.js";

const keys = { r: "right", w: "wrong", u: "unsure" };
const cards = [...document.querySelectorAll(".card[data-relation]")];
const unsaved = document.getElementById("unsaved");

const judge = new Judge(unsaved.dataset.run, () => {
  unsaved.hidden = !["unsaved", "refused"].includes(judge.state);
  unsaved.firstElementChild.textContent = unsaved.hidden ? "" : `Not saved: ${judge.pending.text} (${judge.reason}).`;
});

const mark = (card, state) => {
  const chip = card.querySelector(".chip.judged");
  chip.className = `chip judged ${state}`;
  chip.textContent = state;
  chip.hidden = !state;
};

const answer = async (card, judgement) => {
  const text = `${card.querySelector(".sentence").innerText}: ${judgement}`;
  if (!await judge.save({ ...JSON.parse(card.dataset.relation), by: person(), judgement }, text)) return;
  mark(card, judgement);
  if (card.contains(document.activeElement)) cards[cards.indexOf(card) + 1]?.querySelector("a").focus();
};

const takeBack = async ({ id, ...last }) => {
  delete last.run;
  if (!await judge.save({ ...last, by: person(), undoes: id }, "undo")) return;
  const card = cards.find(({ dataset }) => Object.entries(JSON.parse(dataset.relation)).every(([name, value]) => last[name] === value));
  if (!card) return;
  mark(card, "");
  card.querySelector("a").focus();
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  const key = event.key.toLowerCase(), card = document.activeElement.closest(".card[data-relation]");
  if (key in keys && card) answer(card, keys[key]);
  else if (key === "z" && judge.last) takeBack(judge.last);
});

unsaved.addEventListener("click", ({ target }) => {
  if (target.value === "again") judge.post();
  if (target.value === "discard") judge.discard();
});

judge.resume();
