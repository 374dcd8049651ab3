// Going on: to the neighbours in the search, to the next question of a plan, back and forth in the browser.
import { counted, getJson } from "./image_dom.js";
import { element, find, keyOf, page, params, readJudged, relations, say } from "./image_state.js";
import { walk } from "./image_view.js";

const path = ({ split, image_id }) => [split, ...image_id.split("/")].map(encodeURIComponent).join("/");
const asJson = (url) => {
  const { pathname, search } = new URL(url, location.href);
  return `/api${pathname}${search}`;
};

export class Walk {
  // view: draws; choose(key): of the image that is shown; leave(): before another image is.
  constructor(view, { choose, leave }) {
    this.view = view;
    this.choose = choose;
    this.leave = leave;
    this.moving = false;
    this.ahead = null;
    addEventListener("popstate", () => this.go(location.pathname + location.search, false));
  }

  async go(url, push = true) {
    if (this.moving) return;
    this.moving = true;
    try {
      const found = await (this.ahead?.url === url ? this.ahead.values : getJson(asJson(url)));
      const judged = await readJudged(found.image);
      if (push) history.pushState(null, "", url);
      this.arrive(found, judged);
    } catch (error) {
      say(`The image cannot be shown: ${error.message}`);
    } finally {
      this.moving = false;
    }
  }

  // Nothing waits in here: what is drawn is always of one image.
  arrive(values, judged) {
    this.leave();
    this.ahead = null;
    Object.assign(page, { values, judged, all: false, pinned: null, pointed: null, otherKey: null });
    page.chosenKey = (find(values.chosen) ?? find(params().get("relation")) ?? relations()[0])?.key ?? null;
    this.view.show();
    this.prefetch();
    const plan = params().get("plan");
    if (plan && !element("precision").textContent) this.readPlan(plan).then((found) => this.showPlan(found));
  }

  // The next image is there when it is wanted.
  prefetch() {
    const url = page.values.next;
    if (!url || this.ahead?.url === url) return;
    const load = async () => {
      const found = await getJson(asJson(url));
      new Image().src = found.image.photo;
      return found;
    };
    const ahead = { url, values: load() };
    ahead.values.catch(() => {
      if (this.ahead === ahead) this.ahead = null;
    });
    this.ahead = ahead;
  }

  // After another relation of the image was chosen.
  async findNeighbours() {
    const { image } = page.values, key = page.chosenKey;
    try {
      const found = await getJson(`/api/neighbours/${path(image)}?${params()}`);
      if (key !== page.chosenKey || image !== page.values.image) return;
      Object.assign(page.values, found);
      this.view.bar();
      this.prefetch();
    } catch (error) {
      say(error.message);
    }
  }

  async step(where) {
    if (page.values[where]) return this.go(page.values[where]);
    say(where === "next" ? "This is the last hit of the search." : "This is the first hit of the search.");
  }

  // After a judgement.
  async proceed() {
    const plan = params().get("plan"), list = relations();
    if (plan) return this.ask(plan);
    if (walk() === "search") return this.step("next");
    const next = list[list.indexOf(list.find((relation) => relation.key === page.chosenKey)) + 1];
    if (next) this.choose(next.key);
    else say("This was the last relation of the image.");
  }

  // To a relation of this image or of another.
  async visit(relation) {
    const next = params(), { image } = page.values;
    next.set("relation", keyOf(relation));
    const here = relation.split === image.split && relation.image_id === image.image_id;
    if (here && find(keyOf(relation))) this.choose(keyOf(relation));
    else if (!here) await this.go(`/image/${path(relation)}?${next}`);
  }

  async ask(plan) {
    const found = await this.readPlan(plan);
    if (found?.question) await this.visit(found.question);
    else if (found) say(found.groups ? "Nothing is left to ask: the page Judge says what is certified." : "All questions of the plan are judged.");
    this.showPlan(found);
  }

  // The precision of a plan so far, and its next open question; null if the server does not answer.
  async readPlan(plan) {
    try {
      return await getJson(`/api/plans/${encodeURIComponent(plan)}?${new URLSearchParams({ by: page.person })}`);
    } catch (error) {
      say(`The plan does not answer: ${error.message}`);
      return null;
    }
  }

  showPlan(found) {
    if (found) element("precision").textContent = found.groups ? evidence(found) : progress(found);
  }
}

// Of a certificate: how many groups have a test that is still open, and the answers that these take.
function evidence({ groups, open }) {
  const left = groups.filter((group) => group.share < 1),
    more = left.reduce((sum, group) => sum + (group.more ?? Infinity), 0);
  const certified = groups.reduce((sum, group) => sum + group.certified, 0),
    done = certified ? `${counted(certified, "relation")} certified, ` : "";
  const estimate = left.some((group) => group.at_least) ? "at least" : "about";
  const end = Number.isFinite(more) ? `${estimate} ${counted(more, "more answer")}` : groups.some((group) => group.share) ? "no end in sight" : "the first round shows where to start";
  return `Certificate: ${left.length ? `${done}${end}; ${counted(open, "question")} left in this round` : "all is certified"}`;
}

// Doubts are no random sample, so their precision says nothing of the run.
function progress(found) {
  const open = `${counted(found.open, "question")} open`;
  return found.kind === "doubts" ? `Doubts: ${open}` : `Plan: ${open}, ${precision(found)}`;
}

// Short, so that the bar keeps its height: the buttons stay where the pointer is.
function precision({ precision: { value, low, high }, more, open, margin }) {
  const percent = (share) => `${(100 * share).toFixed(1)}%`;
  if (value === null) return "no precision yet";
  const goal = `±${100 * margin}%`,
    enough = more === 0 ? `; within ${goal}` : more > open ? `; ${goal} takes a larger plan` : `; about ${more?.toLocaleString("en")} more until ${goal}`;
  return `precision ${percent(value)} (95%: ${percent(low)} to ${percent(high)})${more === null ? "" : enough}`;
}
