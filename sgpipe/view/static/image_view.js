// Drawing the page from its state; `act` says what happens when something is clicked.
import { html, bdi, isolated, sentence, shortened } from "./image_dom.js";
import { Graph } from "./image_graph.js";
import { showCaptions, showComparison, showProvenance, showRelations } from "./image_panels.js";
import { Stage } from "./image_stage.js";
import { chosen, compared, element, page, params, readOnly, relations, say } from "./image_state.js";

const SEARCHES = ["q", "subject", "predicate", "object", "dataset", "split", "status", "judged", "queue", "low", "high"];
const nothing = () => {};

export class View {
  // act: choose(key), chooseOther(key), pick(box), point(box), undo(answer); judge: what waits to be saved.
  constructor(act, judge) {
    this.act = act;
    this.judge = judge;
    this.stage = new Stage("Image", act);
    this.other = new Stage("Image in the other run", { choose: act.chooseOther, pick: nothing, point: nothing });
    this.graph = new Graph(element("graph"), act);
  }

  // Another image.
  show() {
    const { values } = page, { image } = values;
    document.title = `Image ${isolated(image.image_id)} · sgpipe view`;
    element("image-id").textContent = image.image_id;
    const boxes = values.objects.length === 1 ? "1 box" : `${values.objects.length} boxes`;
    const names = [image.dataset, image.split, shortened(image.file_name, 80)].flatMap((name) => [bdi(name), " · "]);
    const shard = html("span", { title: `row ${image.row}` }, bdi(image.shard));
    element("about").replaceChildren(...names, `${image.width} × ${image.height} · ${boxes} · `, shard);
    element("failed").hidden = image.status !== "error";
    element("failed").replaceChildren(html("b", {}, "The image failed: "), bdi(shortened(image.error ?? "", 500)));
    element("back").href = values.gallery;
    this.stage.show(image, values.objects);
    this.stage.caption.textContent = values.other ? "This run" : "";
    if (compared()) {
      this.other.show(values.other.image, values.other.objects);
      this.other.caption.replaceChildren(bdi(values.other.title));
    }
    element("photos").replaceChildren(...(compared() ? [this.stage.element, this.other.element] : [this.stage.element]));
    element("photos").classList.toggle("two", compared());
    this.graph.show(values);
    showCaptions(element("captions"), values);
    this.update();
  }

  // The same image in another state.
  update() {
    this.list();
    this.draw();
    this.bar();
  }

  draw() {
    const { values, form } = page, now = chosen(), pointed = page.pointed ?? page.pinned;
    const here = new Set(compared() ? values.other.here : []);
    const differs = (relation) => here.has(relation.key);
    this.stage.draw({ relations: relations(), chosen: now, pointed, picked: form?.picked ?? null, differs });
    this.graph.draw({ chosen: now, pointed });
    if (compared()) this.drawOther(now);
  }

  // The same relation in the other run, or the one chosen there.
  drawOther(now) {
    const { other } = page.values;
    const key = page.otherKey ?? other.both.find(([here]) => here === now?.key)?.[1];
    const there = new Set(other.there);
    const chosen = other.relations.find((relation) => relation.key === key) ?? null;
    const differs = (relation) => there.has(relation.key);
    this.other.draw({ relations: other.relations, chosen, pointed: null, differs, named: !now });
  }

  list() {
    const { values, judged, pinned, all } = page, { choose, chooseOther, pick } = this.act, now = chosen();
    const undo = readOnly ? null : this.act.undo;
    showProvenance(element("provenance"), values, now, judged.get(page.chosenKey), { name: page.person, undo });
    const showAll = () => {
      page.all = true;
      this.list();
    };
    const listed = { relations: relations(), chosen: now, pinned, judged, all };
    showRelations(element("relations"), values, { ...listed, choose, showAll, unpin: () => pick(null) });
    showComparison(element("comparison"), values, { chosen: now, choose, chooseOther });
  }

  bar() {
    const now = chosen(), { values } = page;
    const none = values.relations.length ? "No relation is chosen." : (values.why ?? "No relations.");
    element("sentence").replaceChildren(now ? sentence(now, values.objects) : html("span", { class: "quiet" }, none));
    for (const where of ["previous", "next"]) {
      if (values[where]) element(where).href = values[where];
      else element(where).removeAttribute("href");
      element(where).setAttribute("aria-disabled", String(!values[where]));
    }
    if (readOnly) return;
    this.unsaved();
    this.buttons(now);
    element("walk").value = walk();
    element("walking").hidden = params().has("plan");
    if (this.judge.state !== "idle") say(this.judge.state === "saving" ? "Saving …" : "");
  }

  unsaved() {
    const { judge } = this, waits = judge.state === "unsaved";
    element("unsaved").hidden = !waits && judge.state !== "refused";
    if (element("unsaved").hidden) return;
    element("unsaved").replaceChildren(
      html("b", {}, "Not saved: "),
      bdi(judge.reason),
      ". Your judgement is kept here: ",
      bdi(judge.pending.text),
      waits ? "; it is sent again by itself. " : ". ",
      waits ? html("button", { type: "button", click: () => judge.post() }, "Try again") : "",
      " ",
      html("button", { type: "button", click: () => judge.discard() }, "Discard it"),
    );
  }

  buttons(now) {
    const { judge } = this;
    const mine = page.judged.get(page.chosenKey)?.judgements.find((each) => each.by === page.person);
    const alone = now && (now.subject === now.object || page.values.objects[now.object].missing);
    const possible = { add: true, undo: judge.last, swap: now && !alone };
    for (const button of element("acts").querySelectorAll("button")) {
      const { act } = button.dataset;
      button.disabled = !(act in possible ? possible[act] : now);
      button.setAttribute("aria-disabled", String(judge.busy)); // so that it keeps the focus
      button.setAttribute("aria-pressed", String(mine?.judgement === act || mine?.change?.action === act));
    }
  }
}

// Where an answer leads: to the next relation of the image or of the search; by default of the search if there is one.
export const walk = () => params().get("walk") ?? (SEARCHES.some((name) => params().has(name)) ? "search" : "image");
