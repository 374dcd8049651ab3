// Where a caption has the words of a triplet: of several places, those count that are nearest to the predicate, on the side
// where they are expected. A part that the caption lacks ("he" for "man") has no mark.
const WRONG_SIDE = 40; // characters of distance that a subject after its predicate counts as
const LETTER = "[\\p{L}\\p{N}_]";

const escaped = (word) => word.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");

// Places [start, stop] of a phrase, in any case, or else of its head noun, also in the plural.
function places(text, phrase, head) {
  for (const words of [phrase, head]) {
    const pattern = words.split(/\s+/).filter(Boolean).map(escaped).join("[^\\p{L}\\p{N}_]+");
    if (!pattern) continue;
    const all = new RegExp(`(?<!${LETTER})${pattern}(?:e?s)?(?!${LETTER})`, "giu");
    const found = [...text.matchAll(all)].map((match) => [match.index, match.index + match[0].length]);
    if (found.length) return found;
  }
  return [];
}

const same = (a, b) => a[0] === b[0] && a[1] === b[1];
const distance = (a, b) => (a[0] < b[0] || (a[0] === b[0] && a[1] <= b[1]) ? b[0] - a[1] : 2 * (a[0] - b[1]) + WRONG_SIDE);
const nearest = (all, far) => all.reduce((best, place) => (best === null || far(place) < far(best) ? place : best), null);

// Marks { role, start, stop } in the order of the text.
export function markWords(text, { subject, predicate, object }) {
  const subjects = places(text, subject.phrase, subject.head),
    predicates = places(text, predicate, predicate.split(" ")[0]), objects = places(text, object.phrase, object.head);
  const least = (distances) => (distances.length ? Math.min(...distances) : 0);
  const far = (place) =>
    least(subjects.filter((each) => !same(each, place)).map((each) => distance(each, place))) +
    least(objects.filter((each) => !same(each, place)).map((each) => distance(place, each)));
  const middle = nearest(predicates.length ? predicates : subjects, far) ?? [0, 0];
  const marks = predicates.length ? [{ role: "predicate", place: middle }] : [];
  for (const [role, all, before] of [["subject", subjects, true], ["object", objects, false]]) {
    const free = all.filter((place) => !marks.some((mark) => same(mark.place, place)));
    const place = nearest(free, (each) => (before ? distance(each, middle) : distance(middle, each)));
    if (place) marks.push({ role, place });
  }
  return marks.map(({ role, place: [start, stop] }) => ({ role, start, stop })).sort((a, b) => a.start - b.start);
}
