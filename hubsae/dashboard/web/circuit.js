// Which features of one layer drive which of a later one, as a graph.

const NODE = { width: 210, height: 40, gapX: 230, leastGap: 60, gapY: 14, margin: 12, head: 26, letters: 27 };

async function circuitPage(_, [which]) {
  const number_ = Number(which || 0);
  if (!about.circuits[number_]) throw new Error(`There is no circuit ${which}.`);
  const circuit = await load(`circuit-${number_}`);
  const links = about.circuits.map((title, i) =>
    el("a", { href: `#/circuit/${i}`, "aria-current": i === number_ ? "page" : null }, words(title)),
  );
  return {
    title: "Circuit",
    body: [
      el("h1", null, "Circuit"),
      links.length > 1 && el("nav", { class: "choices", "aria-label": "circuits" }, links),
      el(
        "p",
        { class: "lead" },
        "From ",
        words(circuit.texts[0], { class: "quote" }),
        circuit.texts.length > 1 ? ` and ${circuit.texts.length - 1} more` : "",
        " to ",
        words(visible(circuit.answers[0]), { class: "token" }),
        ".",
      ),
      el("div", { class: "scroll" }, graph(circuit)),
      el(
        "p",
        { class: "note" },
        "An edge is the share of the later feature's activation that the earlier one brings, by gradients; blue raises it, red lowers it. A node leads to its feature.",
      ),
      el(
        "div",
        { class: "columns" },
        section("Edges", edgesTable(circuit)),
        section("Ablated", effectTable(circuit), agreementNote(circuit.agreement)),
      ),
      circuit.texts.length > 1 &&
        section(
          "Texts and answers",
          table(
            null,
            circuit.texts.map((text, i) => [words(text), words(visible(circuit.answers[i]), { class: "token" })]),
          ),
        ),
    ],
  };
}

const nodeKey = (layer, feature) => `${layer}:${feature}`;
const cut = (text, letters) => ([...text].length > letters ? `${[...text].slice(0, letters - 1).join("")}…` : text);

function graph(circuit) {
  const layers = [...new Set(circuit.nodes.map((node) => node.layer))].sort((a, b) => a - b);
  const columns = layers.map((layer) => circuit.nodes.filter((node) => node.layer === layer));
  const tallest = Math.max(...columns.map((column) => column.length));
  const step = NODE.height + NODE.gapY;
  const free = (main.clientWidth - 2 * NODE.margin - layers.length * NODE.width) / Math.max(1, layers.length - 1);
  const across = NODE.width + Math.min(NODE.gapX, Math.max(NODE.leastGap, free - 40));
  const where = new Map();
  const boxes = columns.flatMap((column, k) =>
    column.map((node, i) => {
      const x = NODE.margin + k * across;
      const y = NODE.head + NODE.margin + i * step + ((tallest - column.length) * step) / 2;
      where.set(nodeKey(node.layer, node.feature), { x, y });
      return box(circuit, node, x, y);
    }),
  );
  const most = Math.max(...circuit.edges.map((edge) => Math.abs(edge.share)), 1e-9);
  const curvesOf = circuit.edges.map((edge) => edgeLine(edge, where, most, circuit));
  const heads = layers.map((layer, k) =>
    svg("text", { class: "head", x: NODE.margin + k * across, y: 20 }, `layer ${layer}`),
  );
  const width = 2 * NODE.margin + NODE.width + (layers.length - 1) * across;
  const height = NODE.head + 2 * NODE.margin + tallest * step;
  const picture = svg(
    "svg",
    {
      class: "graph",
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: "group",
      "aria-label": "graph of the circuit",
    },
    heads,
    curvesOf,
    boxes,
  );
  const focus = (event, on) => {
    const key = event.target.closest?.("[data-node]")?.dataset.node;
    if (!key) return;
    picture.classList.toggle("focused", on);
    for (const line of picture.querySelectorAll("[data-ends]"))
      line.classList.toggle("lit", on && line.dataset.ends.split(" ").includes(key));
  };
  for (const name of ["pointerover", "focusin"]) picture.addEventListener(name, (event) => focus(event, true));
  for (const name of ["pointerout", "focusout"]) picture.addEventListener(name, (event) => focus(event, false));
  return picture;
}

