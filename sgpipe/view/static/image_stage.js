// An image with its boxes and relations: an SVG in pixels of the image. Zooming changes its viewBox; lines and letters
// keep their size, as all are drawn in units of the one font size and stroke width of their group.
import { html, svg, inkOn, isolated, shortened } from "./image_dom.js";

const FAINT = 40, LIT = 60, TEXT = 13, LINE = 2.5, CLOSE = 24, BEND = 0.2, NAMED = 12, CROWDED = 60;
const SMALL = 8; // labels that a box has room for
let stages = 0;

export class Stage {
  // choose(key): an arrow was clicked; pick(index): a box was; point(index | null): one is pointed at.
  constructor(title, { choose, pick, point }) {
    this.act = { choose, pick, point };
    this.number = stages++;
    this.photo = svg("image", { preserveAspectRatio: "none", error: () => this.complain() });
    this.boxes = svg("g");
    this.edges = svg("g");
    this.names = svg("g", { class: "names" });
    this.scaled = svg("g", {}, this.boxes, this.edges, this.names);
    this.missing = html("p", { class: "missing", hidden: true });
    this.view = svg("svg", { class: "stage", role: "group", "aria-label": title },
      svg("defs"),
      svg("rect", { class: "ground" }),
      this.photo,
      this.scaled);
    const button = (text, name, act) => html("button", { type: "button", title: name, "aria-label": name, click: act }, text);
    this.tools = html("div", { class: "tools", role: "group", "aria-label": `Zoom of ${title}` },
      button("+", "Zoom in", () => this.zoom(1.5)),
      button("−", "Zoom out", () => this.zoom(1 / 1.5)),
      button("⤢", "Whole image", () => this.whole()));
    this.caption = html("span", {});
    this.element = html("figure", {},
      html("div", { class: "viewport" }, this.view, this.missing),
      html("figcaption", {}, this.caption, this.tools));
    this.listen();
    new ResizeObserver(() => this.scale()).observe(this.view);
  }

  show(image, objects) {
    this.image = image;
    this.objects = objects;
    this.width = Math.max(image.width, 1);
    this.height = Math.max(image.height, 1);
    this.missing.hidden = true;
    for (const element of [this.photo, this.view.querySelector(".ground")]) {
      element.setAttribute("width", this.width);
      element.setAttribute("height", this.height);
    }
    this.photo.setAttribute("href", image.photo);
    const colours = [...new Set(objects.map((object) => object.colour))];
    const head = { viewBox: "0 0 10 10", refX: 8.5, refY: 5, markerWidth: 5, markerHeight: 5, orient: "auto" };
    const heads = colours.map((colour) => svg("marker", { id: this.head(colour), ...head },
      svg("path", { d: "M0 0L10 5L0 10z", fill: colour, stroke: "#fff", "stroke-width": 0.8 })));
    this.view.querySelector("defs").replaceChildren(...heads);
    // The small above the large, so that each can be pointed at.
    const order = objects
      .map((_, index) => index)
      .filter((index) => !objects[index].missing)
      .sort((a, b) => this.area(b) - this.area(a));
    this.boxes.replaceChildren(...order.map((index) => this.box(index)));
    this.boxes.firstChild?.setAttribute("tabindex", 0);
    this.view.classList.toggle("crowded", order.length > CROWDED);
    this.whole();
  }

  complain() {
    this.missing.textContent = `${isolated(this.image.file_name)} cannot be shown`;
    this.missing.hidden = false;
  }

  head = (colour) => `head-${this.number}-${colour.slice(1)}`;
  area = (index) => this.objects[index].box[2] * this.objects[index].box[3];
  middle(index, share = 0.5) {
    const [x, y, width, height] = this.objects[index].box;
    return [x + width / 2, y + height * share];
  }

