// Who labels, how much and how well, and what admins can do about it.
(() => {
  "use strict";
  const { el, card, note, count, plural, duration, table, cell } = admin;
  const get = (name) => align.api("GET", `/api/admin/${name}`);
  /** labels a labeler in the thesis's preference data (Appendix H, figure H.2) */
  const THESIS = { labelers: 28, least: 30, quarter: 81, median: 278, three_quarters: 419, mean: 540, most: 4006 };
  const SPREAD = {
    labelers: "labelers", least: "least", quarter: "a quarter has at most", median: "half has at most",
    three_quarters: "three quarters have at most", mean: "mean", most: "most",
  };

  function labels(rows, spread) {
    const voted = rows.filter((row) => row.votes).sort((a, b) => b.votes - a.votes);
    const head = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Labels a labeler"),
      el("th", { scope: "col", class: "ad-num" }, "here"), el("th", { scope: "col", class: "ad-num" }, "thesis")));
    const whole = (value) => count(Math.round(10 * value) / 10);
    const lines = Object.entries(SPREAD).map(([key, title]) => el("tr", {}, el("th", { scope: "row" }, title),
      el("td", { class: "ad-num" }, whole(spread[key])), el("td", { class: "ad-num ad-soft" }, whole(THESIS[key]))));
    return card("Labels per labeler",
      el("div", { class: "ad-two ad-plain" },
        el("div", { class: "ad-tall", tabindex: "0", role: "region", "aria-label": "Labels per labeler" },
          admin.lying({ bars: voted.map((row) => ({ label: row.name, value: row.votes })), label: "Labels per labeler" })),
        el("table", { class: "ad-table" }, head, el("tbody", {}, ...lines))),
      note("Votes on pairs of the project, without gold items. The thesis’s column is its preference data of 28 people (Appendix H)."));
  }

  // --- one account ---

  function manage(row) {
    const own = row.name === admin.session.user.name;
    const close = el("button", { type: "button", class: "al-button", onclick: () => dialog.close() }, "Close");
    const change = (body, words) => admin.doing(dialog, async () => {
      await align.api("POST", "/api/admin/labeler", { name: row.name, ...body });
      align.toast(words, "good");
      dialog.close();
      admin.refresh();
    });
    const button = (text, body, words, more = {}) => {
      const made = el("button", { type: "button", class: "al-button", ...more }, text);
      made.addEventListener("click", () => change(body, words));
      return made;
    };
    const limit = el("input", { class: "al-input", type: "number", min: "0", step: "1", id: "ad-own-limit", value: row.limit === null ? "" : String(row.limit) });
    const set = el("form", { class: "ad-form" }, el("div", { class: "ad-field" }, el("label", { for: "ad-own-limit" }, "Most votes"), limit, el("small", {}, "0: any number")),
      el("div", { class: "ad-submit" }, el("button", { type: "submit", class: "al-button primary" }, "Set"),
        button("As the project has it", { limit: -1 }, `${row.name} has the project’s limit`)));
    set.addEventListener("submit", (event) => {
      event.preventDefault();
      if (limit.value !== "") change({ limit: Number(limit.value) }, `The limit of ${row.name} is set`);
    });
    const door = row.disabled
      ? button("Let in again", { disabled: false }, `${row.name} can sign in again`)
      : button("Shut out", { disabled: true }, `${row.name} is shut out; the votes stay`, { class: "al-button danger", ...(own ? { disabled: "" } : {}) });
    const dialog = align.dialog("ad-dialog", el("h3", {}, row.name), note(`${row.role}, ${plural(row.votes, "vote")}, ${plural(row.gold, "gold vote")}`),
      el("h4", {}, "Votes"), set,
      el("h4", {}, "Test"), note(tested(row)), button("Take the test again", { retake: true }, `${row.name} takes the test again`),
      el("h4", {}, "Access"), note(row.disabled ? "Shut out: cannot sign in. The votes stay." : own ? "This is you. Another admin can shut you out." : "Shutting out ends the sessions at once; the votes stay."), door,
      el("div", { class: "ad-foot" }, close));
  }

  function tested(row) {
    if (row.qualification === null) return "Not taken, or not needed.";
    return `${row.qualification === "passed" ? "Passed" : "Not passed"}, ${count(row.qualification_right)} right.`;
  }

  function name(row) {
    const badges = [];
    if (row.role === "admin") badges.push(el("span", { class: "ad-badge" }, "admin"));
    if (row.disabled) badges.push(el("span", { class: "ad-badge ad-bad" }, "shut out"));
    if (row.qualification === "failed") badges.push(el("span", { class: "ad-badge ad-bad" }, "test not passed"));
    return el("span", {}, el("span", { class: "ad-name" }, row.name), ...badges);
  }

  function actions(row) {
    const button = el("button", { type: "button", class: "al-button", "aria-label": `Manage ${row.name}` }, "Manage");
    button.addEventListener("click", () => manage(row));
    return button;
  }

  const seconds = (row) => row.seconds_browser ?? row.seconds_server;
  const COLUMNS = [
    { title: "labeler", value: (r) => r.name, show: name },
    { title: "votes", numeric: true, value: (r) => r.votes, show: (r) => (r.limit ? `${count(r.votes)} of ${count(r.limit)}` : count(r.votes)), hint: "votes that stand, without gold items" },
    { title: "gold right", numeric: true, value: (r) => r.gold_right.value, show: (r) => cell(r.gold_right, "percent"), hint: "right votes on gold items" },
    { title: "gold", numeric: true, value: (r) => r.gold, show: (r) => count(r.gold), hint: "votes on gold items" },
    { title: "with others", numeric: true, value: (r) => r.agreement.value, show: (r) => cell(r.agreement, "percent"), hint: "agreement with the others on the same pairs" },
    { title: "time", numeric: true, value: seconds, show: (r) => duration(seconds(r)), hint: "median time a vote" },
    { title: "chose A", numeric: true, value: (r) => r.chose_a.value, show: (r) => cell(r.chose_a, "percent"), hint: "50 % without a liking for a side" },
    { title: "longer", numeric: true, value: (r) => r.chose_longer.value, show: (r) => cell(r.chose_longer, "percent"), hint: "chose the longer response" },
    { title: "ties", numeric: true, value: (r) => r.ties.value, show: (r) => cell(r.ties, "percent"), hint: "ties in the first question" },
    { title: "skips", numeric: true, value: (r) => r.skips, show: (r) => count(r.skips) },
    { title: "undone", numeric: true, value: (r) => r.undone, show: (r) => count(r.undone), hint: "votes and skips taken back" },
    { title: "last seen", numeric: true, value: (r) => r.last, show: (r) => admin.ago(r.last) },
    { title: "", show: actions },
  ];
  const sort = { by: 1, down: true };

  function draw(into, { rows, overview }) {
    const spread = overview.labels_per_labeler;
    into.replaceChildren(
      card("Accounts", note("Shares with their 95 % intervals below them. Click a heading to sort."), table({ label: "Accounts", columns: COLUMNS, rows, sort })),
      spread ? labels(rows, spread) : admin.empty("No votes yet", "Labels per labeler appear with the first votes. Invite people on the overview."));
  }

  admin.sections.push({
    name: "labelers",
    title: "Labelers",
    load: async () => {
      const [rows, overview] = await Promise.all([get("labelers"), get("overview")]);
      return { rows, overview };
    },
    draw,
  });
})();
