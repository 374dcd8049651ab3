"use strict";
const review = JSON.parse(document.getElementById("review").textContent);
const questions = [...document.querySelectorAll(".question")];
const key = `sgpipe-review ${review.fingerprint} ${review.seed} ${questions.length}`;
let answers = recall(), at = Math.max(answers.indexOf(null), 0);

function recall() {
  const empty = questions.map(() => null);
  try {
    const kept = JSON.parse(localStorage.getItem(key));
    return Array.isArray(kept) && kept.length === empty.length ? kept : empty;
  } catch {
    return empty;
  }
}

function keep() {
  try {
    localStorage.setItem(key, JSON.stringify(answers));
  } catch {
    document.getElementById("status").textContent = "This browser does not store answers: export them before you close the page.";
  }
}

function show() {
  questions.forEach((question, number) => question.toggleAttribute("hidden", number !== at));
  const done = answers.filter((answer) => answer !== null).length;
  document.getElementById("progress").value = done;
  document.getElementById("status").textContent =
    `${at + 1} of ${questions.length}, ${done} judged${done === questions.length ? ": export them now" : ""}`;
  for (const button of document.querySelectorAll("[data-answer]")) {
    button.setAttribute("aria-pressed", String(answers[at] === button.dataset.answer));
  }
}

function go(step) {
  at = Math.min(Math.max(at + step, 0), questions.length - 1);
  show();
}

function answer(verdict) {
  answers[at] = verdict;
  keep();
  go(1);
}

function save() {
  const text = JSON.stringify({ ...review, answers }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "verdicts.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

const keys = {
  r: () => answer("right"), w: () => answer("wrong"), u: () => answer("unsure"), e: save,
  ArrowLeft: () => go(-1), ArrowRight: () => go(1),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
for (const button of document.querySelectorAll("[data-answer]")) {
  button.addEventListener("click", () => answer(button.dataset.answer));
}
document.getElementById("back").addEventListener("click", () => go(-1));
document.getElementById("on").addEventListener("click", () => go(1));
document.getElementById("export").addEventListener("click", save);
show();
