// All features: search, order, filters.

const ORDERS = {
  density: ["fires most often", (f, i) => -f.n[i]],
  rare: ["fires least often", (f, i) => (f.n[i] ? f.n[i] : Infinity)],
  max: ["largest value", (f, i) => -f.max[i]],
  mean: ["typical value", (f, i) => -f.mean[i]],
  score: ["label score", (f, i) => -(f.scores[i] ?? -1)],
  share: ["share of the site", (f, i, site) => -(f.shares ? f.shares[site][i] : 0)],
  id: ["number", (_, i) => i],
};
const FILTERS = {
  q: "",
  sort: "density",
  back: "",
  state: "firing",
  from: "",
  to: "",
  score: "",
  site: "0",
  share: "",
};
const seenLists = new Map();

async function listPage(side, _, query) {
  const own = about.sides[side];
  const f = await loadList(side);
  const chosen = { ...FILTERS, ...query };
  if (!f.shares?.[chosen.site]) chosen.site = FILTERS.site;
  const seen = seenLists.get(side) || { chosen: -1, top: 0 };
  seenLists.set(side, seen);
  const count = el("output", { class: "count", "aria-live": "polite" });
  const heads = el("div", { class: "heads", "aria-hidden": "true" });
  const list = longList({
    seen,
    label: "features",
    address: (i) => link(side, `feature/${i}`),
    draw: (i) => featureRow(own, f, i, chosen),
  });

  function update(anew) {
    const found = featuresFor(f, own, chosen);
    count.textContent = `${number(found.length)} of ${number(own.n_features)}`;
    const used = Object.fromEntries(Object.entries(chosen).filter(([name, value]) => String(value) !== FILTERS[name]));
    const address = link(side, "features", used);
    if (anew) history.replaceState(null, "", address);
    list.show(found, anew || seen.address !== address);
    seen.address = address;
    heads.replaceChildren(
      ...columns(own, f, chosen).map(([, text, , main]) => el("span", { class: main ? "main" : null }, text)),
    );
  }

  const bar = filterBar(own, f, chosen, () => update(true));
  return {
    title: "Features",
    body: [
      el("h1", { class: "hidden" }, "Features"),
      sidesNav(side, "features"),
      bar,
      el("div", { class: "counted" }, count, heads),
      list.box,
    ],
    ready: () => update(false),
    key: (event) => listKey(event, list),
  };
}

const searchField = (value) =>
  el("input", { type: "search", id: "search", placeholder: "label, token or number", value, "aria-label": "search" });

// Keys that were pressed outside of a list; in its search field only those that lead into it.
function listKey(event, list) {
  const { target, key } = event;
  if (
    target.matches(FIELDS)
      ? target.type === "search" && ["ArrowDown", "ArrowUp", "Enter"].includes(key)
      : target !== list.box
  )
    list.onKey(event);
}

async function loadList(side) {
  const f = await load(`${side}/list`);
  if (!f.search) {
    const own = about.sides[side];
    f.scores = Array(own.n_features).fill(null);
    f.names = f.tokens.map((tokens) => tokens.map((i) => f.strings[i]).join(" | "));
    f.search = f.names.map((_, i) =>
      folded([...[...f.tokens[i], ...f.promoted[i]].map((k) => f.strings[k]), f.context[i]].join("\n")),
    );
    f.labels = new Map();
    for (const [i, text, score] of f.labelled) {
      f.labels.set(i, text);
      f.scores[i] = score;
      f.search[i] += `\n${folded(text)}`;
    }
  }
  return f;
}

// Without capitals and accents.
const folded = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();

