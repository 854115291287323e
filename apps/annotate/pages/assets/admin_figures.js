// Agreement and bias: figures with their intervals, and how each is to be read.
(() => {
  "use strict";
  const { el, card, note, dots, table, cell, plural } = admin;
  /** agreement between the thesis's labelers on pairs held out (Appendix H) */
  const THESIS = 0.69;
  const QUESTIONS = {
    preferred: ["The better response in the end", "Which response a labeler prefers after both questions: two categories."],
    hallucination: ["Fewer hallucinations, the first question", "Response 1, a tie, or response 2: three categories, so chance agrees less often."],
  };
  const FIGURES = {
    raw: "Raw agreement",
    cohen_kappa_mean: "Cohen’s kappa, mean",
    fleiss_kappa: "Fleiss’ kappa",
    krippendorff_alpha: "Krippendorff’s alpha",
    krippendorff_alpha_ordinal: "Krippendorff’s alpha, ordered",
  };
  const READING = [
    ["Raw agreement", "of two labelers who saw the same pair, how often both said the same. Chance alone gives about half on the better response, so it looks high."],
    ["Cohen’s kappa", "agreement beyond what two labelers’ own habits would give by chance: 0 is chance, 1 is perfect, below 0 is worse than chance. The mean is over all pairs of labelers who share items."],
    ["Fleiss’ kappa", "the same for any number of labelers, with one set of habits for all of them."],
    ["Krippendorff’s alpha", "one minus observed over expected disagreement; made for votes that are missing here and there, as they are in a project like this. “Ordered” puts the tie in the middle, so 1 against tie counts less than 1 against 2. As a rule of thumb, 0.67 is needed for tentative conclusions and 0.80 for firm ones."],
    ["The line with a dot", "the 95 % interval: pairs (not votes) are drawn again with replacement, 1,000 times. With few pairs it is wide, and two figures whose intervals overlap a lot are not known to differ."],
  ];

  /** Down to −1 in steps, where something is below 0. */
  function axes(figures) {
    const low = Math.min(0, ...figures.map((f) => f.low ?? f.value ?? 0));
    return [low < -0.5 ? -1 : low < 0 ? -0.5 : 0, 1];
  }

  function question(name, figures) {
    const [title, text] = QUESTIONS[name];
    const rows = Object.entries(figures).map(([key, found]) => ({ label: FIGURES[key], found, id: `${name}.${key}` }));
    const lines = name === "preferred" ? [{ at: THESIS, text: "thesis: 69 %" }] : [];
    const beyond = rows.filter((row) => row.label !== FIGURES.raw);
    return card(title, note(text),
      dots({ rows: rows.slice(0, 1), kind: "percent", lines }),
      el("h4", {}, "Beyond chance"),
      dots({ rows: beyond, kind: "number", axes: axes(beyond.map((row) => row.found)) }));
  }

  const between = { by: 2, down: true };

  function drawAgreement(into, found) {
    if (!found.pairs) {
      into.replaceChildren(admin.empty("Nothing to compare yet", "Agreement is measured on pairs that two labelers or more have voted on. None is there yet: give pairs more votes with --overlap, or wait."));
      return;
    }
    const columns = [
      { title: "labeler", value: (r) => r.first, show: (r) => r.first },
      { title: "and", value: (r) => r.second, show: (r) => r.second },
      { title: "pairs", numeric: true, value: (r) => r.pairs, show: (r) => admin.count(r.pairs), hint: "pairs that both voted on" },
      { title: "raw agreement", numeric: true, value: (r) => r.raw.value, show: (r) => cell(r.raw, "percent") },
      { title: "Cohen’s kappa", numeric: true, value: (r) => r.cohen_kappa.value, show: (r) => cell(r.cohen_kappa, "number") },
    ];
    into.replaceChildren(
      note(`Measured on ${plural(found.pairs, "pair")} with two votes or more (${plural(found.votes, "vote")}). Gold items and the test are left out. Each figure stands with its 95 % interval.`),
      question("preferred", found.preferred), question("hallucination", found.hallucination),
      card("How to read these", el("dl", { class: "ad-reading" },
        ...READING.flatMap(([term, text]) => [el("dt", {}, term), el("dd", {}, text)])),
        note("The dashed line at 69 % is the raw agreement between labelers that the thesis reports for its own preference data (Appendix H). Compare it with the raw agreement on the better response alone.")),
      card("Two by two, on the better response",
        note("Those with most pairs in common first, 50 at most. A labeler who agrees with nobody shows up here."),
        table({ label: "Agreement of labelers, two by two", columns, rows: found.labelers, sort: between })));
  }

  // --- bias ---

  const BIASES = {
    chose_a: ["Position", "Share of the decided votes for the response shown as A, on the left. What stands there is drawn for each labeler, so without a bias it is 50 %: an interval that does not hold 50 % tells of a liking for a side."],
    chose_longer: ["Length", "Share of the decided votes for the longer response, in characters. Longer may well be better, so this is a bias only as far as it goes beyond what careful labels say; look at it beside the gold items."],
  };
  const ASKED = { preferred: "The better response", hallucination: "Fewer hallucinations", helpfulness: "More helpful (after a tie)" };

  /** Which kind of interval the shares have. */
  function intervals(bias) {
    const drawn = [bias.ties, ...Object.keys(ASKED).flatMap((name) => Object.keys(BIASES).map((key) => bias[name][key]))];
    if (drawn.every((found) => found.interval === "wilson")) return " (Wilson’s).";
    return ". A labeler’s votes are each on a pair of their own: Wilson’s interval. Where a share of all labelers has pairs with several votes, pairs are drawn again with all their votes, so the two kinds may differ; of few pairs the second is too narrow.";
  }

  function drawBias(into, { bias, labelers }) {
    if (!bias.preferred.chose_a.n) {
      into.replaceChildren(admin.empty("No votes yet", "Shares for A and for the longer response appear with the first votes."));
      return;
    }
    const lines = [{ at: 0.5, text: "no bias: 50 %" }];
    const voted = labelers.filter((row) => row.votes);
    const cards = Object.entries(BIASES).map(([key, [title, text]]) => {
      const rows = Object.entries(ASKED).map(([name, label]) => ({ label, found: bias[name][key], id: `${name}.${key}` }));
      const each = voted.map((row) => ({ label: row.name, found: row[key] }));
      return card(title, note(text), dots({ rows, kind: "percent", lines, unit: "vote" }),
        el("h4", {}, "Labeler by labeler, the better response"),
        dots({ rows: each, kind: "percent", lines: [{ at: 0.5, text: "50 %" }], unit: "vote" }));
    });
    const ties = voted.map((row) => ({ label: row.name, found: row.ties }));
    into.replaceChildren(note(`Each share stands with its 95 % interval${intervals(bias)}`), ...cards,
      card("Ties in the first question",
        note("Share of the votes that found the two responses alike in hallucinations. A labeler who ties far more often than the others may not look closely."),
        dots({ rows: [{ label: "All labelers", found: bias.ties, id: "ties" }, ...ties], kind: "percent", unit: "vote" })));
  }

  const get = (name) => align.api("GET", `/api/admin/${name}`);
  admin.sections.push(
    { name: "agreement", title: "Agreement", load: () => get("agreement"), draw: drawAgreement },
    {
      name: "bias",
      title: "Bias",
      load: async () => {
        const [bias, labelers] = await Promise.all([get("bias"), get("labelers")]);
        return { bias, labelers };
      },
      draw: drawBias,
    },
  );
})();
