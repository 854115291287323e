// Votes as files.
(() => {
  "use strict";
  const { el, card, note, plural } = admin;
  const LABELS = {
    majority: ["Majority", "one record a pair: what most of its votes prefer. Equal numbers are a tie."],
    adjudicated: ["Adjudicated", "the same, with the admins’ decisions in the place of the votes."],
    labelers: ["Per labeler", "one record a vote, with the labeler as its annotator."],
  };
  const TARGETS = {
    schema: ["Schema", "this toolkit’s own records (JSON lines), for align reward and align dpo; holds everything, ties too."],
    trl: ["TRL", "prompt, chosen and rejected (JSON lines), for TRL’s DPO and reward trainers."],
    llava_rlhf: ["LLaVA-RLHF", "the preference file that LLaVA-RLHF’s reward model reads (JSON)."],
  };
  const chosen = { labels: "majority", to: "schema" };

  /** A word of a shell's command. */
  const quoted = (text) => (/^[\w.:/@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

  function choices(name, legend, options, told, changed) {
    return el("fieldset", { class: "ad-options" }, el("legend", {}, legend), ...Object.entries(options).map(([value, [title, text]]) => {
      const input = el("input", { type: "radio", name, value, ...(chosen[name] === value ? { checked: "" } : {}) });
      input.addEventListener("change", () => {
        chosen[name] = value;
        changed();
      });
      return el("label", { class: "ad-option" }, input, el("span", {}, el("b", {}, title), el("span", { class: "ad-soft" }, told(value)), el("br", {}), text));
    }));
  }

  function summary({ labels }) {
    const { records, ties } = labels[chosen.labels];
    if (chosen.to === "schema" || !ties) return [records, `${plural(records, "record")}${ties ? `, ${plural(ties, "tie")} among them` : ""}.`];
    return [records - ties, `${plural(records - ties, "record")}; ${plural(ties, "tie")} left out, which ${TARGETS[chosen.to][0]} cannot hold.`];
  }

  function draw(into, found) {
    const outcome = el("div", { class: "ad-outcome" });
    const targets = Object.fromEntries(found.targets.map((name) => [name, TARGETS[name] || [name, "another layout"]]));
    function fill() {
      const [records, words] = summary(found);
      const file = `${chosen.labels}${chosen.to === "llava_rlhf" ? ".json" : ".jsonl"}`;
      const address = `/api/admin/export?labels=${chosen.labels}&to=${chosen.to}`;
      const command = `align annotate export ${file} --labels ${chosen.labels} --to ${chosen.to} --store ${quoted(found.store)}`;
      const link = records
        ? el("a", { class: "al-button primary", href: address, download: file }, `Download ${file}`)
        : el("span", { class: "al-button ad-off", "aria-disabled": "true" }, "Nothing to download yet");
      outcome.replaceChildren(el("p", { role: "status" }, words), link,
        el("p", { class: "ad-soft" }, "The same on the command line:"),
        el("div", { class: "ad-made" }, el("code", { class: "ad-code" }, command), admin.copier(() => command)));
    }
    fill();
    into.replaceChildren(card(null,
      note("Votes that stand, at this moment. Gold items and the test are left out. Labelers go on meanwhile."),
      el("div", { class: "ad-two ad-plain" },
        choices("labels", "Labels", LABELS, (value) => ` · ${plural(found.labels[value].records, "record")}`, fill),
        choices("to", "Layout", targets, () => "", fill)),
      outcome),
      card("Soft labels and margins", note("The records of majority and adjudicated hold, in meta: votes (counts for each question), soft (the share of the votes that prefer each response), margin (the distance of the two shares: 1 where all agree, 0 for a draw) and what was marked. Schema and TRL keep meta; LLaVA-RLHF’s layout has no place for it.")));
  }

  admin.sections.push({ name: "export", title: "Export", load: () => align.api("GET", "/api/admin/sizes"), draw });
})();
