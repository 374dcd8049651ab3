// The texts of the page: the chosen relation and where it comes from, the list of relations, captions, the other run.
import { markWords } from "./image_marks.js";
import { html, svg, bdi, counted, score, sentence, shortened } from "./image_dom.js";

const AROUND = 160, LONG = 300, FEW = 5, LISTED = 100, LISTED_DIFFERENCES = 12;
const SIGNS = { right: "✓", wrong: "✗", unsure: "?", changed: "✎", conflict: "≠" };
const quiet = (...children) => html("span", { class: "quiet" }, ...children);

// A long text: its beginning, and all of it on demand.
function folded(text) {
  if (text.length <= LONG) return bdi(text);
  return html("details", { class: "fold" },
    html("summary", {},
      bdi(shortened(text, LONG)),
      " ",
      quiet(`(${counted(text.length, "character")})`)),
    html("p", {}, bdi(text)));
}

const more = (number, rest) => html("details", {}, html("summary", {}, `${number} more`), rest);

// Some items of a list, and the rest on demand.
function few(items, most, noun) {
  if (items.length <= most + 1) return items;
  return [
    ...items.slice(0, most),
    html("details", {}, html("summary", {}, `${counted(items.length - most, `more ${noun}`)}`), ...items.slice(most)),
  ];
}

// The part of a caption around its marked words.
function quotation(text, marks) {
  const first = marks[0]?.start ?? 0, last = marks.at(-1)?.stop ?? 0;
  const start = first > AROUND ? text.indexOf(" ", first - AROUND) + 1 || first - AROUND : 0;
  const stop = Math.min(text.length, Math.max(last + AROUND, LONG));
  const parts = [start ? "… " : ""];
  let at = start;
  for (const mark of marks) {
    parts.push(
      text.slice(at, mark.start),
      html("mark", { class: mark.role, title: mark.role }, text.slice(mark.start, mark.stop)),
    );
    at = mark.stop;
  }
  return html("bdi", {}, ...parts, text.slice(at, stop), stop < text.length ? " …" : "");
}

// How a noun met a class.
function how({ phrase, head, category }) {
  const [words, noun, name] = [phrase, head, category].map((text) => text.toLowerCase());
  if (words === name) return "the name of the class";
  if (noun === name) return ["head noun “", bdi(head), "”"];
  if (words.includes(name)) return "the phrase contains its name";
  return noun && noun !== words ? ["synonym, by its head noun “", bdi(head), "”"] : "synonym";
}

const end = (found, role) => ({ phrase: found[role], head: found[`${role}_head`], category: found[`${role}_category`] });

const noun = (role, found) =>
  html("li", {},
    html("mark", { class: role }, bdi(shortened(found.phrase, 120))),
    " → ",
    found.category === null
      ? html("i", {}, "no box")
      : [html("b", {}, bdi(shortened(found.category, 60))), quiet(" (", how(found), ")")]);

const boxesOf = (caption, values) => caption.boxes.map((index) => values.objects[index]?.name ?? index).join(" and ");

// Statements that say the same in the same words are one, of several captions.
function statements(values, numbers) {
  const groups = new Map();
  for (const number of numbers) {
    const { caption, ...found } = values.statements[number];
    const same = JSON.stringify([values.captions[caption]?.text, values.captions[caption]?.boxes, found]);
    groups.set(same, [...(groups.get(same) ?? []), number]);
  }
  return [...groups.values()].map((group) => statement(values, group));
}

function statement(values, numbers) {
  const found = values.statements[numbers[0]], caption = values.captions[found.caption];
  const boxes = caption?.boxes.length ? ` of ${boxesOf(caption, values)}` : "";
  const which = [...new Set(numbers.map((number) => values.statements[number].caption + 1))];
  const subject = end(found, "subject"), object = end(found, "object");
  const marks = caption ? markWords(caption.text, { subject, predicate: found.predicate, object }) : [],
    inferred = !marks.some((mark) => mark.role === "predicate");
  const why = found.implied ? "implied by the caption" : "follows from the grammar";
  return html("div", { class: "statement" },
    html("p", {},
      quiet(`Caption${which.length > 1 ? "s" : ""} ${which.join(", ")}${boxes}: `),
      caption ? quotation(caption.text, marks) : html("i", {}, "not in the row")),
    html("ul", {},
      noun("subject", subject),
      html("li", {},
        html("mark", { class: "predicate" }, bdi(found.predicate)),
        found.predicate_lemma === found.predicate ? "" : quiet(" (lemma “", bdi(found.predicate_lemma), "”)"),
        inferred || found.implied ? quiet(` (${why})`) : ""),
      noun("object", object)));
}

