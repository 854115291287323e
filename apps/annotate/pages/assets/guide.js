// Instructions: Markdown's plain parts as nodes (never HTML), and worked examples.
(() => {
  "use strict";
  const { el } = align;

  /** Emphasis and code of one line. */
  function inline(text) {
    const nodes = [];
    const pattern = /\*\*(.+?)\*\*|\*(\S(?:.*?\S)?)\*|(?<!\w)_(\S(?:.*?\S)?)_(?!\w)|`([^`]+)`/gu;
    let from = 0;
    for (const found of text.matchAll(pattern)) {
      nodes.push(text.slice(from, found.index));
      const [whole, strong, first, second, code] = found;
      if (strong !== undefined) nodes.push(el("strong", {}, inline(strong)));
      else if (code !== undefined) nodes.push(el("code", {}, code));
      else nodes.push(el("em", {}, inline(first ?? second)));
      from = found.index + whole.length;
    }
    return [...nodes, text.slice(from)].filter((one) => one !== "");
  }

  /** Headings, lists, paragraphs, fenced text; everything else stays as it was written. */
  function markdown(text) {
    const made = [];
    let lines = [], list = null, item = null, fence = null;
    const flush = () => {
      if (lines.length) made.push(el("p", {}, inline(lines.join(" "))));
      lines = [];
    };
    const endList = () => {
      if (item !== null) list.append(el("li", {}, inline(item)));
      item = list = null;
    };
    for (const line of text.split(/\r\n?|\n/)) {
      const heading = /^(#{1,4})\s+(.*)$/.exec(line);
      const point = /^\s{0,3}(?:([-*+])|\d{1,3}[.)])\s+(.*)$/.exec(line);
      if (/^```/.test(line)) {
        if (fence === null) { flush(); endList(); fence = []; }
        else { made.push(el("pre", {}, fence.join("\n"))); fence = null; }
      } else if (fence !== null) fence.push(line);
      else if (line.trim() === "") { flush(); endList(); }
      else if (heading) {
        flush(); endList();
        made.push(el(heading[1].length <= 2 ? "h2" : "h3", {}, inline(heading[2])));
      } else if (point) {
        flush();
        const kind = point[1] ? "ul" : "ol";
        if (list?.localName !== kind) { endList(); list = el(kind, {}); made.push(list); }
        else list.append(el("li", {}, inline(item)));
        item = point[2];
      } else if (item !== null) item += ` ${line.trim()}`;
      else lines.push(line.trim());
    }
    flush(); endList();
    if (fence !== null) made.push(el("pre", {}, fence.join("\n")));
    return made;
  }

  function verdict(example) {
    const first = example.hallucination === "tie" ? "tie" : `${example.hallucination} has fewer hallucinations`;
    return example.helpfulness === null ? first : `${first}, then ${example.helpfulness}`;
  }

  function worked(example, number) {
    const better = example.helpfulness ?? example.hallucination;
    const response = (parts, side) => el("div", { class: `said ${side === better ? "better" : ""}` },
      el("h4", {}, side), el("p", {}, parts.map(([text, wrong]) => (wrong ? el("mark", {}, text) : text))));
    return el("article", { class: "example" },
      el("img", { src: example.image, alt: "The picture of this example", width: 288, height: 288 }),
      el("div", {},
        el("h3", {}, `${number}. ${example.title}`),
        el("p", { class: "asked" }, example.question),
        el("div", { class: "both" }, response(example.responses[0], "A"), response(example.responses[1], "B")),
        el("p", { class: "why" }, el("strong", {}, `Our answer: ${verdict(example)}. `), example.why)));
  }

  const KEYS = [
    ["1 or A", "A has fewer (then: A is better)"], ["2 or B", "B has fewer (then: B is better)"], ["3, 0 or T", "tie"], ["Enter", "submit"],
    ["Backspace", "take a choice back"], ["U, Ctrl+Z", "undo the last answer"], ["S", "skip"], ["Z", "zoom"],
    ["M, arrows, Space", "mark sentences"], ["? or H", "instructions"], ["Esc", "close"],
  ];

  function ahead({ items, pass }) {
    const many = items === 1 ? "1 pair" : `${items} pairs`;
    return el("p", { class: "al-note test" }, el("strong", {}, "A test comes first: "),
      `${many} whose answers we know, and ${pass === items ? (items === 1 ? "it must be right" : "all must be right") : `${pass} of them must be right`}. None of them can be skipped. The real work comes after it.`);
  }

  /**
   * Show the instructions; `done()` is called when they are closed. `first`: before the first pair.
   * `test`: {items, pass} of a test that is still to be taken, or null.
   */
  align.showGuide = (guide, first, test = null, done = () => {}) => {
    const keys = el("dl", { class: "keys" }, KEYS.map(([key, what]) => el("div", {}, el("dt", {}, el("span", { class: "al-key" }, key)), el("dd", {}, what))));
    const close = el("button", { class: "al-button primary", type: "button", onclick: () => view.close() }, first ? "I have read this: start" : "Back to work");
    const view = align.dialog("guide",
      el("header", {}, el("h1", {}, "Instructions"), el("button", { class: "al-button quiet", type: "button", "aria-label": "Close the instructions", title: "Close (Esc)", onclick: () => view.close() }, "✕")),
      el("div", { class: "pages", tabindex: 0 },
        test !== null && ahead(test),
        guide.own !== null && el("section", { class: "own", dir: "auto" }, el("h2", {}, "In this project"), markdown(guide.own)),
        el("section", {}, markdown(guide.text)),
        el("section", {}, el("h2", {}, "Worked examples"), el("p", { class: "al-hint" }, "False words are marked in red."), guide.examples.map((one, k) => worked(one, k + 1))),
        el("section", { class: "for-keys" }, el("h2", {}, "Keys"), keys)),
      el("footer", {}, close));
    view.addEventListener("close", () => done());
    view.querySelector(".pages").focus();
    return view;
  };
})();