  box(index) {
    const object = this.objects[index], [x, y, width, height] = object.box;
    const finder = object.phrase === null ? "detector" : `found by “${isolated(object.phrase)}”`;
    const score = object.score === null ? [] : [`${finder} ${object.score.toFixed(2)}`];
    const name = `${isolated(object.name)}${object.crowd ? " (crowd)" : ""}`;
    const about = [name, ...object.attributes.map(isolated), ...score].join(", ");
    const role = { role: "button", tabindex: -1, "aria-label": about, "aria-pressed": "false" };
    return svg("g", { class: "object", "data-object": index, ...role },
      svg("title", {}, about),
      svg("rect", { class: "halo", x, y, width, height }),
      svg("rect", { class: "line", x, y, width, height, stroke: object.colour }));
  }

  listen() {
    const number = (box) => (box ? Number(box.dataset.object) : null);
    const index = (event) => number(event.target.closest?.(".object"));
    const point = (event) => this.act.point(index(event));
    this.boxes.addEventListener("pointerover", (event) => event.pointerType === "mouse" && point(event));
    this.boxes.addEventListener("pointerleave", () => this.act.point(null));
    this.boxes.addEventListener("focusin", (event) => {
      if (event.target.matches(":focus-visible")) point(event);
    });
    this.boxes.addEventListener("focusout", () => this.act.point(null));
    this.boxes.addEventListener("keydown", (event) => this.walk(event));
    this.view.addEventListener("click", (event) => {
      if (this.dragged) return;
      const edge = event.target.closest(".edge");
      if (edge) this.act.choose(edge.dataset.key);
      else this.act.pick(index(event));
    });
    const turn = (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 200), this.at(event));
    };
    this.view.addEventListener("wheel", turn, { passive: false });
    this.view.addEventListener("dblclick", (event) => this.zoom(2, this.at(event)));
    this.drag();
  }

  // Arrow keys go from box to box; Enter and the space bar pick.
  walk(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const boxes = [...this.boxes.children], at = boxes.indexOf(event.target);
    if (step) {
      const next = boxes[(at + step + boxes.length) % boxes.length];
      boxes.forEach((box) => box.setAttribute("tabindex", box === next ? 0 : -1));
      next.focus();
    } else if (event.key === "Enter" || event.key === " ") this.act.pick(Number(event.target.dataset.object));
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  drag() {
    let from = null;
    this.view.addEventListener("pointerdown", (event) => {
      this.dragged = false;
      from = this.zoomed ? [event.clientX, event.clientY] : null;
    });
    this.view.addEventListener("pointermove", (event) => {
      if (!from || !(event.buttons & 1)) return;
      const [x, y] = [event.clientX - from[0], event.clientY - from[1]];
      if (!this.dragged && Math.hypot(x, y) < 5) return;
      if (!this.dragged) this.view.setPointerCapture(event.pointerId);
      this.dragged = true;
      from = [event.clientX, event.clientY];
      this.look({ ...this.window, x: this.window.x - x * this.unit, y: this.window.y - y * this.unit });
    });
    for (const name of ["pointerup", "pointercancel"])
      this.view.addEventListener(name, () => {
        from = null;
      });
  }

  at(event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.view.getScreenCTM().inverse());
    return [point.x, point.y];
  }

  get zoomed() {
    return this.window.width < this.width * 0.999;
  }

  whole() {
    this.look({ x: 0, y: 0, width: this.width, height: this.height });
  }

  zoom(factor, at = [this.window.x + this.window.width / 2, this.window.y + this.window.height / 2]) {
    const width = this.window.width / factor, share = width / this.window.width;
    this.look({
      x: at[0] - (at[0] - this.window.x) * share,
      y: at[1] - (at[1] - this.window.y) * share,
      width,
      height: (width * this.height) / this.width,
    });
  }

  // Zoom to these boxes with some surroundings, or back to the whole image.
  fit(indices) {
    const boxes = indices.map((index) => this.objects[index]).filter(({ missing }) => !missing).map(({ box }) => box);
    if (this.zoomed || !boxes.length) return this.whole();
    const left = Math.min(...boxes.map((b) => b[0])), right = Math.max(...boxes.map((b) => b[0] + b[2]));
    const top = Math.min(...boxes.map((b) => b[1])), bottom = Math.max(...boxes.map((b) => b[1] + b[3]));
    const width = 1.4 * Math.max(right - left, ((bottom - top) * this.width) / this.height),
      height = (width * this.height) / this.width;
    this.look({ x: (left + right - width) / 2, y: (top + bottom - height) / 2, width, height });
  }

  look(window) {
    const width = Math.min(Math.max(window.width, this.width / 40), this.width),
      height = (width * this.height) / this.width;
    const x = Math.min(Math.max(window.x, 0), this.width - width),
      y = Math.min(Math.max(window.y, 0), this.height - height);
    this.window = { x, y, width, height };
    this.view.setAttribute("viewBox", `${x} ${y} ${width} ${height}`);
    this.view.classList.toggle("zoomed", this.zoomed);
    this.scale();
  }

  scale() {
    if (!this.window) return;
    this.unit = Math.max(this.window.width / (this.view.clientWidth || 1), this.window.height / (this.view.clientHeight || 1));
    this.scaled.setAttribute("font-size", TEXT * this.unit);
    this.scaled.setAttribute("stroke-width", LINE * this.unit);
    this.names.querySelectorAll("[data-place]").forEach((name) => this.place(name));
  }

  // relations: all of them, the most confident first; chosen: one of them; pointed: the box whose edges alone are drawn;
  // picked: boxes of a relation that is being added, or null; differs(relation): whether it is only in this run; named: whether
  // a few boxes have their names if nothing is chosen.
  draw({ relations, chosen, pointed, picked = null, differs = () => false, named = true }) {
    let lit = chosen ? [chosen] : [];
    if (pointed !== null) lit = relations.filter((r) => r.subject === pointed || r.object === pointed).slice(0, LIT);
    if (picked) lit = [];
    const faint = pointed !== null || picked ? [] : relations.slice(0, FAINT);
    const pairs = new Map();
    for (const relation of new Set([...lit, ...faint])) {
      const pair = `${relation.subject}-${relation.object}`, isLit = lit.includes(relation);
      if (!pairs.has(pair)) pairs.set(pair, { relation, lit: isLit, texts: [], differs: differs(relation) });
      if (isLit) pairs.get(pair).texts.push(relation.predicate);
    }
    const edges = [...pairs.values()].reverse();
    this.edges.replaceChildren(...edges.map((edge) => this.edge(edge)));
    const other = [...(pointed === null ? [] : [pointed]), ...(picked ?? [])];
    const ends = new Set([...lit.flatMap((r) => [r.subject, r.object]), ...other]);
    for (const box of this.boxes.children) {
      const index = Number(box.dataset.object);
      box.classList.toggle("lit", ends.has(index));
      box.classList.toggle("pointed", index === pointed || Boolean(picked?.includes(index)));
      box.setAttribute("aria-pressed", String(box.matches(".pointed")));
    }
    this.view.classList.toggle("pointing", ends.size > 0);
    this.view.classList.toggle("picking", picked !== null);
    const all = named && this.boxes.children.length <= NAMED ? this.objects.keys() : [];
    this.names.replaceChildren();
    for (const index of ends.size ? ends : all) if (!this.objects[index].missing) this.nameBox(index);
    for (const edge of edges) if (edge.texts.length) this.nameEdge(edge);
    this.scale();
  }

  path({ subject, object }) {
    if (subject === object || this.objects[object].missing) return null;
    let start = this.middle(subject), end = this.middle(object);
    if (Math.hypot(end[0] - start[0], end[1] - start[1]) < CLOSE * this.unit)
      [start, end] = [this.middle(subject, 0.25), this.middle(object, 0.75)];
    const [across, down] = [end[0] - start[0], end[1] - start[1]];
    return [start, [(start[0] + end[0]) / 2 + BEND * down, (start[1] + end[1]) / 2 - BEND * across], end];
  }

  edge(edge) {
    const { relation } = edge, points = this.path(relation), colour = this.objects[relation.subject].colour;
    const attributes = { class: `edge${edge.lit ? " lit" : ""}${edge.differs ? " differs" : ""}`, "data-key": relation.key };
    if (!points) {
      const [cx, cy] = this.middle(relation.subject);
      return svg("g", attributes, svg("circle", { class: "point", cx, cy, r: ".35em", fill: colour }));
    }
    const d = `M${points[0]}Q${points[1]} ${points[2]}`;
    return svg("g", attributes,
      svg("path", { class: "hit", d }),
      svg("path", { class: "halo", d }),
      svg("path", { class: "link", d, stroke: colour, "marker-end": `url(#${this.head(colour)})` }));
  }

  nameBox(index) {
    const [x, y] = this.objects[index].box;
    this.label(this.objects[index].name, this.objects[index].colour, "box-name", { x, y, over: true });
  }

  boxesOf({ subject, object }) {
    const boxes = [subject, object].filter((index) => !this.objects[index].missing).map((index) => this.objects[index].box);
    return boxes.map(([x, y, width, height]) => ({ x, y, width, height }));
  }

  nameEdge({ relation, texts, differs }) {
    const points = this.path(relation) ?? Array(3).fill(this.middle(relation.subject));
    const middle = [0, 1].map((axis) => points[0][axis] / 4 + points[1][axis] / 2 + points[2][axis] / 4);
    const more = texts.length > 3 ? ` +${texts.length - 3}` : "";
    const first = texts.slice(0, 3).map((each) => shortened(each, 40)).join(" · ");
    const place = { x: middle[0], y: middle[1], ends: this.boxesOf(relation) };
    const text = `${first}${more}${differs ? " (only here)" : ""}`;
    this.label(text, this.objects[relation.subject].colour, "edge-name", place);
  }

  label(text, colour, kind, place) {
    const words = svg("text", { y: ".98em", fill: inkOn(kind === "edge-name" ? "#ffffff" : colour) },
      isolated(shortened(text, 120)));
    const ground = svg("rect", { height: "1.4em", rx: ".25em", stroke: colour, fill: colour });
    const name = svg("g", { class: kind, "data-place": JSON.stringify(place) }, ground, words);
    this.names.append(name);
    name.dataset.width = words.getComputedTextLength() / (TEXT * this.unit || 1) + 0.7;
    ground.setAttribute("width", `${name.dataset.width}em`);
    words.setAttribute("x", ".35em");
  }

  // Over a box, or inside if there is no room; on the middle of an edge, but not over a small box, which it would hide;
  // never outside of what can be seen.
  place(name) {
    const place = JSON.parse(name.dataset.place), em = TEXT * this.unit;
    const width = name.dataset.width * em, height = 1.4 * em, { window } = this;
    const inside = (value, low, high) => Math.max(Math.min(value, high), low);
    let x = place.ends ? place.x - width / 2 : place.x, y = place.ends ? place.y - height / 2 : place.y - height;
    if (place.over && y < window.y) y = place.y;
    x = inside(x, window.x, window.x + window.width - width);
    y = inside(y, window.y, window.y + window.height - height);
    const taken = [...this.names.children]
      .slice(0, [...this.names.children].indexOf(name))
      .map((other) => other.spot)
      .filter(Boolean);
    const small = (place.ends ?? []).filter((box) => box.width * box.height < SMALL * width * height);
    const free = (spots) =>
      [0, 1, -1, 2, -2, 3, -3, 4, -4]
        .map((step) => inside(y + step * height * 1.08, window.y, window.y + window.height - height))
        .find((top) => spots.every((t) => x + width < t.x || x > t.x + t.width || top + height < t.y || top > t.y + t.height));
    y = free([...taken, ...small]) ?? free(taken) ?? y;
    name.spot = { x, y, width, height };
    name.setAttribute("transform", `translate(${x} ${y})`);
  }
}
