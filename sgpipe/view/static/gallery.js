// The gallery works without this script, which adds keys, a drag over the histogram, and news of a run in progress.
const cards = [...document.querySelectorAll(".card > a")];
const typing = (target) => target.matches("input, select, textarea");

const columns = () => {
  const top = cards[0].getBoundingClientRect().top;
  return cards.filter((card) => Math.abs(card.getBoundingClientRect().top - top) < 2).length;
};

const move = (key) => {
  const at = cards.indexOf(document.activeElement);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
  const to = at < 0 ? 0 : at + steps[key];
  if (to >= 0 && to < cards.length) cards[to].focus();
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  if (event.key === "/") document.getElementById("q").select();
  else if (event.key.startsWith("Arrow") && cards.length && (event.target === document.body || cards.includes(event.target))) move(event.key);
  else if (event.key.toLowerCase() === "n") document.querySelector(".pager a")?.click();
  else return;
  event.preventDefault();
});

// Orders apply at once; the button is for browsers without scripts, and to shuffle again.
const order = document.getElementById("order");
if (order && order.value !== "shuffle") order.form.querySelector("button").hidden = true;
order?.addEventListener("change", () => {
  order.form.elements.seed?.remove();
  order.form.submit();
});

// A drag over the histogram chooses a range; a click, a link, chooses one bar.
const histogram = document.querySelector(".histogram");
const range = document.querySelector(".range");
let started = null;
const share = (event) => {
  const { left, width } = histogram.getBoundingClientRect();
  return Math.min(Math.max((event.clientX - left) / width, 0), 1);
};
const step = (value) => (Math.round(value * 20) / 20).toFixed(2);
histogram?.addEventListener("dragstart", (event) => event.preventDefault());
histogram?.addEventListener("pointerdown", (event) => { if (event.button === 0) started = share(event); });
histogram?.addEventListener("click", (event) => {
  if (started === null || Math.abs(share(event) - started) < 0.06) return;
  event.preventDefault();
  const [low, high] = [started, share(event)].sort((a, b) => a - b);
  range.elements.low.value = step(low);
  range.elements.high.value = step(high);
  range.submit();
});

// On a phone the filters are folded.
if (matchMedia("(max-width: 760px)").matches) document.querySelector(".drawer")?.removeAttribute("open");

// A run that is being written: say how far it is, and leave it to the reader when to see it.
const grown = document.getElementById("grown");
const look = async () => {
  if (document.hidden) return;
  try {
    const response = await fetch("/api/status");
    const now = await response.json();
    if (!response.ok || `${now.images} ${now.relations}` === grown.dataset.size) return;
    const link = document.createElement("a");
    link.href = location.href;
    link.textContent = `the run has ${now.images.toLocaleString("en")} images by now: refresh`;
    grown.replaceChildren(link);
    grown.hidden = false;
  } catch {
    grown.textContent = "the server does not answer";
    grown.hidden = false;
  }
};
if (grown) setInterval(look, 5000);
