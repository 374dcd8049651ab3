// The scene graph, as the server laid it out; the list of relations has the same for who does not see it.
import { html, svg, inkOn, isolated, counted } from "./image_dom.js";

const WIDTH = 480;
const rectangle = ([left, top, right, bottom]) => ({ x: left, y: top, width: right - left, height: bottom - top });
const centre = ([left, top, right, bottom]) => ({ x: (left + right) / 2, y: (top + bottom) / 2 });

export class Graph {
  constructor(section, { choose, point }) {
    this.section = section;
    this.act = { choose, point };
  }

  show({ graph, objects, total }) {
    const colour = (index) => objects[index].colour;
    const ofEdge = (edge) => ({ class: "edge", "data-key": edge.key, click: () => this.act.choose(edge.key) });
    const edges = graph.edges.map((edge) => svg("g", ofEdge(edge),
      svg("polyline", { class: "link", points: edge.in_graph, stroke: colour(edge.subject) }),
      edge.graph_head ? svg("polygon", { points: edge.graph_head, fill: colour(edge.subject) }) : null));
    const texts = graph.edges.map((edge) => svg("g", ofEdge(edge),
      svg("rect", { class: "label", rx: 3, stroke: colour(edge.subject), ...rectangle(edge.text_box) }),
      svg("text", { class: "what", ...centre(edge.text_box) }, isolated(edge.text))));
    const point = (index) => () => this.act.point(index);
    const ofNode = ({ index }) => ({ "data-object": index, pointerenter: point(index), pointerleave: point(null) });
    const nodes = graph.nodes.map((node) => svg("g", { class: "node", ...ofNode(node) },
      svg("rect", { rx: 12, fill: colour(node.index), ...rectangle(node.pill) }),
      svg("text", { class: "name", fill: inkOn(colour(node.index)), ...centre(node.pill) }, isolated(node.name))));
    this.edges = graph.edges;
    const name = `Scene graph of ${counted(edges.length, "relation")}; they are also in the list`;
    const size = `0 0 ${WIDTH} ${Math.round(graph.height)}`;
    const parts = [...edges, ...nodes, ...texts];
    const drawing = svg("svg", { class: "graph", viewBox: size, role: "img", "aria-label": name }, ...parts);
    this.section.replaceChildren(
      html("h2", {}, "Scene graph"),
      edges.length ? drawing : html("p", { class: "quiet" }, "There is no relation to draw."),
      edges.length < total
        ? html("p", { class: "quiet" }, `The ${edges.length} most confident of ${counted(total, "relation")}.`)
        : "",
    );
  }

  draw({ chosen, pointed }) {
    const lit =
      pointed === null
        ? this.edges.filter((edge) => edge.key === chosen?.key)
        : this.edges.filter((edge) => edge.subject === pointed || edge.object === pointed);
    const keys = new Set(lit.map((edge) => edge.key)),
      ends = new Set(lit.flatMap((edge) => [edge.subject, edge.object]));
    this.section.querySelector(".graph")?.classList.toggle("pointing", lit.length > 0);
    for (const element of this.section.querySelectorAll(".edge")) element.classList.toggle("lit", keys.has(element.dataset.key));
    for (const element of this.section.querySelectorAll(".node"))
      element.classList.toggle("lit", ends.has(Number(element.dataset.object)));
  }
}
