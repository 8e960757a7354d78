// Pairs of features of two dictionaries, next to each other.

const seenPairs = { chosen: -1, top: 0 };

async function pairsPage(_, __, query) {
  const pairs = await load("pairs");
  const [f, g] = await Promise.all([loadList(0), loadList(1)]);
  const sort = pairs.columns.some((c) => c.name === query.sort) ? query.sort : pairs.columns[0].name;
  const column = pairs.columns.findIndex((c) => c.name === sort);
  const values = pairs.values[column];
  const text = (i) => `${pairs.a[i]} ${nameOf(f, pairs.a[i])} ${pairs.b[i]} ${nameOf(g, pairs.b[i])}`.toLowerCase();
  const state = { q: query.q || "" };
  const list = longList({ seen: seenPairs, label: "pairs", address: (i) => `#/pair/${i}`, draw: (i) => pairRow(pairs, f, g, i, column) });
  const count = el("output", { class: "count" });
  const update = (anew) => {
    const wanted = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [...pairs.a.keys()].filter((i) => wanted.every((word) => text(i).includes(word)));
    found.sort((i, j) => (values[j] ?? -Infinity) - (values[i] ?? -Infinity) || i - j);
    count.textContent = `${number(found.length)} of ${number(pairs.a.length)} pairs`;
    list.show(found, anew);
  };
  const search = el("input", { type: "search", id: "search", value: state.q, placeholder: "label, token or number", "aria-label": "search" });
  search.addEventListener("input", () => ((state.q = search.value), update(true)));
  const order = el("select", null, pairs.columns.map((c) => el("option", { value: c.name, selected: c.name === sort }, c.title)));
  order.addEventListener("change", () => (location.hash = `#/pairs?${new URLSearchParams({ sort: order.value })}`));
  return {
    title: "Pairs",
    class: "wide",
    body: [
      el("h1", null, words(about.sides[0].name), " and ", words(about.sides[1].name)),
      pairs.note && el("p", { class: "note" }, words(pairs.note)),
      el("div", { class: "toolbar" }, search, el("label", null, "order ", order)),
      el("div", { class: "counted" }, count, el("div", { class: "heads" }, el("span", null, pairs.columns[column].title))),
      list.box,
    ],
    ready: () => update(false),
    key: (event) => event.target.matches(FIELDS) || event.target === list.box || list.onKey(event),
  };
}

function pairRow(pairs, f, g, i, column) {
  const half = (list, id) =>
    el("span", { class: "half" }, el("span", { class: "id" }, String(id)), words(nameOf(list, id), { class: list.labels.has(id) ? "name label" : "name" }));
  return [half(f, pairs.a[i]), el("span", { class: "join" }, "↔"), half(g, pairs.b[i]), el("span", { class: "n" }, number(pairs.values[column][i]))];
}

async function pairPage(_, [which]) {
  const pairs = await load("pairs");
  const i = Number(which);
  if (pairs.a[i] === undefined) throw new Error(`There is no pair ${which}.`);
  const ids = [pairs.a[i], pairs.b[i]];
  const features = await Promise.all(ids.map((id, side) => loadFeature(side, id)));
  const step = (by) => `#/pair/${(i + by + pairs.a.length) % pairs.a.length}`;
  const numbers = pairs.columns.map((c, k) => [el("span", { "data-tip": c.description }, c.title), pairs.values[k][i]]);
  return {
    title: `Pair ${ids.join(" and ")}`,
    class: "wide",
    body: [
      el("div", { class: "titled" }, el("h1", null, `Pair of ${ids[0]} and ${ids[1]}`), el("nav", { class: "steps", "aria-label": "other pairs" }, el("a", { href: step(-1), "aria-label": "previous pair" }, "←"), el("a", { href: step(1), "aria-label": "next pair" }, "→"))),
      section("Numbers", table(null, numbers, { class: "numbers" })),
      el("div", { class: "two" }, ids.map((id, side) => el("article", null, el("h2", null, el("a", { href: link(side, `feature/${id}`) }, `${id}`), " ", words(features[side].name), el("small", null, words(about.sides[side].name))), featureBody(side, id, features[side])))),
    ],
    key(event) {
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") location.hash = step(event.key === "ArrowLeft" ? -1 : 1);
    },
  };
}
