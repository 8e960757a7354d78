// Texts with a feature's value on their tokens.

// tokens: texts; values: Map from place to value; top: the value of full colour.
function marked(tokens, values, top, at) {
  return el(
    "span",
    { class: "text" },
    tokens.map((token, place) => mark(token, values.get(place), top, place === at)),
  );
}

function mark(token, value, top, strongest) {
  if (!value) return words(token);
  const attributes = {
    class: strongest ? "fires at" : "fires",
    "data-tip": number(value),
    style: { "--a": shade(value, top) },
  };
  return words(token, attributes);
}

const shade = (value, top) => (0.12 + 0.68 * Math.min(1, Math.max(0, value / (top || 1)))).toFixed(2);

// [place, value, place, value, ...]
function valuesOf(flat) {
  const values = new Map();
  for (let i = 0; i < flat.length; i += 2) values.set(flat[i], flat[i + 1]);
  return values;
}

function examples(list, strings, top) {
  return el(
    "ol",
    { class: "examples" },
    list.map(([value, at, document_, tokens, flat]) => {
      const texts = tokens.map((i) => strings[i]),
        values = valuesOf(flat);
      const said = [...values].map(([place, v]) => `${visible(texts[place])} ${number(v)}`).join("\n");
      return el(
        "li",
        { tabindex: 0, "aria-description": said },
        el(
          "span",
          { class: "value", "data-tip": `value at the underlined token; text ${number(document_)}` },
          number(value),
        ),
        marked(texts, values, top, at),
      );
    }),
  );
}
