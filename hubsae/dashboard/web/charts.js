// Histograms and curves.

const HEIGHT = 190;
const MARGIN = { left: 46, right: 10, top: 10, bottom: 26 };

// A box of fixed height in which `draw(width)` is drawn, again whenever its width changes.
function chart(title, draw, height = HEIGHT) {
  const box = el("div", { class: "plot", style: { height: `${height}px` } });
  let width = 0;
  new ResizeObserver(() => {
    if (box.clientWidth && box.clientWidth !== width) {
      width = box.clientWidth;
      box.replaceChildren(draw(width, height));
    }
  }).observe(box);
  return el("figure", null, el("figcaption", null, title), box);
}

function frame(width, height, label, children) {
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, children);
}

function ticks(low, high, n = 4) {
  if (!(high > low)) return [low];
  const step = 10 ** Math.floor(Math.log10((high - low) / n));
  const size = [1, 2, 5, 10].map((m) => m * step).find((s) => (high - low) / s <= n) || 10 * step;
  const found = [];
  const first = Math.ceil(low / size - 1e-9);
  for (let k = 0; k <= n + 1 && (first + k) * size <= high + 1e-9 * size; k++)
    found.push(Number(((first + k) * size).toPrecision(6)));
  return found;
}

// bars: [{label, count, tip, href}]; every `every`-th label is written below.
function histogram(title, bars, { every = 1, height = HEIGHT } = {}) {
  const most = Math.max(1, ...bars.map((bar) => bar.count));
  return chart(
    title,
    (width) => {
      const inner = width - MARGIN.left - MARGIN.right;
      const tall = height - MARGIN.top - MARGIN.bottom;
      const step = inner / bars.length;
      const y = (count) => MARGIN.top + tall * (1 - count / most);
      const columns = bars.map((bar, i) => {
        const x = MARGIN.left + i * step;
        const top = bar.count ? Math.min(y(bar.count), MARGIN.top + tall - 2) : MARGIN.top + tall;
        const shape = [
          svg("rect", { class: "hit", x, y: MARGIN.top, width: step, height: tall }),
          svg("rect", {
            class: "bar",
            x: x + step * 0.08,
            y: top,
            width: step * 0.84,
            height: MARGIN.top + tall - top,
          }),
        ];
        return bar.href && bar.count
          ? svg("a", { href: bar.href, "data-tip": bar.tip, "aria-label": bar.tip }, shape)
          : svg("g", { "data-tip": bar.tip }, shape);
      });
      const names = bars.map((bar, i) =>
        i % every
          ? null
          : svg("text", { x: MARGIN.left + i * step, y: height - 8, "text-anchor": "middle" }, bar.label),
      );
      return frame(width, height, title, [leftAxis(ticks(0, most), y, width), columns, names]);
    },
    height,
  );
}

function leftAxis(values, y, width, format = number) {
  return values.map((value) => [
    svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
    svg("text", { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)),
  ]);
}

// A curve of values over x; null where there is none.
function curve(title, x, values, { log = false, format = number } = {}) {
  const usable = (v) => v !== null && (!log || v > 0);
  const all = values.filter(usable);
  if (!all.length) return null;
  const scale = log ? Math.log10 : (v) => v;
  const low = log ? scale(Math.min(...all)) : Math.min(0, ...all);
  const high = Math.max(scale(Math.max(...all)), low + 1e-9);
  return chart(title, (width, height) => {
    const xs = (v) => MARGIN.left + ((v - x[0]) / (x.at(-1) - x[0] || 1)) * (width - MARGIN.left - MARGIN.right);
    const y = (v) => MARGIN.top + (1 - (scale(v) - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    const points = values
      .map((v, i) => (usable(v) ? `${xs(x[i]).toFixed(1)},${y(v).toFixed(1)}` : null))
      .filter(Boolean);
    const below = ticks(x[0], x.at(-1), Math.max(3, Math.floor(width / 90))).map((v) =>
      svg("text", { x: xs(v), y: height - 8, "text-anchor": "middle" }, thousands(v)),
    );
    const path = svg("path", { class: "curve", d: `M${points.join("L")}` });
    return frame(width, height, title, [
      leftAxis(log ? decades(low, high) : ticks(low, high), y, width, format),
      below,
      path,
      readers(x, values, xs, height, format),
    ]);
  });
}

// Invisible columns that say the value below the pointer.
function readers(x, values, xs, height, format) {
  const every = Math.max(1, Math.floor(x.length / 150));
  const places = x.map((_, i) => i).filter((i) => i % every === 0 || i === x.length - 1);
  return places.map((i, k) => {
    const left = k ? (xs(x[places[k - 1]]) + xs(x[i])) / 2 : xs(x[i]);
    const right = k + 1 < places.length ? (xs(x[places[k + 1]]) + xs(x[i])) / 2 : xs(x[i]) + 1;
    const size = {
      x: left,
      y: MARGIN.top,
      width: Math.max(0.5, right - left),
      height: height - MARGIN.top - MARGIN.bottom,
    };
    return svg("rect", { class: "hit", "data-tip": `${format(values[i])} at ${thousands(x[i])} tokens`, ...size });
  });
}

// 1, 10, 100 ..., with 2 and 5 between where there are few; low and high are powers of ten.
function decades(low, high) {
  const found = [];
  for (let k = Math.floor(low); k <= high; k++) {
    for (const m of high - low > 2.5 ? [1] : [1, 2, 5]) {
      const value = Number((m * 10 ** k).toPrecision(1));
      if (Math.log10(value) >= low - 1e-9 && Math.log10(value) <= high + 1e-9) found.push(value);
    }
  }
  return found.length > 1 ? found : ticks(10 ** low, 10 ** high);
}

function thousands(value) {
  if (value >= 1e9) return `${Number((value / 1e9).toPrecision(3))}G`;
  if (value >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  return value >= 1e4 ? `${Number((value / 1e3).toPrecision(3))}k` : number(value);
}