function box(circuit, node, x, y) {
  const side = circuit.sides[node.layer];
  const shape = [
    svg("rect", { class: "node", x, y, width: NODE.width, height: NODE.height, rx: 6 }),
    svg("text", { x: x + 10, y: y + 17 }, cut(`${node.feature} ${node.name}`, NODE.letters)),
    svg("text", { class: "small", x: x + 10, y: y + 32 }, `effect on the answer ${number(node.effect)}`),
  ];
  const attributes = {
    "data-node": nodeKey(node.layer, node.feature),
    "data-tip": `${node.feature} ${node.name}\nactivation ${number(node.activation)}, effect ${number(node.effect)}`,
  };
  return side === null
    ? svg("g", attributes, shape)
    : svg("a", { ...attributes, href: link(side, `feature/${node.feature}`) }, shape);
}

function edgeLine(edge, where, most, circuit) {
  const from = where.get(nodeKey(edge.source_layer, edge.source)),
    to = where.get(nodeKey(edge.target_layer, edge.target));
  const x1 = from.x + NODE.width,
    y1 = from.y + NODE.height / 2,
    x2 = to.x,
    y2 = to.y + NODE.height / 2,
    half = (x1 + x2) / 2;
  const strength = Math.abs(edge.share) / most;
  const style = { "stroke-width": (0.8 + 5 * strength).toFixed(1), "--a": (0.25 + 0.6 * strength).toFixed(2) };
  const name = (layer, feature) =>
    `${feature} ${circuit.nodes.find((n) => n.layer === layer && n.feature === feature)?.name || ""}`;
  return svg("path", {
    class: edge.share >= 0 ? "edge raises" : "edge lowers",
    d: `M${x1},${y1} C${half},${y1} ${half},${y2} ${x2},${y2}`,
    style,
    "data-ends": `${nodeKey(edge.source_layer, edge.source)} ${nodeKey(edge.target_layer, edge.target)}`,
    "data-tip": `${name(edge.source_layer, edge.source)}\n→ ${name(edge.target_layer, edge.target)}\n${percent(edge.share)} of it`,
  });
}

function edgesTable(circuit) {
  const node = (layer, feature) => {
    const side = circuit.sides[layer];
    const name = circuit.nodes.find((n) => n.layer === layer && n.feature === feature)?.name || "";
    const text = [el("span", { class: "id" }, `${layer}:${feature}`), " ", words(name)];
    return side === null ? el("span", null, text) : el("a", { href: link(side, `feature/${feature}`) }, text);
  };
  const rows = circuit.edges.map((e) => [
    node(e.source_layer, e.source),
    node(e.target_layer, e.target),
    e.gradient,
    e.ablation,
    percent(e.share),
  ]);
  return table(["from", "to", "gradient", "ablation", "share"], rows);
}

function effectTable({ effect }) {
  const n = effect.random_drops.length;
  const mean = n ? effect.random_drops.reduce((a, b) => a + b, 0) / n : null;
  const rows = [
    ["nothing", percent(effect.before), 0],
    [`its ${effect.n_ablated} sources`, percent(effect.after), effect.drop],
  ];
  if (n) rows.push([`as many others (mean of ${n} sets)`, percent(effect.random_after), mean]);
  return table(["ablated", "probability of the answer", "loss (nats)"], rows);
}

function agreementNote(a) {
  const said = (v) => (v === null ? "–" : v.toFixed(2));
  return el(
    "p",
    { class: "note" },
    `Gradient against ablation, rank correlation: ${said(a.kept)} on these ${a.n_kept} edges, ${said(a.all)} on ${number(a.n_all)} pairs.`,
  );
}
