// The features of a text: the text with its tokens, what fires on each, and all of it as a heat map.

async function textsPage(side, [which]) {
  if (!about.sides[side].has_texts) throw new Error("No texts were analysed for this dictionary.");
  const all = await load("texts");
  const own = all.map((text, i) => ({ ...text, number: i })).filter((text) => text.side === side);
  const text = own.find((t) => t.number === Number(which)) || own[0];
  const links = own.map((t) =>
    el("a", { href: link(side, `texts/${t.number}`), "aria-current": t === text ? "page" : null }, words(t.title)),
  );
  return {
    title: "Texts",
    body: [
      el("h1", null, "Features of a text"),
      el("nav", { class: "choices", "aria-label": "texts" }, links),
      textView(side, text),
    ],
  };
}

// text: {tokens, read, at: for each token [feature, value, ...], features: [[feature, typical, [place, value, ...]]], names}
function textView(side, text) {
  const state = { feature: null, place: null };
  const byFeature = new Map(
    text.features.map(([feature, typical, flat]) => [feature, { typical, values: valuesOf(flat) }]),
  );
  const tokens = text.tokens.map((token, place) => words(token, { "data-place": place, role: "button" }));
  const above = el("div", { class: "passage" }, tokens);
  const below = el("div", { class: "chosen-token" });
  const name = (feature) => text.names[feature] || "";

  function passage() {
    const chosen = byFeature.get(state.feature);
    const top = chosen ? Math.max(...chosen.values.values()) : 1;
    for (const [place, node] of tokens.entries()) {
      const value = chosen?.values.get(place);
      node.className = ["token", value && "fires", place === state.place && "chosen", !text.read[place] && "unread"]
        .filter(Boolean)
        .join(" ");
      node.style.setProperty("--a", value ? shade(value, top) : 0);
      if (value) node.dataset.tip = number(value);
      else if (text.read[place]) delete node.dataset.tip;
      else node.dataset.tip = "not read by the dictionary";
    }
  }

  function token() {
    const found = [...valuesOf(text.at[state.place] || [])];
    const most = found.length ? found[0][1] : 1;
    below.replaceChildren(
      el("h2", null, "At ", words(visible(text.tokens[state.place]), { class: "token" })),
      found.length
        ? meters(
            found.map(([feature, value]) => [featureLink(side, feature, name(feature)), value / most, number(value)]),
          )
        : el(
            "p",
            { class: "note" },
            text.read[state.place] ? "No feature fires here." : "The dictionary does not read this token.",
          ),
    );
  }

  function choose(change) {
    Object.assign(state, change);
    passage();
    token();
    for (const row of map.querySelectorAll("tr[data-feature]"))
      row.classList.toggle("chosen", Number(row.dataset.feature) === state.feature);
  }

  for (const name of ["click", "focusin"]) {
    above.addEventListener(name, (event) => {
      const place = event.target.closest("[data-place]")?.dataset.place;
      if (place !== undefined) choose({ place: Number(place) });
    });
  }
  roving(above, tokens);
  const map = heatmap(side, text, (feature) => choose({ feature }));
  const first = text.read.findIndex((read, i) => read && text.at[i]?.length);
  choose({ place: Math.max(0, first), feature: text.features.length ? text.features[0][0] : null });
  return el(
    "div",
    { class: "reading" },
    section(
      null,
      el(
        "p",
        { class: "note" },
        "Choose a token to see what fires there, and a row of the map to colour the text by a feature.",
        cutNote(side, text),
      ),
      above,
    ),
    section(null, below),
    section("Strongest features, token by token", map),
  );
}

function cutNote(side, text) {
  const context = about.sides[side].context;
  return context && text.tokens.length > context
    ? ` The text is read in pieces of ${number(context)} tokens, as in training; nothing before a piece is known in it.`
    : "";
}

function featureLink(side, feature, name) {
  return el(
    "a",
    { href: link(side, `feature/${feature}`) },
    el("span", { class: "id" }, String(feature)),
    " ",
    words(name || ""),
  );
}

function heatmap(side, text, choose) {
  const head = el(
    "tr",
    null,
    el("th", null, ""),
    text.tokens.map((token) => el("th", { class: "upright" }, words(visible(token)))),
  );
  const rows = text.features.map(([feature, typical, flat]) => {
    const values = valuesOf(flat);
    const top = Math.max(...values.values());
    const cells = text.tokens.map((token, place) => {
      const value = values.get(place);
      return value
        ? el("td", {
            class: "fires",
            "data-tip": `${feature} on “${visible(token)}”: ${number(value)}${typical ? `, ${number(value / typical)} × typical` : ""}`,
            style: { "--a": shade(value, top) },
          })
        : el("td");
    });
    const row = el(
      "tr",
      { "data-feature": feature },
      el("th", { scope: "row" }, featureLink(side, feature, text.names[feature])),
      cells,
    );
    for (const name of ["click", "focusin"])
      row.addEventListener(name, (event) => (name === "click" && event.target.closest("a")) || choose(feature));
    return row;
  });
  return heatTable("heat", "heat map: arrow keys lead from square to square", head, rows, text.tokens.length);
}

function heatTable(kind, label, head, rows, width) {
  const body = el("tbody", null, rows);
  roving(body, [...body.querySelectorAll("td")], width);
  return el(
    "div",
    { class: "scroll" },
    el("table", { class: kind, "aria-label": label }, el("thead", null, head), body),
  );
}
