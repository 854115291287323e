// Parts of the admin page: numbers as words, charts drawn with elements, tables that sort.
// Everything from the server is shown by text nodes (align.el) alone.
const admin = {};
(() => {
  "use strict";
  const el = (...given) => align.el(...given);

  // --- numbers as words ---

  const NONE = "–";
  const known = (value) => value !== null && value !== undefined;
  const count = (value) => (known(value) ? value.toLocaleString("en") : NONE);
  const fixed = (digits) => (value) => value.toFixed(digits).replace(/^-(0(\.0+)?)$/, "$1").replace("-", "−");
  const percent = (value) => `${fixed(1)(100 * value)} %`;
  const number = fixed(2);
  const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

  /** Seconds as people say them. */
  function duration(seconds) {
    if (!known(seconds)) return NONE;
    if (seconds < 10) return `${seconds.toFixed(1)} s`;
    if (seconds < 90) return `${Math.round(seconds)} s`;
    if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
    if (seconds < 36 * 3600) return `${(seconds / 3600).toFixed(1)} h`;
    return `${(seconds / 86400).toFixed(seconds < 9.95 * 86400 ? 1 : 0)} days`;
  }

  const stamp = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });
  const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
  const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
  const when = (seconds) => stamp.format(seconds * 1000);

  /** How long ago, with the moment itself as a title. */
  function ago(seconds) {
    if (!known(seconds)) return NONE;
    const past = Math.max(0, Date.now() / 1000 - seconds);
    const text = past < 60 ? "just now" : `${duration(past)} ago`;
    return el("span", { title: when(seconds) }, text);
  }

  /** A figure (value, low, high, n) as words: "69.0 %", "61.2 to 76.4", "40". */
  function figure(found, kind) {
    const show = kind === "percent" ? percent : number;
    if (!known(found.value)) return { value: NONE, interval: "", n: count(found.n), why: found.undefined || "nothing to measure yet" };
    const bare = (value) => (kind === "percent" ? fixed(1)(100 * value) : number(value));
    const interval = known(found.low) ? `${bare(found.low)} to ${bare(found.high)}` : "";
    return { value: show(found.value), interval, n: count(found.n), why: "" };
  }

  // --- charts ---

  const share = (value, [low, high]) => Math.max(0, Math.min(100, (100 * (value - low)) / (high - low)));

  function placed(node, axes, from, to) {
    node.style.left = `${share(from, axes)}%`;
    if (to !== undefined) node.style.width = `${share(to, axes) - share(from, axes)}%`;
    return node;
  }

  /**
   * Figures as dots with their 95 % intervals on one axis, each with its numbers beside it.
   * rows: [{label, found, id}]; kind: "percent" or "number"; lines: [{at, text}] across all rows.
   */
  function dots({ rows, kind, axes = [0, 1], lines = [], unit = "pair" }) {
    const step = axes[1] - axes[0] > 1 ? 0.5 : 0.25;
    const ticks = [];
    for (let at = axes[0]; at <= axes[1] + 1e-9; at += step) ticks.push(at);
    const tick = (at) => placed(el("span", { class: "ad-tick" }, kind === "percent" ? `${Math.round(100 * at)} %` : number(at)), axes, at);
    const drawn = rows.map(({ label, found, id }) => {
      const words = figure(found, kind);
      const track = el("div", { class: "ad-track", "aria-hidden": "true" });
      for (const at of ticks) track.append(placed(el("i", { class: "ad-grid" }), axes, at));
      for (const line of lines) track.append(placed(el("i", { class: "ad-line" }), axes, line.at));
      if (known(found.low)) track.append(placed(el("i", { class: "ad-span" }), axes, found.low, found.high));
      if (known(found.value)) track.append(placed(el("i", { class: "ad-dot" }), axes, found.value));
      const numbers = words.why
        ? el("div", { class: "ad-numbers" }, el("span", { class: "ad-soft ad-why" }, words.why))
        : el("div", { class: "ad-numbers" },
            el("b", {}, words.value),
            words.interval ? el("span", { class: "ad-soft", title: "95 % interval" }, ` ${words.interval}`) : null,
            el("span", { class: "ad-soft" }, ` · ${words.n} ${found.n === 1 ? unit : `${unit}s`}`));
      return el("div", { class: "ad-row", role: "listitem", "data-figure": id || "" }, el("div", { class: "ad-label" }, label), track, numbers);
    });
    const axis = el("div", { class: "ad-row ad-axis", "aria-hidden": "true" }, el("div", {}),
      el("div", { class: "ad-ticks" }, ...ticks.map(tick)), el("div", {}));
    const over = lines.length
      ? el("div", { class: "ad-row ad-axis" }, el("div", {}), el("div", { class: "ad-ticks" },
          ...lines.map((line) => {
            const text = placed(el("span", { class: "ad-linetext" }, line.text), axes, line.at);
            if (line.at > (axes[0] + axes[1]) / 2) text.classList.add("ad-leftwards");
            return text;
          })), el("div", {}))
      : null;
    return el("div", { class: "ad-dots", role: "list" }, over, ...drawn, axis);
  }

  /** The next round number: 1, 2 or 5 times a power of ten. */
  function round(most) {
    const power = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
    return power * [1, 2, 5, 10].find((k) => k * power >= most);
  }

  /** Counts over time as columns: bars [{at, value, text}], `text` naming the time. With a table for those who do not see it. */
  function columns({ bars, title, unit }) {
    const most = Math.max(4, round(Math.max(...bars.map((bar) => bar.value))));
    // even, so that half of it is a whole number of things, too
    const top = most + (most % 2);
    const total = bars.reduce((sum, bar) => sum + bar.value, 0);
    const plot = el("div", { class: "ad-plot", role: "img", "aria-label": `${title}: ${plural(total, unit)} in all, at most ${count(Math.max(...bars.map((b) => b.value)))}` });
    for (const at of [0, top / 2, top]) {
      const line = el("div", { class: "ad-level" }, el("span", {}, count(at)));
      line.style.bottom = `${(100 * at) / top}%`;
      plot.append(line);
    }
    const area = el("div", { class: "ad-bars" });
    for (const bar of bars) {
      const column = el("div", { class: "ad-column", title: `${bar.text}: ${plural(bar.value, unit)}` }, el("i", {}));
      column.firstChild.style.height = `${(100 * bar.value) / top}%`;
      area.append(column);
    }
    plot.append(area);
    const last = bars.length - 1;
    const marks = [...new Set([0, Math.floor(last / 2), last])];
    const under = el("div", { class: "ad-under", "aria-hidden": "true" }, ...marks.map((k) => el("span", {}, bars[k].short)));
    const rows = bars.filter((bar) => bar.value).map((bar) => el("tr", {}, el("td", {}, bar.text), el("td", { class: "ad-num" }, count(bar.value))));
    const head = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "time"), el("th", { scope: "col", class: "ad-num" }, `${unit}s`)));
    const more = el("details", { class: "ad-more" }, el("summary", {}, "As a table"),
      scroller(title, el("table", { class: "ad-table" }, head, el("tbody", {}, ...rows))));
    return el("div", {}, plot, under, more);
  }

  /** Counts of things as bars that lie: [{label, value, text}]. */
  function lying({ bars, label, most }) {
    const top = most || Math.max(1, ...bars.map((bar) => bar.value));
    return el("div", { class: "ad-lying", role: "list", "aria-label": label }, ...bars.map((bar) => {
      const fill = el("i", {});
      fill.style.width = `${(100 * bar.value) / top}%`;
      return el("div", { role: "listitem", class: "ad-lie" }, el("span", { class: "ad-label" }, bar.label),
        el("span", { class: "ad-fill", "aria-hidden": "true" }, fill), el("b", {}, bar.text || count(bar.value)));
    }));
  }

  // --- tables ---

  const scroller = (label, table) => el("div", { class: "ad-scroll", role: "region", tabindex: "0", "aria-label": label }, table);

  /**
   * A table whose columns sort it. columns: [{title, hint, value(row) -> sorted by, show(row) -> text or element,
   * numeric}]; `sort` is {by, down}, kept by the caller so that a refresh does not lose it.
   */
  function table({ label, columns: given, rows, sort }) {
    const body = el("tbody", {});
    const heads = given.map((column, k) => {
      const cls = column.numeric ? "ad-num" : "";
      if (!column.value) return el("th", { scope: "col", class: cls }, column.title);
      const button = el("button", { type: "button", class: "ad-sort", title: column.hint || "" }, column.title);
      button.addEventListener("click", () => {
        sort.down = sort.by === k ? !sort.down : Boolean(column.numeric);
        sort.by = k;
        fill();
      });
      return el("th", { scope: "col", class: cls }, button);
    });
    function fill() {
      const { value } = given[sort.by];
      const empty = (x) => !known(x);
      const ordered = [...rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        // what is not known stands at the end, whichever way
        if (empty(x) || empty(y)) return empty(x) - empty(y);
        const order = typeof x === "string" ? x.localeCompare(y) : x - y;
        return sort.down ? -order : order;
      });
      heads.forEach((head, k) => head.setAttribute("aria-sort", k !== sort.by ? "none" : sort.down ? "descending" : "ascending"));
      body.replaceChildren(...ordered.map((row) => el("tr", {}, ...given.map((column, k) =>
        el(k ? "td" : "th", { class: column.numeric ? "ad-num" : "", ...(k ? {} : { scope: "row" }) }, column.show(row))))));
    }
    fill();
    return scroller(label, el("table", { class: "ad-table" }, el("thead", {}, el("tr", {}, ...heads)), body));
  }

  /** A figure in a cell: its value over its interval. */
  function cell(found, kind) {
    const words = figure(found, kind);
    if (words.why) return el("span", { class: "ad-soft", title: words.why }, NONE);
    return el("span", { class: "ad-cell", title: `95 % interval, of ${words.n}` }, words.value,
      words.interval ? el("small", {}, words.interval) : null);
  }

  // --- frames ---

  const card = (title, ...inside) => el("section", { class: "al-card ad-card" }, title ? el("h3", {}, title) : null, ...inside);
  const note = (...words) => el("p", { class: "ad-note" }, ...words);
  const empty = (title, text) => el("div", { class: "ad-empty" }, el("b", {}, title), el("p", {}, text));

  /** A button that copies a text. */
  function copier(text) {
    const button = el("button", { type: "button", class: "al-button" }, "Copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text());
        align.toast("Copied", "good");
      } catch (error) {
        if (!(error instanceof DOMException) && !(error instanceof TypeError)) throw error;
        align.toast("The browser does not let pages copy here; select the text instead", "bad");
      }
    });
    return button;
  }

  /** A labelled input with a hint under it. */
  function field(name, text, hint, attributes) {
    const id = `ad-${name}`;
    const told = hint ? { "aria-describedby": `${id}-hint` } : {};
    const input = attributes.options
      ? el("select", { class: "al-input", id, name, ...told }, ...attributes.options.map(([value, words]) => el("option", { value }, words)))
      : el("input", { class: "al-input", id, name, ...told, ...attributes });
    return el("div", { class: "ad-field" }, el("label", { for: id }, text), input,
      hint ? el("small", { id: `${id}-hint` }, hint) : null);
  }

  Object.assign(admin, {
    el, NONE, known, count, percent, number, plural, duration, when, clock, day, ago, figure, dots, columns,
    lying, table, cell, card, note, empty, copier, field, sections: [],
  });
})();
