// A list of very many rows, of which only those in sight are elements.

const FIELDS = "input, select, textarea";

// draw(i) -> children of row i; address(i) -> where it leads. `seen` keeps place and choice between visits.
function longList({ draw, address, seen, label }) {
  const box = el("div", { class: "list", tabindex: 0, role: "listbox", "aria-label": label });
  const inner = el("div", { class: "inner" });
  box.append(inner);
  let rows = [];
  const height = () => parseFloat(getComputedStyle(box).getPropertyValue("--row")) || 44;

  function render() {
    if (!box.isConnected || !box.clientHeight) return; // it is being taken away
    const tall = height();
    inner.style.setProperty("height", `${rows.length * tall}px`);
    const first = Math.max(0, Math.floor(box.scrollTop / tall) - 8);
    const last = Math.min(rows.length, Math.ceil((box.scrollTop + box.clientHeight) / tall) + 8);
    const made = [];
    for (let i = first; i < last; i++) {
      const attributes = {
        class: i === seen.chosen ? "row chosen" : "row",
        href: address(rows[i]),
        role: "option",
        tabindex: -1,
        id: `row-${i}`,
        "aria-selected": String(i === seen.chosen),
        "aria-posinset": i + 1,
        "aria-setsize": rows.length,
        style: { top: `${i * tall}px`, height: `${tall}px` },
      };
      made.push(el("a", attributes, draw(rows[i])));
    }
    inner.replaceChildren(...made);
    if (seen.chosen >= first && seen.chosen < last) box.setAttribute("aria-activedescendant", `row-${seen.chosen}`);
    else box.removeAttribute("aria-activedescendant");
  }

  function choose(i) {
    seen.chosen = Math.max(0, Math.min(rows.length - 1, i));
    const tall = height(),
      y = seen.chosen * tall;
    if (y < box.scrollTop) box.scrollTop = y;
    else if (y + tall > box.scrollTop + box.clientHeight) box.scrollTop = y + tall - box.clientHeight;
    render();
  }

  function onKey(event) {
    if (!plainKey(event) || !rows.length) return;
    const page = Math.max(1, Math.floor(box.clientHeight / height()) - 1);
    const moves = {
      ArrowDown: 1,
      j: 1,
      ArrowUp: -1,
      k: -1,
      PageDown: page,
      PageUp: -page,
      Home: -rows.length,
      End: rows.length,
    };
    if (event.key in moves) choose((seen.chosen ?? -1) + moves[event.key]);
    else if (event.key === "Enter" && seen.chosen >= 0) location.hash = address(rows[seen.chosen]);
    else return;
    event.preventDefault();
  }

  const scrolled = () => {
    if (box.isConnected) seen.top = box.scrollTop;
    render();
  };
  box.addEventListener("scroll", scrolled, { passive: true });
  box.addEventListener("keydown", onKey);
  box.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) seen.chosen = Number(row.id.slice(4));
  });
  new ResizeObserver(render).observe(box);
  return {
    box,
    show(found, anew) {
      rows = found;
      if (anew) [seen.chosen, seen.top] = [-1, 0];
      inner.style.setProperty("height", `${rows.length * height()}px`);
      box.scrollTop = seen.top || 0;
      box.classList.toggle("empty", !rows.length);
      render();
    },
    onKey,
  };
}
