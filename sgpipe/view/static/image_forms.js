// The forms that change a relation's predicate or add a relation; the run's predicates are suggested.
import { html, isolated, getJson, shortened } from "./image_dom.js";

const LONGEST = 200, PAUSE = 80;

// An input for a predicate, and its suggestions.
function predicateInput(value) {
  const list = html("datalist", { id: "predicates" });
  let timer = null;
  const suggest = async () => {
    const found = await getJson(`/api/predicates?${new URLSearchParams({ prefix: input.value.trim() })}`).catch(() => []);
    list.replaceChildren(
      ...found.map(({ predicate, count }) => html("option", { value: predicate }, `${count.toLocaleString("en")} in the run`)),
    );
  };
  const edited = () => {
    input.setCustomValidity("");
    clearTimeout(timer);
    timer = setTimeout(suggest, PAUSE);
  };
  const plain = { required: true, maxlength: LONGEST, autocomplete: "off", spellcheck: "false" };
  const input = html("input", { name: "predicate", list: "predicates", ...plain, value, input: edited });
  suggest();
  return [input, list];
}

const buttons = (text, cancel) => [
  html("button", { class: "primary" }, text),
  html("button", { type: "button", click: cancel }, "Cancel"),
];
const words = (input) => input.value.trim().replace(/\s+/g, " ");

function refuse(input, reason) {
  input.setCustomValidity(reason);
  input.reportValidity();
}

export function changeForm(relation, objects, { save, cancel }) {
  const [input, list] = predicateInput("");
  input.setAttribute("placeholder", relation.predicate);
  const name = (index) => isolated(shortened(objects[index].name, 40));
  const ends = `${name(relation.subject)} … ${name(relation.object)}`;
  return {
    fields: [html("label", {}, `${ends}: predicate `, input), list, ...buttons("Change", cancel)],
    start: () => input.focus(),
    submit: () => {
      if (!words(input)) refuse(input, "Type a predicate.");
      else if (words(input) === relation.predicate) refuse(input, "It has this predicate already.");
      else save(words(input));
    },
  };
}

export function addForm(objects, subject, { save, cancel, redraw, taken }) {
  // Not isolated: typing the first letters of an option chooses it.
  const option = (object, index, role) =>
    role === "subject" && object.missing ? null : html("option", { value: index }, shortened(object.name, 60));
  const ends = ["subject", "object"].map((role) =>
    html("select", { name: role, required: true, change: () => picked() },
      html("option", { value: "" }, "choose or click"),
      objects.map((object, index) => option(object, index, role))),
  );
  if (subject !== null) ends[0].value = subject;
  const [input, list] = predicateInput("");
  const label = (text, control) => html("label", {}, `${text} `, control);
  const form = {
    fields: [
      label("Subject", ends[0]), label("Predicate", input), list, label("Object", ends[1]), ...buttons("Add", cancel),
    ],
    picked: [],
    start: () => {
      picked();
      ends.find((end) => end.value === "")?.focus();
    },
    pick: (index) => {
      (ends.find((end) => end.value === "") ?? ends[1]).value = index;
      picked();
      if (ends.every((end) => end.value !== "")) input.focus();
    },
    submit: () => {
      const [from, to] = ends.map((end) => Number(end.value)), predicate = words(input);
      if (from === to) refuse(input, "Subject and object are the same box.");
      else if (!predicate) refuse(input, "Type a predicate.");
      else if (taken({ subject: from, object: to, predicate })) refuse(input, "This relation is there already.");
      else save({ subject: from, object: to, predicate });
    },
  };
  function picked() {
    form.picked = ends.filter((end) => end.value !== "").map((end) => Number(end.value));
    input.setCustomValidity("");
    redraw();
  }
  return form;
}
