// Which features fire on the same tokens, as a matrix.

const MOST_AROUND = 32;

async function togetherPage(side, _, query) {
  const own = about.sides[side];
  if (!own.has_cofiring) throw new Error("Which features fire together was not counted for this dictionary.");
  const graph = await load(`${side}/together`);
  const f = await loadList(side);
  const around = query.around === undefined || query.around === "" ? null : Number(query.around);
  if (around !== null && !(Number.isInteger(around) && around >= 0 && around < own.n_features))
    throw new Error(`There is no feature ${query.around}.`);
  const known = pairsOf(graph);
  const chosen = around === null ? graph.start : neighbourhood(known, around);
  const input = el("input", {
    type: "number",
    min: 0,
    max: own.n_features - 1,
    value: around ?? "",
    "aria-label": "feature",
    id: "around",
  });
  input.addEventListener(
    "change",
    () => (location.hash = link(side, "together", input.value === "" ? {} : { around: input.value })),
  );
  return {
    title: "Together",
    body: [
      el("h1", null, "Features that fire together"),
      sidesNav(side, "together"),
      el(
        "p",
        { class: "lead" },
        around === null
          ? "Groups that fire on the same tokens most closely. "
          : ["Around ", featureLink(side, around, nameOf(f, around)), ". "],
        el("label", { class: "inline" }, around === null ? "Around feature " : "Another one: ", input),
      ),
      chosen.length > 1
        ? matrix(side, own, f, chosen, known, graph)
        : el("p", { class: "note" }, "No feature is known to fire together with it."),
      el(
        "p",
        { class: "note" },
        `Colour is phi, the correlation of firing or not, over ${number(graph.rows)} sampled tokens. Of every feature the ${graph.width} closest are known; an empty square is a pair that is in neither list.`,
      ),
    ],
  };
}

const nameOf = (f, i) => f.labels.get(i) || f.names[i] || "";

// Map of "a-b" -> [phi, count], and of each feature's neighbours
function pairsOf(graph) {
  if (graph.known) return graph.known;
  const pairs = new Map(),
    next = new Map();
  let place = 0;
  graph.counts_of.forEach((n, feature) => {
    const own = [];
    for (let k = 0; k < n; k++, place++) {
      const other = graph.other[place];
      own.push(other);
      pairs.set(pairKey(feature, other), [graph.phi[place], graph.count[place]]);
    }
    if (n) next.set(feature, own);
  });
  graph.known = { pairs, next };
  return graph.known;
}

const pairKey = (a, b) => (a < b ? `${a}-${b}` : `${b}-${a}`);

function neighbourhood({ next, pairs }, feature) {
  const found = [feature];
  for (let k = 0; k < found.length && found.length < MOST_AROUND; k++) {
    for (const other of next.get(found[k]) || [])
      if (!found.includes(other) && found.length < MOST_AROUND) found.push(other);
  }
  const phi = (a, b) => pairs.get(pairKey(a, b))?.[0] ?? 0;
  const ordered = [found.shift()]; // each next to the one it fires with most
  while (found.length) {
    const last = ordered.at(-1);
    let best = 0;
    for (let k = 1; k < found.length; k++) if (phi(last, found[k]) > phi(last, found[best])) best = k;
    ordered.push(...found.splice(best, 1));
  }
  return ordered;
}

function matrix(side, own, f, chosen, { pairs }, graph) {
  const head = el(
    "tr",
    null,
    el("th", null, ""),
    chosen.map((i) =>
      el(
        "th",
        { class: "upright" },
        el("a", { href: link(side, `feature/${i}`), "data-tip": `${i} ${nameOf(f, i)}` }, String(i)),
      ),
    ),
  );
  const rows = chosen.map((a) =>
    el(
      "tr",
      null,
      el("th", { scope: "row" }, featureLink(side, a, nameOf(f, a))),
      chosen.map((b) => {
        if (a === b) return el("td", { class: "same" });
        const found = pairs.get(pairKey(a, b));
        if (!found) return el("td");
        const said = `${a} ${nameOf(f, a)}\nand ${b} ${nameOf(f, b)}\nphi ${found[0].toFixed(2)}, both on ${number(found[1])} of ${number(graph.rows)} tokens`;
        return el("td", {
          class: "cofires",
          "data-tip": said,
          style: { "--a": Math.min(1, 0.08 + 0.92 * found[0]).toFixed(2) },
        });
      }),
    ),
  );
  return heatTable(
    "heat square",
    "which features fire together: arrow keys lead from square to square",
    head,
    rows,
    chosen.length,
  );
}
