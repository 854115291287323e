// How far the project is, invitations and rules.
(() => {
  "use strict";
  const { el, card, note, count, plural, duration, field, known } = admin;
  const get = (name) => align.api("GET", `/api/admin/${name}`);

  function tile(title, value, under, id) {
    return el("div", { class: "ad-tile", "data-tile": id }, el("span", { class: "ad-soft" }, title), el("b", {}, value),
      el("span", { class: "ad-soft" }, under));
  }

  function progress(found) {
    const share = found.pairs ? found.pairs_done / found.pairs : 0;
    const bar = el("div", { class: "ad-progress", role: "progressbar", "aria-label": "Pairs done", "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.round(100 * share)) }, el("i", {}));
    bar.firstChild.style.width = `${100 * share}%`;
    const open = found.pairs - found.pairs_done;
    return card(null,
      el("div", { class: "ad-headline" }, el("b", {}, `${count(found.pairs_done)} of ${count(found.pairs)}`), " pairs have all their votes, or a decision",
        el("span", { class: "ad-soft" }, ` · ${count(open)} open`)),
      bar, el("p", { class: "ad-forecast", "data-tile": "forecast" }, forecast(found)));
  }

  /** When the last vote would come, as things go. */
  function forecast({ forecast: found, pairs }) {
    if (!pairs) return "No pairs yet: align annotate import adds them.";
    if (!found.votes_left) return "Every pair has its votes, or a decision.";
    const left = `${plural(found.votes_left, "vote")} still wanted`;
    if (!known(found.seconds)) return `${left}; nobody has voted within a day, so there is no end in sight.`;
    const rate = found.votes_an_hour < 10 ? found.votes_an_hour.toFixed(1) : count(Math.round(found.votes_an_hour));
    return `${left}. At the rate of the last day (${rate} an hour) done in about ${duration(found.seconds)}, on ${admin.when(Date.now() / 1000 + found.seconds)}.`;
  }

  function tiles(found) {
    const times = found.seconds.browser || found.seconds.server;
    const whose = found.seconds.browser ? "half" : "by the server’s clock, half";
    const { passed, failed } = found.qualification;
    return el("div", { class: "ad-tiles" },
      tile("Votes", count(found.votes), `of ${count(found.votes_wanted)} wanted`, "votes"),
      tile("Last 24 hours", count(found.votes_last_day), `${count(found.votes_last_hour)} in the last hour`, "day"),
      tile("Labelers active", count(found.labelers_last_day), "in the last 24 hours", "active"),
      tile("Time a vote, median", times ? duration(times.median) : admin.NONE, times ? `${whose} between ${duration(times.low)} and ${duration(times.high)}` : "no votes yet", "time"),
      tile("Gold votes", count(found.gold_votes), `on ${plural(found.gold_items, "gold item")}`, "gold"),
      tile("Test passed", `${count(passed)} of ${count(passed + failed)}`, found.qualification_items ? `${plural(found.qualification_items, "item")} to draw from` : "no items for a test", "test"),
      tile("Decided by admins", count(found.adjudicated), "disagreements", "decided"),
      tile("Skips", count(found.skips), `${count(found.undone)} votes and skips taken back`, "skips"));
  }

  // --- votes over time ---

  let by = "hour";

  function bars(found) {
    if (by === "hour") {
      return found.by_hour.map(({ hour, votes }) => {
        const date = new Date(hour * 1000);
        return { value: votes, text: `${admin.day.format(date)}, ${admin.clock.format(date)}`, short: `${admin.day.format(date)} ${admin.clock.format(date)}` };
      });
    }
    // days without votes stand there too
    const days = new Map(found.by_day.map((row) => [row.day, row.votes]));
    const all = [];
    const first = Math.max(found.by_day[0].day, found.by_hour.at(-1).hour - 120 * 86400);
    for (let at = first - (first % 86400); at <= found.by_hour.at(-1).hour; at += 86400) {
      const text = admin.day.format(new Date(at * 1000));
      all.push({ value: days.get(at) || 0, text: `${text} (UTC)`, short: text });
    }
    return all;
  }

  function throughput(found) {
    const inside = el("div", {});
    const buttons = [["hour", "48 hours"], ["day", "Days"]].map(([name, text]) => {
      const button = el("button", { type: "button", class: "ad-choice" }, text);
      button.addEventListener("click", () => {
        by = name;
        fill();
      });
      return [name, button];
    });
    function fill() {
      for (const [name, button] of buttons) button.setAttribute("aria-pressed", String(name === by));
      const title = by === "hour" ? "Votes in each of the last 48 hours" : "Votes of each day";
      inside.replaceChildren(found.by_day.length ? admin.columns({ bars: bars(found), title, unit: "vote" }) : admin.empty("No votes yet", "They appear here as they come."));
    }
    fill();
    return card("Throughput", el("div", { class: "ad-choices", role: "group", "aria-label": "Votes by" }, ...buttons.map(([, b]) => b)), inside);
  }

  function skips(found, reasons) {
    const rows = Object.entries(found.skips_by_reason).map(([reason, value]) => ({ label: reasons[reason] || reason, value }));
    return card("Why pairs were skipped", rows.length ? admin.lying({ bars: rows, label: "Skips by reason" }) : note("Nobody has skipped a pair."));
  }

  // --- invitations ---

  const moment = (seconds) => el("span", { class: "ad-cell", title: admin.when(seconds) }, admin.day.format(seconds * 1000), el("small", {}, admin.clock.format(seconds * 1000)));
  const COLUMNS = [
    { title: "id", value: (r) => r.id, show: (r) => el("code", {}, r.id) },
    { title: "role", value: (r) => r.role, show: (r) => r.role },
    { title: "uses left", numeric: true, value: (r) => r.uses_left, show: (r) => count(r.uses_left) },
    { title: "made", numeric: true, value: (r) => r.created, show: (r) => moment(r.created) },
    { title: "until", numeric: true, value: (r) => r.expires, show: (r) => moment(r.expires) },
  ];
  const sort = { by: 3, down: true };

  /** The invitations that are open; `ended(id)` is called for one that was revoked. */
  function standing(ended) {
    const into = el("div", { class: "ad-open", tabindex: "-1" });
    let shown = null;
    const fill = (rows) => {
      // the same table stays, and with it the button that has the focus
      if (JSON.stringify(rows) === shown) return;
      shown = JSON.stringify(rows);
      const actions = { title: "", show: (row) => el("button", { type: "button", class: "al-button", "aria-label": `Revoke ${row.id}`, onclick: () => ask(row) }, "Revoke") };
      into.replaceChildren(...(rows.length ? [el("h4", {}, "Open invitations"), admin.table({ label: "Open invitations", columns: [...COLUMNS, actions], rows, sort })] : []));
    };
    const renew = async () => fill(await get("invitations"));
    function ask(row) {
      const keep = el("button", { type: "button", class: "al-button", onclick: () => dialog.close() }, "Keep it");
      const revoke = el("button", { type: "button", class: "al-button danger" }, "Revoke it");
      revoke.addEventListener("click", () => admin.doing(dialog, async () => {
        try {
          await align.api("POST", "/api/admin/revoke", { id: row.id });
          align.toast("The invitation is revoked", "good");
          ended(row.id);
        } finally {
          // over already, or revoked by somebody else: the table says so
          dialog.close();
          await renew();
        }
        into.focus();
      }));
      const dialog = align.dialog("ad-dialog", el("h3", {}, "Revoke the invitation?"),
        note(`${row.id}, for ${plural(row.uses_left, row.role)}. Its link makes no more accounts; those that it made stay.`), el("div", { class: "ad-foot" }, keep, revoke));
    }
    return { into, fill, renew };
  }

  function invitations() {
    const made = el("div", { "aria-live": "polite" });
    const open = standing((id) => {
      if (made.dataset.id === id) made.replaceChildren();
    });
    const form = el("form", { class: "ad-form" },
      field("role", "Role", "", { options: [["labeler", "labeler"], ["admin", "admin"]] }),
      field("uses", "People", "accounts it can make", { type: "number", min: "1", max: "10000", step: "1", value: "1", required: "" }),
      field("days", "Days", "until it ends", { type: "number", min: "0.1", max: "366", step: "any", value: "7", required: "" }),
      el("div", { class: "ad-submit" }, el("button", { type: "submit", class: "al-button primary" }, "Make an invitation")));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const values = new FormData(form);
      admin.doing(form, async () => {
        const body = { role: values.get("role"), uses: Number(values.get("uses")), days: Number(values.get("days")) };
        const found = await align.api("POST", "/api/admin/invite", body);
        const link = el("input", { class: "al-input ad-link", readonly: "", "aria-label": "The invitation’s link", value: location.origin + found.path });
        link.addEventListener("focus", () => link.select());
        made.dataset.id = found.id;
        const words = `For ${plural(found.uses, found.role)}, until ${admin.when(found.expires)}. It is shown only now; whoever has it can use it.`;
        made.replaceChildren(el("div", { class: "ad-made" }, link, admin.copier(() => link.value)), note(words));
        link.focus();
        await open.renew();
      });
    });
    const text = note("A link by which people make accounts of their own, with passwords of their own.");
    return { fill: open.fill, card: card("Invite people", text, form, made, open.into) };
  }

  // --- rules ---

  const RULES = [
    ["lease", "Minutes a pair is held", "then it goes to somebody else", { min: "0.2", step: "any" }],
    ["qualification", "Items of the test", "0: no test", { min: "0", step: "1" }],
    ["pass_mark", "Right ones to pass", "", { min: "0", step: "1" }],
    ["gold_every", "One gold item among", "so many pairs; 0: none", { min: "0", step: "1" }],
    ["limit", "Most votes of one labeler", "0: any number", { min: "0", step: "1" }],
  ];

  function rules(now) {
    const saved = el("span", { class: "ad-saved", role: "status" });
    const form = el("form", { class: "ad-form" }, ...RULES.map(([name, text, hint, more]) => field(name, text, hint, { type: "number", required: "", ...more })),
      el("div", { class: "ad-submit" }, el("button", { type: "submit", class: "al-button primary" }, "Save the rules"), saved));
    const fill = (found) => {
      for (const [name] of RULES) form.elements[name].value = String(name === "lease" ? found.lease / 60 : found[name]);
    };
    form.addEventListener("input", () => saved.replaceChildren());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const body = Object.fromEntries(RULES.map(([name]) => [name, Number(form.elements[name].value)]));
      body.lease *= 60;
      admin.doing(form, async () => {
        fill(await align.api("POST", "/api/admin/rules", body));
        saved.replaceChildren(`Saved at ${admin.clock.format(new Date())}; they hold from the next pair on.`);
      });
    });
    fill(now);
    return card("Rules", note("They hold for everybody, from the next pair on."), form);
  }

  let figures = null;
  let invite = null;

  function draw(into, { overview, reasons, rules: now, invitations: open }) {
    // forms are kept as they are: a refresh must not take what somebody is typing
    if (figures === null || !into.contains(figures)) {
      figures = el("div", { class: "ad-stack" });
      invite = invitations();
      into.replaceChildren(figures, el("div", { class: "ad-two" }, invite.card, rules(now)));
    }
    invite.fill(open);
    figures.replaceChildren(progress(overview), tiles(overview), el("div", { class: "ad-two" }, throughput(overview), skips(overview, reasons)));
  }

  admin.sections.push({
    name: "overview",
    title: "Overview",
    every: 30,
    load: async () => {
      const [overview, reasons, rules, invitations] = await Promise.all([get("overview"), align.api("GET", "/api/reasons"), get("rules"), get("invitations")]);
      return { overview, reasons, rules, invitations };
    },
    draw,
  });
})();
