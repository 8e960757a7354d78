// One feature.

async function featurePage(side, [text]) {
  const own = about.sides[side];
  const id = Number(text);
  if (!Number.isInteger(id) || id < 0 || id >= own.n_features || text === "") {
    throw new Error(`There is no feature ${text}: the dictionary has features 0 to ${own.n_features - 1}.`);
  }
  const feature = await loadFeature(side, id);
  const step = (by) => link(side, `feature/${(id + by + own.n_features) % own.n_features}`);
  return {
    title: `${id} ${feature.name}`,
    body: [
      el(
        "div",
        { class: "titled" },
        el(
          "h1",
          null,
          el("span", { class: "id" }, `Feature ${id} `),
          words(feature.name || (feature.n ? "" : "never fires")),
        ),
        stepsNav("feature", step),
      ),
      featureBody(side, id, feature),
    ],
    key: (event) => stepKey(event, step),
  };
}

// To the one before and the one after: step(-1) and step(1).
function stepsNav(what, step) {
  const links = [
    [-1, "previous", "←"],
    [1, "next", "→"],
  ];
  return el(
    "nav",
    { class: "steps", "aria-label": `other ${what}s` },
    links.map(([by, word, sign]) => el("a", { href: step(by), "aria-label": `${word} ${what}` }, sign)),
  );
}

function stepKey({ key, target }, step) {
  if (target.matches(FIELDS)) return;
  if (key === "ArrowLeft" || key === "ArrowRight") location.hash = step(key === "ArrowLeft" ? -1 : 1);
}

function featureBody(side, id, feature) {
  const own = about.sides[side];
  return el(
    "div",
    { class: "feature" },
    el(
      "div",
      { class: "aside" },
      featureFacts(side, id, feature),
      valueChart(feature),
      siteNorms(own, feature),
      tokenWeights(feature),
      neighbours(side, feature),
    ),
    el("div", { class: "texts" }, exampleSections(own, feature)),
  );
}

function featureFacts(side, id, feature) {
  const own = about.sides[side];
  const rows = [];
  if (feature.label) {
    const { score, n, labeler } = feature.label;
    const said = score === null ? "not scored" : `${score.toFixed(2)} on ${number(n)} texts (0.5 is chance)`;
    rows.push(["label score", said], ["labelled by", words(labeler || "unknown")]);
  }
  rows.push(
    ["fires on", `${percent(feature.n / own.n_tokens)} of ${number(own.n_tokens)} tokens`],
    ["typical value", `${number(feature.mean)} (sd ${number(feature.std)})`],
    ["largest value", number(feature.max)],
  );
  if (feature.norms?.length === 1) rows.push(["decoder norm", number(feature.norms[0])]);
  const actions = el(
    "p",
    { class: "actions" },
    own.has_cofiring && el("a", { href: link(side, "together", { around: id }) }, "what fires with it"),
    live.steer?.[side] && el("a", { href: link(side, "steer", { feature: id }) }, "steer with it"),
  );
  return section(null, table(null, rows, { class: "facts" }), actions);
}

function valueChart(feature) {
  if (!feature.n) return null;
  const counts = feature.histogram;
  const used = Math.max(8, counts.findLastIndex((c) => c > 0) + 1);
  const step = feature.histogram_top / counts.length;
  const bars = counts.slice(0, used).map((count, i) => ({
    count,
    label: number(Number((i * step).toPrecision(2))),
    tip: `${number(count)} tokens with ${number(i * step)} to ${number((i + 1) * step)}`,
  }));
  return histogram("its values where it fires", bars, { every: Math.ceil(used / 4), height: 130 });
}

function siteNorms(own, feature) {
  if (!feature.norms || feature.norms.length < 2) return null;
  const all = feature.norms.reduce((a, b) => a + b, 0) || 1;
  return section(
    "Decoder norm at each site",
    meters(
      own.writes.map((site, i) => [
        el("code", null, site),
        feature.norms[i] / all,
        `${number(feature.norms[i])} (${Math.round((100 * feature.norms[i]) / all)} %)`,
      ]),
    ),
  );
}

// [[what, share from 0 to 1 (or -1 to 0), said]]
function meters(rows) {
  return el(
    "ul",
    { class: "meters" },
    rows.map(([what, share, said]) =>
      el(
        "li",
        null,
        el("span", { class: "what" }, what),
        el(
          "span",
          { class: share < 0 ? "meter below" : "meter" },
          el("span", { style: { width: `${Math.min(100, 100 * Math.abs(share)).toFixed(1)}%` } }),
        ),
        el("span", { class: "n" }, said),
      ),
    ),
  );
}

function tokenWeights(feature) {
  const most = Math.max(...[...feature.promoted, ...feature.suppressed].map(([, weight]) => Math.abs(weight)), 1e-9);
  const list = (title, pairs) =>
    pairs.length > 0 &&
    section(
      title,
      meters(
        pairs.map(([i, weight]) => [
          words(visible(feature.strings[i]), { class: "token" }),
          weight / most,
          number(weight),
        ]),
      ),
    );
  return el(
    "div",
    { class: "pair" },
    list("Raises the logits of", feature.promoted),
    list("Lowers the logits of", feature.suppressed),
  );
}

function neighbours(side, feature) {
  const list = (title, found, said) =>
    found.length > 0 &&
    section(
      title,
      el(
        "ul",
        { class: "links" },
        found.map((n) =>
          el(
            "li",
            null,
            featureLink(side, n.id, n.name),
            el("span", { class: "n", "data-tip": said(n) }, n.score.toFixed(2)),
          ),
        ),
      ),
    );
  return [
    list(
      "Fires together with",
      feature.cofiring,
      (n) => `phi (correlation of firing or not); both fire on ${number(n.count)} sampled tokens`,
    ),
    list("Similar decoders", feature.similar, () => "cosine of the decoder rows"),
  ];
}

function exampleSections(own, feature) {
  if (!feature.n) return el("p", { class: "note" }, `It fired on none of the ${number(own.n_tokens)} tokens.`);
  if (!own.has_examples)
    return el("p", { class: "note" }, "No examples are known: the dictionary comes with numbers only.");
  const { strings } = feature;
  const list = (title, note, found) =>
    found.length > 0 && section(title, el("p", { class: "note" }, note), examples(found, strings, feature.max));
  return [
    list(
      "Strongest",
      "Texts with its largest values; the number belongs to the underlined token. Colour is the value on each token, full at the largest of all.",
      feature.top,
    ),
    list(
      "From strong to weak",
      "Of the tokens of chance below, those at equal steps of their values.",
      feature.quantile.map((i) => feature.random[i]),
    ),
    list(
      "By chance",
      "Tokens of chance among all on which it fires, each underlined with its text; others there may have larger values.",
      feature.random,
    ),
  ];
}