function featuresFor(f, own, { q, sort, back, state, from, to, score, site, share }) {
  const wanted = folded(q).split(/\s+/).filter(Boolean);
  const limit = (text, scale) => (text === "" || Number.isNaN(Number(text)) ? null : Number(text) * scale);
  const low = limit(from, own.n_tokens / 100),
    high = limit(to, own.n_tokens / 100);
  const least = limit(score, 1),
    leastShare = limit(share, 0.01);
  const states = {
    all: () => true,
    firing: (i) => f.n[i] > 0,
    dead: (i) => f.n[i] === 0,
    labelled: (i) => f.labels.has(i),
    unlabelled: (i) => f.n[i] > 0 && !f.labels.has(i),
  };
  const inState = states[!Object.hasOwn(states, state) || (wanted.length && state === "firing") ? "all" : state];
  const fits = (word, i) => f.search[i].includes(word) || String(i) === word.replace(/^#/, "");
  const found = [];
  for (let i = 0; i < own.n_features; i++) {
    if (!inState(i) || (low !== null && f.n[i] < low - 1e-6) || (high !== null && f.n[i] >= high - 1e-6)) continue;
    if (least !== null && !(f.scores[i] >= least)) continue;
    if (leastShare !== null && f.shares && f.shares[site][i] < leastShare) continue;
    if (wanted.every((word) => fits(word, i))) found.push(i);
  }
  const rank = ORDERS[Object.hasOwn(ORDERS, sort) ? sort : FILTERS.sort][1];
  const ranks = Float64Array.from({ length: own.n_features }, (_, i) => (back ? -1 : 1) * rank(f, i, site));
  const exact = wanted.length === 1 ? Number(wanted[0].replace(/^#/, "")) : NaN;
  return found.sort((a, b) => (b === exact) - (a === exact) || ranks[a] - ranks[b] || a - b);
}

function filterBar(own, f, chosen, changed) {
  const field = (name, input) => {
    input.addEventListener("input", () => ((chosen[name] = input.value), changed()));
    return input;
  };
  const choice = (name, options) =>
    field(
      name,
      el(
        "select",
        null,
        options.map(([value, text]) => el("option", { value, selected: value === chosen[name] }, text)),
      ),
    );
  const amount = (name, hint, most = 100) =>
    field(
      name,
      el("input", {
        type: "number",
        inputmode: "decimal",
        step: "any",
        min: 0,
        max: most,
        value: chosen[name],
        "aria-label": hint,
      }),
    );
  const several = own.writes.length > 1 && f.shares;
  const orders = Object.entries(ORDERS).filter(
    ([name]) => (name !== "share" || several) && (name !== "score" || own.n_labelled),
  );
  const search = field("q", searchField(chosen.q));
  const more = el(
    "details",
    { open: ["from", "to", "score", "share"].some((name) => chosen[name] !== "") },
    el("summary", null, "filters"),
    el(
      "div",
      { class: "filters" },
      el(
        "span",
        null,
        "fires on ",
        amount("from", "fires on at least this percentage of tokens"),
        " to ",
        amount("to", "fires on less than this percentage of tokens"),
        " % of tokens",
      ),
      own.n_labelled > 0 && el("label", null, "label score at least ", amount("score", "label score at least", 1)),
      several &&
        el(
          "span",
          null,
          choice(
            "site",
            own.writes.map((s, i) => [String(i), s]),
          ),
          " has at least ",
          amount("share", "share of the decoder norm"),
          " % of the decoder norm",
        ),
    ),
  );
  const states = [
    ["firing", "that fire"],
    ["all", "all"],
    ["dead", "that never fire"],
  ];
  if (own.n_labelled) states.push(["labelled", "labelled"], ["unlabelled", "without a label"]);
  return el(
    "div",
    { class: "toolbar", role: "search" },
    search,
    el(
      "span",
      null,
      el(
        "label",
        null,
        "order ",
        choice(
          "sort",
          orders.map(([name, [text]]) => [name, text]),
        ),
      ),
      " ",
      reverse(chosen, changed),
    ),
    el("label", null, "show ", choice("state", states)),
    more,
  );
}

function reverse(chosen, changed) {
  const button = el(
    "button",
    { type: "button", "aria-label": "the other way round", "aria-pressed": String(Boolean(chosen.back)) },
    "⇅",
  );
  button.addEventListener("click", () => {
    chosen.back = chosen.back ? "" : "1";
    button.setAttribute("aria-pressed", String(Boolean(chosen.back)));
    changed();
  });
  return button;
}

// [name, heading, what is said of feature i, whether a phone shows it] of the numbers in a row.
function columns(own, f, { sort, site }) {
  const found = [
    ["density", "fires on", (i) => (f.n[i] ? percent(f.n[i] / own.n_tokens) : "–")],
    ["mean", "typical", (i) => number(f.mean[i])],
    ["max", "largest", (i) => number(f.max[i])],
  ];
  if (own.n_labelled) found.push(["score", "score", (i) => (f.scores[i] === null ? "–" : f.scores[i].toFixed(2))]);
  if (f.shares && sort === "share") found.push(["share", "share of site", (i) => percent(f.shares[site][i], 2)]);
  const main = found.find(([name]) => name === sort) || found[0];
  return found.map((column) => [...column, column === main]);
}

function featureRow(own, f, i, chosen) {
  const label = f.labels.get(i);
  const name = label || f.names[i] || (f.n[i] ? "" : "never fires");
  return [
    el("span", { class: "id" }, String(i)),
    el(
      "span",
      { class: "what" },
      words(name, { class: label ? "name label" : f.n[i] ? "name" : "name dead" }),
      f.context[i] && words(`… ${f.context[i].trimStart()}`, { class: "context" }),
    ),
    el(
      "span",
      { class: "bar", "data-tip": "how often it fires, on a logarithmic scale" },
      el("span", { style: { width: `${densityWidth(f.n[i], own.n_tokens)}%` } }),
    ),
    columns(own, f, chosen).map(([, , said, main]) => el("span", { class: main ? "n main" : "n" }, said(i))),
  ];
}

// Logarithmic, from one token to all of them.
const densityWidth = (n, all) => (n ? Math.max(2, (100 * Math.log(n + 1)) / Math.log(all + 1)) : 0).toFixed(1);
