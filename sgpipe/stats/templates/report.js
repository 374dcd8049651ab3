"use strict";
const predicate = document.getElementById("by-predicate");
const category = document.getElementById("by-category");
const confidence = document.getElementById("by-confidence");
const cards = [...document.querySelectorAll(".card")].map((card) => ({
  card,
  relations: [...card.querySelectorAll("li[data-relation]")].map((item) => ({
    item,
    number: item.dataset.relation,
    ends: [item.dataset.subject, item.dataset.object],
    predicate: item.dataset.predicate,
    categories: JSON.parse(item.dataset.categories),
    confidence: Number(item.dataset.confidence),
  })),
}));

function show(elements, isShown) {
  for (const element of elements) element.toggleAttribute("hidden", !isShown(element));
}

function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function filter() {
  const least = Number(confidence.value);
  let images = 0, relations = 0;
  document.getElementById("at-least").value = least.toFixed(2);
  for (const { card, relations: all } of cards) {
    const kept = all.filter((r) => (!predicate.value || r.predicate === predicate.value)
      && (!category.value || r.categories.includes(category.value)) && r.confidence + 1e-6 >= least);
    const numbers = new Set(kept.map((r) => r.number)), ends = new Set(kept.flatMap((r) => r.ends));
    show(card.querySelectorAll("[data-relation]"), (element) => numbers.has(element.dataset.relation));
    show(card.querySelectorAll(".node"), (element) => !all.length || ends.has(element.dataset.object));
    const graph = card.querySelector(".graph");
    if (graph) graph.toggleAttribute("hidden", !kept.length);
    card.querySelector(".none").hidden = kept.length > 0 || !all.length;
    const filtered = predicate.value || category.value;
    card.hidden = Boolean(filtered) && !kept.length;
    images += !card.hidden;
    relations += kept.length;
  }
  document.getElementById("count").textContent = `${counted(images, "image")}, ${counted(relations, "relation")}`;
}

function point(card, item) {
  card.classList.toggle("pointing", item !== null);
  for (const lit of card.querySelectorAll(".lit")) lit.classList.remove("lit");
  if (item === null) return;
  const ends = [item.dataset.subject, item.dataset.object];
  for (const edge of card.querySelectorAll("[data-relation]")) edge.classList.toggle("lit", edge.dataset.relation === item.dataset.relation);
  for (const node of card.querySelectorAll(".node")) node.classList.toggle("lit", ends.includes(node.dataset.object));
}

for (const { card, relations } of cards) {
  for (const { item } of relations) {
    for (const name of ["mouseenter", "focus"]) item.addEventListener(name, () => point(card, item));
    for (const name of ["mouseleave", "blur"]) item.addEventListener(name, () => point(card, null));
  }
}
const form = document.getElementById("filters");
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", (event) => {
  event.preventDefault();
  predicate.value = category.value = "";
  confidence.value = 0;
  filter();
});
filter();
