// Pairs on which the labelers disagree, one at a time, to be decided by buttons or keys.
(() => {
  "use strict";
  const { el, note, count, plural } = admin;
  const PAGE = 20;
  const RESPONSES = ["Response 1", "Response 2"];
  const FIRST = "Which has fewer hallucinations?";
  const SECOND = "A tie. Which is more helpful?";
  /** pairs seen here, in order; `at` is the one shown; decisions made here by pair */
  const queue = { waiting: 0, pairs: [], at: 0, decided: new Map(), tied: false, reasons: {} };
  let place = null;

  // --- what was said ---

  const side = (index) => (index === null ? "a tie" : RESPONSES[index]);

  /** A vote or decision in words. */
  function verdict({ hallucination, helpfulness }) {
    if (hallucination !== null) return `${side(hallucination)}: fewer hallucinations`;
    if (helpfulness !== null) return `A tie, then ${RESPONSES[helpfulness]}: more helpful`;
    return "A tie in both";
  }

  /** A text whose characters (code points) carry how many labelers marked them. */
  function marked(text, spans) {
    const characters = Array.from(text);
    const depth = new Array(characters.length).fill(0);
    for (const [start, end] of spans) for (let k = start; k < Math.min(end, depth.length); k += 1) depth[k] += 1;
    const parts = [];
    for (let start = 0, k = 1; k <= characters.length; k += 1) {
      if (k < characters.length && depth[k] === depth[start]) continue;
      const piece = characters.slice(start, k).join("");
      parts.push(depth[start] ? el("mark", { "data-count": Math.min(depth[start], 3), title: `marked by ${plural(depth[start], "labeler")}` }, piece) : piece);
      start = k;
    }
    return parts;
  }

  function response(pair, index) {
    // joined where one labeler's touch, so that nobody counts twice
    const of = (vote) => vote.marks.filter(([at]) => at === index).map(([, start, end]) => [start, end]);
    const spans = pair.votes.flatMap((vote) => align.joined(of(vote)));
    const voters = pair.votes.filter((vote) => (vote.hallucination ?? vote.helpfulness) === index).length;
    const who = new Set(pair.votes.filter((vote) => vote.marks.some(([of]) => of === index)).map((vote) => vote.labeler)).size;
    return el("article", { class: "al-card ad-response", "data-response": index },
      el("header", {}, el("h3", {}, RESPONSES[index]), el("span", { class: "ad-soft" }, plural(voters, "vote"), who ? ` · marked by ${count(who)}` : "")),
      el("div", { class: "ad-text", dir: "auto" }, marked(pair.responses[index], spans)));
  }

  function votes(pair) {
    const rows = pair.votes.map((vote) => el("li", {}, el("b", {}, vote.labeler), el("span", {}, verdict(vote)),
      el("span", { class: "ad-soft" }, [vote.seconds === null ? "" : admin.duration(vote.seconds), vote.marks.length ? plural(vote.marks.length, "mark") : ""].filter(Boolean).join(" · "))));
    const skips = pair.skips.map(([labeler, reason]) => {
      const [code, ...rest] = reason.split(":");
      const told = rest.join(":").trim();
      const words = queue.reasons[code] || code;
      return el("li", {}, el("b", {}, labeler), el("span", {}, "Skipped: ", told ? `${words} (${told})` : words), el("span", {}));
    });
    return el("ul", { class: "ad-votes", "aria-label": "What labelers said" }, rows, skips);
  }

  function picture(pair) {
    if (!pair.has_image) return null;
    const address = `/api/image/${encodeURIComponent(pair.pair)}`;
    const image = el("img", { src: address, alt: "The picture of this pair" });
    image.addEventListener("error", () => image.replaceWith(el("div", { class: "ad-empty" }, "The picture cannot be shown.")));
    return el("a", { class: "ad-picture", href: address, target: "_blank", rel: "noopener", title: "Open the picture alone" }, image);
  }

  // --- deciding ---

  function choice(key, text, chosen, act) {
    return el("button", { type: "button", class: "al-button ad-decide", "aria-pressed": chosen ? "true" : null, "aria-keyshortcuts": key, onclick: act },
      el("span", { class: "al-key", "aria-hidden": "true" }, key), text);
  }

  function panel(pair) {
    const before = queue.decided.get(pair.pair);
    const asked = queue.tied ? SECOND : FIRST;
    const answer = (index) => (queue.tied ? before?.hallucination === null && before.helpfulness === index : before && before.hallucination === index);
    const buttons = [0, 1, null].map((index, k) => choice(String(k + 1), index === null ? "A tie" : RESPONSES[index], Boolean(answer(index)), () => say(index)));
    const words = el("textarea", { class: "al-input", id: "ad-note", rows: "2", maxlength: "1000", value: before?.note ?? "" });
    return el("div", { class: "ad-panel al-card", role: "group", "aria-label": asked },
      before ? el("p", { class: "al-note good" }, `Decided: ${verdict(before)}. Choose again to change it.`) : null,
      el("h3", { id: "ad-asked", "aria-live": "polite" }, asked),
      el("div", { class: "ad-decisions" }, buttons),
      queue.tied ? el("div", { class: "ad-decisions" }, choice("Esc", "Back to the first question", false, () => tie(false))) : null,
      el("div", { class: "ad-field" }, el("label", { for: "ad-note" }, "Note (kept with the decision)"), words));
  }

  function tie(tied) {
    const words = said();
    queue.tied = tied;
    show();
    document.getElementById("ad-note").value = words;
  }

  const said = () => document.getElementById("ad-note")?.value ?? "";
  const here = () => queue.pairs[queue.at];

  /** The answer to the question that is shown. */
  function say(index) {
    if (!queue.tied && index === null) return tie(true);
    return decide(queue.tied ? { hallucination: null, helpfulness: index } : { hallucination: index, helpfulness: null });
  }

  function decide(values) {
    const pair = here();
    const made = { ...values, note: said() };
    return admin.doing(place, async () => {
      // the same token when it is sent again, so that it is kept once
      const body = { pair: pair.pair, token: crypto.randomUUID?.() ?? random(), ...made };
      await admin.twice(() => align.api("POST", "/api/admin/adjudicate", body));
      if (!queue.decided.has(pair.pair)) queue.waiting -= 1;
      queue.decided.set(pair.pair, made);
      align.toast(`Pair ${pair.n}: ${verdict(made)}`, "good");
      await step(1);
    });
  }

  /** Where pages are not served safely, browsers have no randomUUID. */
  const random = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

  async function fetchMore(after) {
    const found = await align.api("GET", `/api/admin/disputed?after=${after}&limit=${PAGE}`);
    queue.waiting = found.count;
    queue.pairs.push(...found.pairs);
  }

  async function step(by) {
    queue.tied = false;
    queue.at = Math.max(0, queue.at + by);
    if (queue.at >= queue.pairs.length && queue.pairs.length) await fetchMore(queue.pairs.at(-1).n);
    show();
    const top = place.getBoundingClientRect().top;
    if (top < 0) place.scrollIntoView();
  }

  const move = (by) => admin.doing(place, () => step(by));

  function show() {
    const pair = here();
    const back = el("button", { type: "button", class: "al-button", "aria-keyshortcuts": "p", onclick: () => move(-1), disabled: queue.at === 0 }, el("span", { class: "al-key", "aria-hidden": "true" }, "P"), "Previous");
    const on = el("button", { type: "button", class: "al-button", "aria-keyshortcuts": "n", onclick: () => move(1), disabled: !pair }, el("span", { class: "al-key", "aria-hidden": "true" }, "N"), pair && queue.decided.has(pair.pair) ? "Next" : "Leave for later");
    const head = el("div", { class: "ad-queuehead" },
      el("div", {}, el("b", { "data-tile": "waiting" }, plural(queue.waiting, "pair waits", "pairs wait")), pair ? el("span", { class: "ad-soft" }, ` · pair ${pair.n}`) : null),
      el("div", { class: "ad-decisions" }, back, on));
    if (!pair) {
      place.replaceChildren(queue.pairs.length ? head : "", over());
      return;
    }
    const talk = pair.messages.map((turn) => el("div", { class: "ad-turn" }, el("span", { class: "ad-soft" }, turn.role === "user" ? "Question" : "Earlier answer"), el("div", { class: "ad-text", dir: "auto" }, turn.content)));
    place.replaceChildren(head,
      el("div", { class: "ad-pair" },
        el("div", { class: "ad-seen" }, picture(pair), el("div", { class: "al-card ad-talk" }, talk), panel(pair)),
        el("div", { class: "ad-responses" }, response(pair, 0), response(pair, 1), votes(pair))));
  }

  function over() {
    if (queue.waiting > 0) {
      return admin.el("div", { class: "ad-empty" }, el("b", {}, `You have been through all; ${plural(queue.waiting, "pair still waits", "pairs still wait")}.`),
        el("button", { type: "button", class: "al-button primary", onclick: () => admin.refresh() }, "Start again"));
    }
    return admin.empty("Nothing to decide", "A pair comes here once all its votes are there and they prefer different responses, or when everybody it was given to skipped it.");
  }

  // --- keys ---

  document.addEventListener("keydown", (event) => {
    if (admin.shown !== "disagreements" || !place?.isConnected || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (document.querySelector("dialog[open]")) return;
    const typing = event.target.closest?.("input, textarea, select");
    if (event.key === "Escape") {
      if (typing) event.target.blur();
      else if (queue.tied) tie(false);
      return;
    }
    if (typing || admin.busy) return;
    const key = event.key.toLowerCase();
    if (key === "p" && queue.at > 0) move(-1);
    else if (key === "n" && here()) move(1);
    else if ("123".includes(key) && here()) say([0, 1, null][Number(key) - 1]);
    else if (key === "m" && here()) document.getElementById("ad-note").focus();
    else return;
    event.preventDefault();
  });

  async function load() {
    const [found, reasons] = await Promise.all([align.api("GET", `/api/admin/disputed?after=0&limit=${PAGE}`), align.api("GET", "/api/reasons")]);
    return { found, reasons };
  }

  function draw(into, { found, reasons }) {
    Object.assign(queue, { waiting: found.count, pairs: found.pairs, at: 0, decided: new Map(), tied: false, reasons });
    place = el("div", { class: "ad-stack ad-queue" });
    const keys = note("Keys: ", ...[["1", "2", "3", " decide"], ["Esc", " back"], ["N", " later"], ["P", " previous"], ["M", " note"]].flatMap((group, k) =>
      [k ? ", " : "", ...group.map((text) => (text.startsWith(" ") ? text : el("span", { class: "al-key" }, text)))]), ". Responses stand in the data’s order; which model wrote which is not told.");
    keys.classList.add("ad-keys");
    into.replaceChildren(place, found.count ? keys : "");
    show();
  }

  admin.sections.push({ name: "disagreements", title: "Disagreements", load, draw });
})();