const bar = (share) =>
  svg("svg", { class: "bar-chart", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "all", width: 100, height: 10, rx: 2 }),
    svg("rect", { width: Math.max(100 * share, 0.5), height: 10, rx: 2 }));

function candidates(values, relation) {
  const found = values.candidates[`${relation.subject}-${relation.object}`] ?? [];
  if (!found.length) return [];
  const rows = found.map((candidate) =>
    html("tr", candidate.predicate === relation.predicate ? { class: "this" } : {},
      html("td", {}, bdi(shortened(candidate.predicate, 80)), candidate.own ? "" : quiet(" (no candidate)")),
      html("td", { class: "number" },
        candidate.confidence === null ? quiet(candidate.relation ? "no score" : "not kept") : score(candidate.confidence)),
      html("td", { class: "chart" }, candidate.confidence === null ? "" : bar(candidate.confidence))),
  );
  const table = (some) =>
    html("table", {},
      html("thead", {},
        html("tr", {},
          html("th", { scope: "col" }, "predicate"),
          html("th", { scope: "col", class: "number" }, "confidence"),
          html("td", {}))),
      html("tbody", {}, ...some));
  return html("section", {},
    html("h3", {}, `${counted(found.length, "candidate")} of this pair`),
    table(rows.slice(0, 12)),
    rows.length > 12 ? more(rows.length - 12, table(rows.slice(12))) : "");
}

function facts(values, relation) {
  const own = values.candidates[`${relation.subject}-${relation.object}`] ?? [];
  const scored = own.filter((candidate) => candidate.rank !== null).length;
  const rank = relation.rank === null ? "" : `, number ${relation.rank} of ${scored} of this pair`;
  const confidence = relation.confidence === null ? "none" : `${score(relation.confidence)}${rank}`;
  const fact = (dt, dd, kind = "number") => html("div", {}, html("dt", {}, dt), html("dd", { class: kind }, dd));
  return html("dl", {},
    fact("Confidence", confidence),
    relation.origin ? fact("Origin", relation.origin, null) : "",
    relation.clip_score ? fact("CLIP score", score(relation.clip_score.score)) : "",
    relation.vlm_score === null ? "" : fact("VLM score", score(relation.vlm_score)));
}

// What people said about a relation; undo(answer): for one's own answers.
function answers(judged, name, undo) {
  if (!judged) return [];
  const said = (answer) => {
    if (answer.judgement) return answer.judgement;
    const { action, predicate } = answer.change;
    return action === "predicate"
      ? ["changed to “", bdi(predicate), "”"]
      : { swap: "swapped", delete: "deleted", add: "added" }[action];
  };
  const rows = judged.judgements.map((answer) =>
    html("li", {},
      bdi(answer.by),
      ": ",
      html("b", {}, said(answer)),
      quiet(` ${answer.at.slice(0, 16).replace("T", " ")} UTC`),
      undo && answer.by === name
        ? [" ", html("button", { type: "button", class: "link", click: () => undo(answer) }, "Take back")]
        : ""),
  );
  return html("section", {},
    html("h3", {}, "Answers", judged.state === "conflict" ? html("b", { class: "bad" }, " ≠ they differ") : ""),
    html("ul", { class: "answers" }, rows));
}

export function showProvenance(section, values, relation, judged, { name, undo }) {
  if (!relation) {
    const why = values.image.error
      ? ["The image failed: ", bdi(values.image.error)]
      : (values.why ?? "Choose a relation to see where it comes from.");
    section.replaceChildren(html("h2", {}, "Why"), html("p", { class: values.image.error ? "bad" : "quiet" }, why));
    return;
  }
  const stated = statements(values, relation.stated);
  section.replaceChildren(
    html("h2", {}, sentence(relation, values.objects)),
    facts(values, relation),
    answers(judged, name, undo),
    html("p", {}, relation.explanation),
    ...few(stated, 3, "statement"),
    candidates(values, relation),
  );
}

// One line of a list; a listbox, of which one option can be reached by Tab, and the others from there by arrow keys.
function option(relation, values, { chosen, judged, mark = "" }) {
  const { state, changed } = judged?.get(relation.key) ?? {};
  const isChosen = relation.key === chosen?.key, tabindex = isChosen ? 0 : -1;
  return html("li", { role: "option", "aria-selected": String(isChosen), tabindex, "data-key": relation.key },
    sentence(relation, values.objects),
    state ? html("span", { class: `chip ${state}` }, `${SIGNS[state]} ${state}`) : "",
    changed ? [" → ", sentence(changed, values.objects)] : "",
    relation.added ? html("span", { class: "chip" }, "added") : "",
    relation.proposed ? html("span", { class: "chip" }, "proposed") : "",
    mark,
    html("span", { class: "number quiet" }, score(relation.confidence)));
}

