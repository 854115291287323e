// A response as text that can be marked: by sentence, by selected words, by keyboard.
// Places are code points, as Python counts them; JavaScript's strings count UTF-16 units.
(() => {
  "use strict";
  const { el, joined } = align;
  const words = typeof Intl.Segmenter === "function" ? new Intl.Segmenter(undefined, { granularity: "word" }) : null;

  /** Spans without what lies between start and end. */
  function without(spans, start, end) {
    return spans.flatMap(([a, b]) => [[a, Math.min(b, start)], [Math.max(a, end), b]]).filter(([a, b]) => a < b);
  }

  class Passage {
    /** `shown`: {side, text, sentences} of the API; `changed()` is called when marks have changed. */
    constructor(shown, changed) {
      this.side = shown.side;
      this.text = shown.text;
      this.letters = Array.from(shown.text);
      this.sentences = shown.sentences;
      this.marks = [];
      this.at = 0;
      this.changed = changed;
      this.before = [];
      this.box = el("div", { class: "passage", dir: "auto", "data-side": this.side, role: "group", "aria-label": `Response ${this.side}; its sentences can be marked as false` });
      this.box.addEventListener("click", (event) => this.clicked(event));
      this.box.addEventListener("keydown", (event) => this.pressed(event));
      this.draw();
    }

    /** Other marks. `stay`: a sentence that has the focus keeps it. */
    set(marks, stay = false) {
      this.marks = joined(marks);
      const focused = stay && this.box.contains(document.activeElement);
      this.draw();
      if (focused) this.focus();
      this.changed();
    }

    /** Text nodes and elements alone: sentences, and marked parts of them. */
    draw() {
      const cuts = new Set([0, this.letters.length, ...this.sentences.flat(), ...this.marks.flat()]);
      const edges = [...cuts].sort((a, b) => a - b);
      const inside = (spans, place) => spans.findIndex(([start, end]) => start <= place && place < end);
      const nodes = [];
      let open = -1;
      for (let k = 0; k + 1 < edges.length; k++) {
        const text = this.letters.slice(edges[k], edges[k + 1]).join("");
        const sentence = inside(this.sentences, edges[k]);
        const part = inside(this.marks, edges[k]) < 0 ? document.createTextNode(text) : el("mark", {}, text);
        if (sentence < 0) nodes.push(part);
        else if (sentence === open) nodes.at(-1).append(part);
        else nodes.push(this.sentence(sentence, part));
        open = sentence;
      }
      this.box.replaceChildren(...nodes);
    }

    sentence(number, part) {
      const [start, end] = this.sentences[number];
      const left = without([[start, end]], -1, -1).flatMap((one) => this.marks.reduce((rest, m) => without(rest, ...m), [one]));
      const free = left.reduce((sum, [a, b]) => sum + b - a, 0);
      const state = free === 0 ? "true" : free === end - start ? "false" : "mixed";
      return el("span", {
        class: "sentence", role: "checkbox", "aria-checked": state, "data-sentence": number,
        tabindex: number === this.at ? 0 : -1,
      }, part);
    }

    focus() {
      this.box.querySelector(`[data-sentence="${this.at}"]`)?.focus();
    }

    clicked(event) {
      if (this.skip) {
        this.skip = false;
        return;
      }
      const found = event.target.closest("[data-sentence]");
      const marked = event.target.closest("mark");
      if (event.detail <= 1) this.before = this.marks;
      if (marked !== null) {
        const place = this.place(marked, 0);
        this.set(this.marks.filter(([start, end]) => !(start <= place && place < end)));
      } else if (found !== null) {
        this.at = Number(found.dataset.sentence);
        this.set([...this.marks, this.sentences[this.at]]);
      }
    }

    /** Arrow keys go from sentence to sentence; Space marks, or takes the mark away. */
    pressed(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || !event.target.closest("[data-sentence]")) return;
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step !== undefined) {
        event.preventDefault();
        this.move(this.at + step);
      } else if (event.key === " ") {
        event.preventDefault();
        const [start, end] = this.sentences[this.at];
        const whole = event.target.closest("[data-sentence]").getAttribute("aria-checked") === "true";
        this.set(whole ? without(this.marks, start, end) : [...this.marks, [start, end]], true);
      }
    }

    move(to) {
      if (to < 0 || to >= this.sentences.length) {
        this.box.dispatchEvent(new CustomEvent("align:beyond", { bubbles: true, detail: { side: this.side, step: to < 0 ? -1 : 1 } }));
        return;
      }
      this.at = to;
      this.draw();
      this.focus();
    }

    /** The code points before a place in the passage. */
    place(node, offset) {
      const range = document.createRange();
      range.selectNodeContents(this.box);
      range.setEnd(node, offset);
      return Array.from(range.toString()).length;
    }

    /** What is selected of this passage, on whole words, or null. */
    selected() {
      const selection = getSelection();
      if (selection.rangeCount === 0 || selection.isCollapsed || !this.box.contains(selection.anchorNode)) return null;
      const range = selection.getRangeAt(0);
      const start = this.box.contains(range.startContainer) ? this.place(range.startContainer, range.startOffset) : 0;
      const end = this.box.contains(range.endContainer) ? this.place(range.endContainer, range.endOffset) : this.letters.length;
      return this.snapped(start, end);
    }

    snapped(start, end) {
      const blank = (place) => /^\s$/u.test(this.letters[place]);
      while (start < end && blank(start)) start++;
      while (start < end && blank(end - 1)) end--;
      if (start >= end) return null;
      const units = (place) => this.letters.slice(0, place).join("").length;
      const back = (unit) => Array.from(this.text.slice(0, unit)).length;
      const segments = words?.segment(this.text);
      const first = segments?.containing(units(start));
      const last = segments?.containing(units(end) - 1);
      if (first?.isWordLike) start = back(first.index);
      if (last?.isWordLike) end = back(last.index + last.segment.length);
      return [start, end];
    }

    /** Mark what is selected; `clicks` of one series (a double click selects a word) count as one. */
    markSelected(clicks = 1) {
      const span = this.selected();
      if (span !== null) this.mark(span, clicks);
      return span !== null;
    }

    mark(span, clicks = 1) {
      getSelection().removeAllRanges();
      this.set([...(clicks > 1 ? this.before : this.marks), span]);
    }
  }

  align.Passage = Passage;
})();
