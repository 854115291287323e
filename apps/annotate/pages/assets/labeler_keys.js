// The labeler's keys. None is taken inside inputs, with modifiers (but for Ctrl+Z), or while a dialog is open.
(() => {
  "use strict";

  /** A key's letter by its place where the keyboard writes another script. */
  function nameOf(event) {
    if (event.key.length !== 1 || /[\x20-\x7e]/.test(event.key)) return event.key.length === 1 ? event.key.toLowerCase() : event.key;
    return /^(?:Key|Digit)(.)$/.exec(event.code)?.[1].toLowerCase() ?? event.key;
  }

  align.labelerKey = (event, labeler) => {
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
  };
})();