export function showRelations(section, values, { relations, chosen, pinned, judged, all, showAll, unpin, choose }) {
  const of = pinned === null ? relations : relations.filter((r) => r.subject === pinned || r.object === pinned);
  const listed = all ? of : of.filter((relation, number) => number < LISTED || relation.key === chosen?.key);
  const several = new Set(values.relations.map((relation) => relation.origin)).size > 1;
  const origin = ({ origin }) =>
    several && origin ? html("span", { class: `chip origin ${origin}`, title: "Origin" }, origin) : "";
  const items = listed.map((relation) => option(relation, values, { chosen, judged, mark: origin(relation) }));
  if (items.length && !items.some((item) => item.tabIndex === 0)) items[0].setAttribute("tabindex", 0);
  const missing = values.total - values.relations.length;
  const scrolled = section.querySelector(".options")?.scrollTop ?? 0;
  const chooses = (event) => {
    const item = event.target.closest("[data-key]");
    if (item) choose(item.dataset.key);
  };
  section.replaceChildren(
    html("h2", {},
      pinned === null
        ? counted(of.length, "relation")
        : [
            `${counted(of.length, "relation")} of `,
            bdi(values.objects[pinned].name),
            " ",
            ...values.objects[pinned].attributes.flatMap((name) => [quiet(bdi(shortened(name, 60))), " "]),
            html("button", { type: "button", class: "link", click: unpin }, "show all"),
          ]),
    items.length
      ? html("ul", { role: "listbox", "aria-label": "Relations", class: "options", click: chooses }, items)
      : html("p", { class: "quiet" }, "None."),
    listed.length < of.length
      ? html("button", { type: "button", click: showAll }, `Show all ${of.length.toLocaleString("en")}`)
      : "",
    missing > 0 ? html("p", { class: "quiet" }, `${counted(missing, "less confident relation")} not shown.`) : "",
  );
  const list = section.querySelector(".options");
  if (list) list.scrollTop = scrolled;
}

export function showCaptions(section, values) {
  const items = values.captions.map((caption, number) =>
    html("li", { value: number + 1 },
      caption.boxes.length ? quiet(`${boxesOf(caption, values)}: `) : "",
      folded(caption.text)),
  );
  section.hidden = !items.length;
  const rest = items.slice(FEW);
  section.replaceChildren(
    html("h2", {}, counted(items.length, "caption")),
    html("ol", {}, items.slice(0, FEW)),
    rest.length ? more(rest.length, html("ol", {}, rest)) : "",
  );
}

export function showComparison(section, values, { chosen, choose, chooseOther }) {
  const { other } = values;
  section.hidden = !other;
  if (!other) return;
  const title = html("h2", {}, "Compared with ", bdi(other.title));
  if (other.lacks) {
    section.replaceChildren(title, html("p", { class: "quiet" }, other.lacks));
    return;
  }
  const find = (from, key) => from.relations.find((relation) => relation.key === key);
  const list = (items) => html("ul", { class: "options" }, items);
  const group = (name, sign, keys, row) => {
    const items = keys.map(row).filter(Boolean), rest = items.slice(LISTED_DIFFERENCES);
    return html("section", {},
      html("h3", {}, `${sign} `, name, ` (${keys.length})`),
      items.length ? list(items.slice(0, LISTED_DIFFERENCES)) : html("p", { class: "quiet" }, "None."),
      rest.length ? more(rest.length, list(rest)) : "");
  };
  const line = (relation, from, act, numbers) => {
    if (!relation) return null;
    const pressed = String(from === values && relation.key === chosen?.key);
    return html("li", {},
      html("button", { type: "button", "aria-pressed": pressed, click: () => act(relation.key) },
        sentence(relation, from.objects),
        html("span", { class: "number quiet" }, numbers)));
  };
  section.replaceChildren(
    title,
    html("div", { class: "groups" },
      group("Only in this run", "+", values.other.here, (key) => {
        const r = find(values, key);
        return line(r, values, choose, score(r?.confidence));
      }),
      group(["Only in ", bdi(other.title)], "−", other.there, (key) => {
        const r = find(other, key);
        return line(r, other, chooseOther, score(r?.confidence));
      }),
      group("In both", "=", other.both, ([here, there]) => {
        const [a, b] = [find(values, here), find(other, there)];
        return a && b && line(a, values, choose, `${score(a.confidence)} | ${score(b.confidence)}`);
      })),
  );
}
