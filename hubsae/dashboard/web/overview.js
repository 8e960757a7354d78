// What the dictionary is, how good it is, how it was trained.

async function overviewPage(side) {
  const own = about.sides[side];
  const m = own.metrics;
  return {
    title: own.name,
    body: [
      sidesNav(side, ""),
      el("h1", null, words(own.name)),
      el("p", { class: "lead" }, sentence(own)),
      cards(own, m),
      el(
        "div",
        { class: "columns" },
        section("How well it reconstructs", ...quality(own, m)),
        section("How often features fire", densityChart(side, own)),
      ),
      training(own.training),
      section("Where it is from", facts(own)),
    ],
  };
}

function sentence(own) {
  const sites = (list) => list.map((site, i) => [i ? " + " : "", el("code", null, site)]);
  const models = own.models.map((model, i) => [
    i ? " and " : "",
    model.url ? external(model.url, model.name) : words(model.name),
  ]);
  const writes = own.reads.join() === own.writes.join() ? [] : [" and predicts ", sites(own.writes)];
  const kind = { sae: "A sparse autoencoder", transcoder: "A transcoder", crosscoder: "A crosscoder" }[own.kind];
  return [
    kind,
    " that reads ",
    sites(own.reads),
    writes,
    " of ",
    models,
    ` as ${number(own.n_features)} features; `,
    words(own.sparsity),
    ".",
  ];
}

// The same page of the other dictionaries, where there are several.
function sidesNav(side, page) {
  if (about.sides.length < 2) return null;
  const links = about.sides.map((other, i) =>
    el("a", { href: link(i, page), "aria-current": i === side ? "page" : null }, words(other.name)),
  );
  return el("nav", { class: "choices", "aria-label": "dictionaries" }, links);
}

function cards(own, m) {
  const found = [
    [
      "variance unexplained",
      m.fvu === undefined ? null : percent(m.fvu),
      "squared error over the variance of what is written (FVU)",
    ],
    [
      "loss recovered",
      m.ce_recovered === undefined ? null : percent(m.ce_recovered, 4),
      "of what replacing the activations by zeros costs the model",
    ],
    ["active features", m.l0 === undefined ? null : number(m.l0), "of all features, per token (L0)"],
    [
      "never fire",
      percent(own.n_dead / own.n_features),
      `${number(own.n_dead)} features, on ${number(own.n_tokens)} tokens`,
    ],
    ["labelled", number(own.n_labelled), "features that have a label in words"],
  ];
  const shownCards = found.filter(([, value]) => value !== null);
  return el(
    "dl",
    { class: "cards" },
    shownCards.map(([name, value, hint]) =>
      el("div", { "data-tip": hint }, el("dt", null, name), el("dd", null, value)),
    ),
  );
}

function quality(own, m) {
  if (m.fvu === undefined) return [el("p", { class: "note" }, "It was not judged on texts yet.")];
  const interval = (name, format) =>
    m.intervals[name] ? `${format(m.intervals[name][0])} to ${format(m.intervals[name][1])}` : "";
  const exact = (value) =>
    value === null || value === undefined
      ? "–"
      : Number.isInteger(value) && value >= 1000
        ? number(value)
        : value.toPrecision(4);
  const rows = [["variance unexplained (FVU)", exact(m.fvu), interval("fvu", exact)]];
  const perSite = Object.entries(m.fvu_per_site);
  if (perSite.length > 1)
    rows.push(...perSite.map(([site, value]) => [el("code", { class: "inset" }, site), exact(value), ""]));
  rows.push(
    ["cosine of activation and reconstruction", exact(m.cosine), ""],
    ["active features per token (L0)", exact(m.l0), ""],
  );
  if (m.n_spliced_tokens) {
    rows.push(
      ["next-token loss, original model (nats)", exact(m.ce_original), ""],
      ["… with the reconstruction", exact(m.ce_spliced), ""],
      ["… with the mean activation", exact(m.ce_mean), ""],
      ["… with zeros", exact(m.ce_zero), ""],
      ["loss recovered against zeros", percent(m.ce_recovered, 4), interval("ce_recovered", (v) => percent(v, 4))],
      [
        "loss recovered against the mean",
        percent(m.ce_recovered_mean, 4),
        interval("ce_recovered_mean", (v) => percent(v, 4)),
      ],
      ["KL(original ‖ spliced) (nats)", exact(m.kl), interval("kl", exact)],
    );
  }
  const texts = m.n_tokens ? `On ${number(m.n_tokens)} tokens of ${number(m.n_documents)} documents` : "";
  const data = m.data ? [" (", words(m.data), ")"] : [];
  return [
    table(["", "", "95 % interval"], rows, { class: "quality" }),
    texts && el("p", { class: "note" }, texts, data, ". Intervals are over documents."),
  ];
}

function densityChart(side, own) {
  const { edges, counts, never } = own.density;
  const bars = counts.map((count, i) => {
    const range = `${i ? `${percent(10 ** edges[i])} to` : "up to"} ${percent(10 ** edges[i + 1])} of the tokens`;
    const query = {}; // the first and the last bar hold what lies beyond too
    if (i) query.from = Number((100 * 10 ** edges[i]).toPrecision(12));
    if (i < counts.length - 1) query.to = Number((100 * 10 ** edges[i + 1]).toPrecision(12));
    const label = Number.isInteger(edges[i]) ? percent(10 ** edges[i]).replace(" ", "") : "";
    return { label, count, tip: `${number(count)} features fire on ${range}`, href: link(side, "features", query) };
  });
  return [
    histogram("features by the share of tokens on which they fire", bars),
    el(
      "p",
      { class: "note" },
      `Measured on ${number(own.n_tokens)} tokens (`,
      words(own.data),
      "). ",
      never
        ? el("a", { href: link(side, "features", { state: "dead" }) }, `${number(never)} never fire`)
        : "All of them fire",
      ". A bar leads to its features.",
    ),
  ];
}

function training(log) {
  if (!log) return null;
  const x = log.rows;
  const has = (name) => log[name] && log[name].some((v) => v !== null);
  const one = (name, title, options) => has(name) && curve(title, x, log[name], options);
  return section(
    "Over training",
    el(
      "div",
      { class: "charts" },
      one("fvu", "variance unexplained (of the batch)", { log: true }),
      one("dead_share", "features that have not fired lately", { format: (v) => percent(v) }),
      one("l0", "active features per token", {}),
      one("loss", "loss", { log: true }),
    ),
    el(
      "p",
      { class: "note" },
      `Over ${number(x.at(-1))} tokens. ${log.dead_after_rows ? `A feature counts as dead when it has not fired for ${number(log.dead_after_rows)} tokens.` : ""}`,
    ),
  );
}

function facts(own) {
  const rows = own.models.map((model, i) => [
    own.models.length > 1 ? `base model ${i}` : "base model",
    model.url ? external(model.url, model.full) : words(model.full),
  ]);
  rows.push(["reads", own.reads.join(", ")], ["writes", own.writes.join(", ")], ["sparsity", words(own.sparsity)]);
  if (own.trained_on) rows.push(["trained on", words(own.trained_on)]);
  rows.push([
    "features measured on",
    el("span", null, `${number(own.n_tokens)} tokens of ${number(own.n_documents)} texts (`, words(own.data), ")"),
  ]);
  if (own.url) rows.push(["dictionary", external(own.url, own.repo)]);
  rows.push(["made with", about.made_with]);
  return table(null, rows, { class: "facts" });
}
