// What the browser tells the labeler's page: keys, selected words, activity, time, the page's end.
(() => {
  "use strict";

  /** A key's letter by its place where the keyboard writes another script. */
  function nameOf(event) {
    if (event.key.length !== 1 || /[\x20-\x7e]/.test(event.key)) return event.key.length === 1 ? event.key.toLowerCase() : event.key;
    return /^(?:Key|Digit)(.)$/.exec(event.code)?.[1].toLowerCase() ?? event.key;
  }

  /** None is taken inside inputs, with modifiers (but for Ctrl+Z), or while a dialog is open. */
  function pressed(event, labeler) {
    const { view } = labeler;
    if (!view || event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
    const target = event.target instanceof Element ? event.target : document.body;
    if (target.closest("input, textarea, select, [contenteditable]")) return;
    const act = view.act;
    const take = (work) => { event.preventDefault(); if (!event.repeat) work(); };
    const name = nameOf(event);
    if (event.ctrlKey || event.metaKey || event.altKey) {
      if (name === "z" && !event.altKey && !event.shiftKey) take(act.undo);
      return;
    }
    if (name === "?" || name === "h") return take(act.guide);
    if (name === "u") return take(act.undo);
    if (!labeler.task) return;
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[name];
    if (step !== undefined && target.closest("[role=radio]")) return take(() => along(target.closest("[role=radio]"), step));
    const group = labeler.choice.hallucination === "tie" ? "helpfulness" : "hallucination";
    if (name === "Enter") {
      // other buttons and links keep their own Enter
      if (!target.closest("button:not([role=radio]), a")) take(act.submit);
    } else if (name === "1" || name === "a") take(() => act.choose(group, "A"));
    else if (name === "2" || name === "b") take(() => act.choose(group, "B"));
    else if (name === "3" || name === "0" || name === "t") take(() => act.choose("hallucination", "tie"));
    else if (name === "Backspace") take(act.back);
    else if (name === "s") take(() => act.skip());
    else if (name === "z") take(act.zoom);
    else if (name === "m") take(act.mark);
    else if (name === "Escape") take(() => document.activeElement?.closest(".passage") ? view.body.focus({ preventScroll: true }) : act.back());
  }

  /** From one choice to the next, round and round. */
  function along(radio, step) {
    const all = [...radio.parentElement.children];
    const next = all.at((all.indexOf(radio) + step) % all.length);
    next.focus();
    next.click();
  }

  /** Words that are selected by mouse or finger become marks. */
  class Marker {
    constructor(labeler) {
      this.labeler = labeler;
      this.touch = false;
      this.selection = null;
    }

    get passages() {
      return this.labeler.task ? Object.values(this.labeler.passages) : [];
    }

    down(event) {
      this.touch = event.pointerType === "touch";
      // a touch that ends a selection marks no sentence
      for (const one of this.passages) one.skip = this.touch && one.selected() !== null;
    }

    up(event) {
      if (this.touch || event.button !== 0 || this.labeler.busy) return;
      const found = this.passages.find((one) => one.markSelected(event.detail));
      // the click that follows ends the selection, and marks no sentence
      if (found) found.skip = true;
    }

    /** A finger selects, then touches the button, which may end the selection first: so it is kept for a moment. */
    selecting() {
      if (!this.touch || !this.labeler.task) return;
      const button = this.labeler.view.markWords;
      const passage = this.passages.find((one) => one.selected());
      clearTimeout(this.ending);
      if (passage) this.selection = { passage, span: passage.selected() };
      else this.ending = setTimeout(() => { this.selection = null; button.hidden = true; }, 400);
      if (passage) button.hidden = false;
    }

    markTouched() {
      if (this.selection && !this.labeler.busy) this.selection.passage.mark(this.selection.span);
      this.selection = null;
      this.labeler.view.markWords.hidden = true;
    }
  }

  /** From a passage's last sentence to the other's first, and back. */
  function beyond({ detail: { side, step } }, { passages }) {
    if ((side === "A") !== (step > 0)) return;
    const other = passages[side === "A" ? "B" : "A"];
    other.move(step > 0 ? 0 : other.sentences.length - 1);
  }

  /** Listen, for as long as the page is open. */
  align.labelerEvents = (labeler) => {
    const marker = new Marker(labeler);
    labeler.marker = marker;
    document.addEventListener("pointerdown", (event) => marker.down(event));
    document.addEventListener("mouseup", (event) => marker.up(event));
    document.addEventListener("selectionchange", () => marker.selecting());
    document.addEventListener("align:beyond", (event) => beyond(event, labeler));
    document.addEventListener("keydown", (event) => pressed(event, labeler));
    for (const name of ["keydown", "pointerdown", "wheel", "scroll"]) document.addEventListener(name, () => labeler.touched(), { passive: true });
    document.addEventListener("visibilitychange", () => labeler.looking(!document.hidden));
    setInterval(() => labeler.tick(), 500);
    addEventListener("beforeunload", (event) => { if (labeler.busy && labeler.task) event.preventDefault(); });
    addEventListener("pagehide", () => {
      if (!labeler.task || labeler.busy) return;
      labeler.saveDraft();
      align.farewell("release");
    });
    addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  };
})();
