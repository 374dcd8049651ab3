// What the page knows and what is chosen: one object, which the other modules of the page read and change.
import { getJson, isolated, score, shortened } from "./image_dom.js";
import { person, readOnly, rename as remember } from "./person.js";

export const element = (id) => document.getElementById(id);
export { readOnly };

export const page = {
  values: JSON.parse(element("values").textContent),
  judged: new Map(), // what people said, by the key of the relation
  chosenKey: null,
  otherKey: null, // of a relation that is chosen in the other run
  pinned: null, // the box whose relations are listed
  pointed: null, // the box under the pointer or with the focus
  form: null,
  all: false, // whether the list is shown in full
  person: person(),
};

export function rename(name) {
  page.person = remember(name);
}

export function say(text) {
  element("status").textContent = text;
}

export const keyOf = ({ subject, object, predicate }) => `${subject}-${object}-${predicate}`;
export const params = () => new URLSearchParams(location.search);
export const compared = () => Boolean(page.values.other && !page.values.other.lacks);

const proposal = ({ probability }) =>
  `Nobody annotated it: the layout model finds with probability ${score(probability)} that these two boxes interact, most likely so. “Right” adds it.`;

// The run's relations, those that people added, and those that a plan of doubts proposes.
export function relations() {
  const { values, judged } = page;
  const isNew = (state) => state.added && !values.relations.some((relation) => relation.key === state.key);
  const exists = (state) => Math.max(state.subject, state.object) < values.objects.length;
  const unknown = { confidence: null, rank: null, clip_score: null, vlm_score: null, stated: [] };
  const explanation = "It was added by hand: the run does not have it.";
  const added = [...judged.values()].filter((state) => isNew(state) && exists(state));
  const proposed = values.proposed.filter((relation) => !added.some((state) => state.key === relation.key));
  return [
    ...values.relations,
    ...added.map(({ key, subject, object, predicate }) => ({ key, subject, object, predicate, ...unknown, explanation, added: true })),
    ...proposed.map((relation) => ({ ...unknown, ...relation, explanation: proposal(relation), proposed: true })),
  ];
}

export const find = (key) => relations().find((relation) => relation.key === key) ?? null;
export const chosen = () => find(page.chosenKey);

// A relation in words.
export const named = ({ subject, object, predicate }) =>
  [page.values.objects[subject].name, predicate, page.values.objects[object].name]
    .map((text) => isolated(shortened(text, 40)))
    .join(" ");

// What people said about the relations of an image, by key.
export async function readJudged({ split, image_id }) {
  try {
    const found = await getJson(`/api/judgements?${new URLSearchParams({ split, image_id })}`);
    return new Map(found.relations.map((state) => [keyOf(state), { ...state, key: keyOf(state) }]));
  } catch (error) {
    say(`Judgements cannot be read: ${error.message}`);
    return new Map();
  }
}

export async function renewJudged() {
  const { image } = page.values;
  const found = await readJudged(image);
  if (image === page.values.image) page.judged = found;
}
