// Elements, made without any markup: text is always text.

const SVG = "http://www.w3.org/2000/svg";

function el(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size >= 1e6) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return size >= 0.001 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

function percent(share, digits = 3) {
  if (share === null || share === undefined || Number.isNaN(share)) return "–";
  const value = 100 * share;
  if (value === 0 || value === 100) return `${value} %`;
  if (value > 99.9 && value < 100) return `${Math.min(value, 99.9999).toPrecision(5)} %`;
  return `${Math.abs(value) >= 0.001 ? Number(value.toPrecision(digits)) : value.toExponential(1)} %`;
}

// A token in a list: its spaces at either end are seen.
const visible = (text) => text.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) || "(empty)";

const words = (text, attributes) => el("bdi", attributes, text);

function table(head, rows, attributes) {
  const numeric = (cell) => typeof cell === "number" || /^[-–\d.,e]+( %)?$/.test(cell);
  const right = rows.length ? rows[0].map((_, i) => rows.every((row) => numeric(row[i]))) : [];
  const cells = (row, tag) => row.map((cell, i) => el(tag, { class: right[i] ? "n" : null }, shown(cell)));
  return el(
    "div",
    { class: "scroll" },
    el(
      "table",
      attributes,
      head && el("thead", null, el("tr", null, cells(head, "th"))),
      el(
        "tbody",
        null,
        rows.map((row) => el("tr", null, cells(row, "td"))),
      ),
    ),
  );
}

const shown = (cell) => (typeof cell === "number" ? number(cell) : cell);

function section(title, ...children) {
  return el("section", null, title && el("h2", null, title), children);
}

function external(url, text) {
  return el("a", { href: url, rel: "noopener noreferrer", target: "_blank" }, text);
}

// Arrow keys lead through the elements of a box, of which one can be reached by Tab; `width`: how many make a row.
function roving(box, elements, width = 1) {
  let at = 0;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: width, ArrowUp: -width };
  for (const [i, node] of elements.entries()) node.setAttribute("tabindex", i ? "-1" : "0");
  box.addEventListener("keydown", (event) => {
    const here = elements.indexOf(document.activeElement),
      next = here + steps[event.key];
    if (here < 0 || !plainKey(event) || !elements[next]) return;
    elements[at].setAttribute("tabindex", "-1");
    at = next;
    elements[at].setAttribute("tabindex", "0");
    elements[at].focus();
    event.preventDefault();
    event.stopPropagation();
  });
}

const plainKey = (event) => !(event.altKey || event.ctrlKey || event.metaKey);

// One tooltip for whatever bears data-tip; it follows the pointer, the focus, and a tap.
function startTips() {
  const tip = document.getElementById("tip");
  const owner = (event) => (event.target instanceof Element ? event.target.closest("[data-tip]") : null);
  const show = (node) => {
    tip.hidden = !node;
    if (!node) return;
    tip.textContent = node.dataset.tip;
    const box = node.getBoundingClientRect();
    const left = Math.min(
      Math.max(box.left + box.width / 2 - tip.offsetWidth / 2, 6),
      innerWidth - tip.offsetWidth - 6,
    );
    const above = box.top - tip.offsetHeight - 6;
    tip.style.setProperty("left", `${left}px`);
    tip.style.setProperty("top", `${above > 4 ? above : box.bottom + 6}px`);
  };
  for (const name of ["pointerover", "focusin", "click"])
    document.addEventListener(name, (event) => show(owner(event)));
  document.addEventListener("focusout", () => show(null));
  document.addEventListener("scroll", () => show(null), true);
}
