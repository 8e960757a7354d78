// Pairs of features of two dictionaries, next to each other.

const seenPairs = { chosen: -1, top: 0 };
const MOST_COLUMNS = 4;

function loadPairs() {
  if (about.pairs === null) throw new Error("This site holds no pairs of features.");
  return load("pairs");
}

async function pairsPage(_, __, query) {
  const pairs = await loadPairs();
  const [f, g] = await Promise.all([loadList(0), loadList(1)]);
  const columnOf = (name) =>
    Math.max(
      0,
      pairs.columns.findIndex((c) => c.name === name),
    );
  const chosen = { q: "", sort: pairs.columns[0].name, back: "", ...query };
  const searched = Array.from(pairs.a, (a, i) =>
    folded(`${a} ${nameOf(f, a)} ${f.context[a]} ${pairs.b[i]} ${nameOf(g, pairs.b[i])} ${g.context[pairs.b[i]]}`),
  );
  const count = el("output", { class: "count", "aria-live": "polite" });
  const heads = el("div", { class: "heads", "aria-hidden": "true" });
  const shownColumns = () =>
    [columnOf(chosen.sort), ...pairs.columns.keys()].filter((k, i, all) => all.indexOf(k) === i).slice(0, MOST_COLUMNS);
  const list = longList({
    seen: seenPairs,
    label: "pairs",
    address: (i) => `#/pair/${i}`,
    draw: (i) => pairRow(pairs, f, g, i, shownColumns()),
  });

  function update(anew) {
    const wanted = folded(chosen.q).split(/\s+/).filter(Boolean);
    const values = pairs.values[columnOf(chosen.sort)],
      sign = chosen.back ? -1 : 1;
    const found = [...pairs.a.keys()].filter((i) => wanted.every((word) => searched[i].includes(word)));
    const rank = (i) => (values[i] === null ? Infinity : -sign * values[i]);
    found.sort((i, j) => (rank(i) < rank(j) ? -1 : rank(i) > rank(j) ? 1 : i - j));
    count.textContent = `${number(found.length)} of ${number(pairs.a.length)} pairs`;
    heads.replaceChildren(
      ...shownColumns().map((k, n) => el("span", { class: n ? null : "main" }, pairs.columns[k].title)),
    );
    const used = Object.entries(chosen).filter(
      ([name, value]) => value && !(name === "sort" && value === pairs.columns[0].name),
    );
    const place = link(0, "pairs", Object.fromEntries(used));
    if (anew) history.replaceState(null, "", place);
    list.show(found, anew || seenPairs.address !== place);
    seenPairs.address = place;
  }

  const search = searchField(chosen.q);
  search.addEventListener("input", () => ((chosen.q = search.value), update(true)));
  const order = el(
    "select",
    null,
    pairs.columns.map((c) => el("option", { value: c.name, selected: c.name === chosen.sort }, c.title)),
  );
  order.addEventListener("change", () => ((chosen.sort = order.value), update(true)));
  return {
    title: "Pairs",
    body: [
      el("h1", null, words(about.sides[0].name), " and ", words(about.sides[1].name)),
      pairs.note && el("p", { class: "note" }, words(pairs.note)),
      el(
        "div",
        { class: "toolbar" },
        search,
        el(
          "span",
          null,
          el("label", null, "order ", order),
          " ",
          reverse(chosen, () => update(true)),
        ),
      ),
      el("div", { class: "counted" }, count, heads),
      list.box,
    ],
    ready: () => update(false),
    key: (event) => listKey(event, list),
  };
}

function pairRow(pairs, f, g, i, columns) {
  const half = (list, id) =>
    el(
      "span",
      { class: "half" },
      el("span", { class: "id" }, String(id)),
      words(nameOf(list, id), { class: list.labels.has(id) ? "name label" : "name" }),
    );
  const numbers = columns.map((k, n) => el("span", { class: n ? "n" : "n main" }, number(pairs.values[k][i])));
  return [half(f, pairs.a[i]), el("span", { class: "join" }, "↔"), half(g, pairs.b[i]), numbers];
}

async function pairPage(_, [which]) {
  const pairs = await loadPairs();
  const i = Number(which);
  if (pairs.a[i] === undefined) throw new Error(`There is no pair ${which}.`);
  const ids = [pairs.a[i], pairs.b[i]];
  const features = await Promise.all(ids.map((id, side) => loadFeature(side, id)));
  const step = (by) => `#/pair/${(i + by + pairs.a.length) % pairs.a.length}`;
  const numbers = pairs.columns.map((c, k) => [el("span", { "data-tip": c.description }, c.title), pairs.values[k][i]]);
  return {
    title: `Pair ${ids.join(" and ")}`,
    body: [
      el("div", { class: "titled" }, el("h1", null, `Pair of ${ids[0]} and ${ids[1]}`), stepsNav("pair", step)),
      section("Numbers", table(null, numbers, { class: "numbers" })),
      el(
        "div",
        { class: "two" },
        ids.map((id, side) =>
          el(
            "article",
            null,
            el(
              "h2",
              null,
              el("a", { href: link(side, `feature/${id}`) }, `${id}`),
              " ",
              words(features[side].name),
              el("small", null, words(about.sides[side].name)),
            ),
            featureBody(side, id, features[side]),
          ),
        ),
      ),
    ],
    key: (event) => stepKey(event, step),
  };
}
