// What the labeler's page shows; what is done with it stands in labeler.js.
(() => {
  "use strict";
  const { el } = align;
  const SIDES = ["A", "B"];
  const key = (name) => el("kbd", { class: "al-key", "aria-hidden": "true" }, name);

  function clock(seconds) {
    const whole = Math.max(0, Math.ceil(seconds));
    const hours = Math.floor(whole / 3600);
    const rest = `${String(Math.floor(whole / 60) % 60).padStart(hours ? 2 : 1, "0")}:${String(whole % 60).padStart(2, "0")}`;
    return hours ? `${hours}:${rest}` : rest;
  }

  function button(label, hint, title, work, more = "") {
    return el("button", { class: `al-button ${more}`, type: "button", title, onclick: work }, el("span", {}, label), hint && key(hint));
  }

  /** Builds the page into `root`. `act`: what buttons do, by name. */
  class View {
    constructor(root, act, session) {
      this.act = act;
      this.live = el("div", { class: "al-hidden", role: "status", "aria-live": "polite" });
      this.bar = el("i", {});
      this.progressBar = el("div", { class: "bar", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100 }, this.bar);
      this.mine = el("span", {});
      this.project = el("span", { class: "long" });
      this.count = el("span", { class: "count" }, this.mine, this.project);
      this.left = el("span", { class: "left", role: "timer" });
      this.body = el("main", { class: "body", tabindex: -1 });
      this.notice = el("div", { class: "notice", role: "status", "aria-live": "assertive" });
      this.vote = el("section", { class: "vote", "aria-label": "Your answer", hidden: true });
      const head = el("header", { class: "head" },
        el("strong", { class: "brand", title: align.title }, align.title),
        el("div", { class: "progress" }, this.progressBar, el("div", { class: "figures" }, this.count, this.left)),
        el("nav", {},
          session.user.role === "admin" && el("a", { class: "al-button quiet", href: "/admin/" }, "Admin"),
          el("button", { class: "al-button quiet", type: "button", title: "Instructions (? or H)", onclick: act.guide }, el("span", { class: "long" }, "Instructions"), key("?")),
          align.themeButton(),
          el("span", { class: "who", title: `Signed in as ${session.user.name}` }, session.user.name),
          el("button", { class: "al-button quiet", type: "button", title: "Sign out", "aria-label": "Sign out", onclick: act.leave }, "Sign out")));
      root.replaceChildren(el("div", { class: "labeler" }, head, this.body, el("div", { class: "foot" }, this.notice, this.vote), this.live));
    }

    say(text) {
      this.live.textContent = text;
    }

    // --- a pair ---

    /** Show a task; `passages`: side -> Passage. */
    task(task, passages, pictureUrl) {
      const turns = task.messages.map((turn) => el("div", { class: `turn ${turn.role === "user" ? "user" : "assistant"}` },
        el("h3", {}, turn.role === "user" ? "Question" : "Earlier answer"), el("p", { dir: "auto" }, turn.content)));
      this.cards = {};
      const cards = SIDES.map((side) => {
        this.cards[side] = el("article", { class: "card al-card", "data-side": side }, el("h2", {}, side), passages[side].box);
        return this.cards[side];
      });
      this.body.replaceChildren(el("div", { class: "task" }, this.picture(pictureUrl),
        el("div", { class: "talk" }, el("section", { class: "turns", "aria-label": "Conversation" }, turns), el("div", { class: "pair" }, cards),
        el("p", { class: "al-hint" }, "Marks are optional: click a sentence that is false, or select the false words."))));
      this.choices(task.stage === "qualification");
      window.scrollTo(0, 0);
      this.body.focus({ preventScroll: true });
    }

    picture(url) {
      if (url === null) return el("figure", { class: "picture none" }, el("p", {}, "This pair has no picture."));
      const image = el("img", { src: url, alt: "The picture that both responses are about", draggable: "false" });
      const open = el("button", { type: "button", class: "zooms", title: "Zoom (Z)", onclick: () => this.act.zoom() }, image, el("span", { class: "hint" }, "Zoom ", key("Z")));
      const figure = el("figure", { class: "picture" }, open);
      this.image = image;
      image.addEventListener("error", () => {
        this.image = null;
        figure.replaceChildren(el("div", { class: "broken", role: "alert" },
          el("p", {}, el("strong", {}, "The picture cannot be shown.")), el("p", {}, "Try again; if it stays away, skip the pair."),
          el("p", { class: "row" },
            button("Try again", "", "Load the picture again", () => figure.replaceWith(this.picture(`${url.split("?")[0]}?${Date.now()}`))),
            button("Skip", "S", "Skip this pair", () => this.act.skip("image")))));
      });
      return figure;
    }

    choices(test) {
      this.test = test;
      const choice = (group, value, label, hint, title) => el("button", {
        class: `al-button choice side-${value}`, type: "button", role: "radio", "aria-checked": "false", "data-group": group, "data-value": value,
        title, onclick: () => this.act.choose(group, value),
      }, el("span", {}, label), key(hint));
      const question = (group, text, ...buttons) => el("div", { class: "question", "data-group": group },
        el("p", { id: `question-${group}` }, text), el("div", { class: "options", role: "radiogroup", "aria-labelledby": `question-${group}` }, buttons));
      this.first = question("hallucination", "Which has fewer hallucinations?",
        choice("hallucination", "A", "A has fewer", "1", "A has fewer hallucinations (1 or A)"),
        choice("hallucination", "tie", "Tie", "3", "As many in both, or none (3, 0 or T)"),
        choice("hallucination", "B", "B has fewer", "2", "B has fewer hallucinations (2 or B)"));
      this.second = question("helpfulness", "Which is more helpful, or less incorrect?",
        choice("helpfulness", "A", "A is better", "1", "A is more helpful, or less incorrect (1 or A)"),
        choice("helpfulness", "B", "B is better", "2", "B is more helpful, or less incorrect (2 or B)"));
      this.submit = button("Submit", "Enter", "Keep this answer (Enter)", this.act.submit, "primary submit");
      this.markWords = button("Mark selected words", "", "Mark the selected words as not in the picture", this.act.markSelected, "mark-words");
      this.markWords.hidden = true;
      this.skipButton = button("Skip", "S", test ? "The items of the test cannot be skipped" : "Skip this pair (S)", () => this.act.skip());
      this.skipButton.disabled = test;
      this.undo = button("Undo", "U", "Take back your last answer (U or Ctrl+Z)", this.act.undo);
      const mark = button("Mark", "M", "Mark false sentences by keyboard (M, arrow keys, Space); or click a sentence, or select words", this.act.mark, "mark");
      this.vote.replaceChildren(el("div", { class: "tools" }, this.undo, this.skipButton, mark), el("div", { class: "questions" }, this.first, this.second), el("div", { class: "end" }, this.markWords, this.submit));
      this.vote.hidden = false;
    }

    /** Show what has been chosen; `busy`: nothing can be changed now. */
    chosen({ hallucination, helpfulness }, busy) {
      const said = { hallucination, helpfulness };
      for (const one of this.vote.querySelectorAll("[data-value]")) {
        one.setAttribute("aria-checked", String(said[one.dataset.group] === one.dataset.value));
        one.disabled = busy;
      }
      for (const { children } of this.vote.querySelectorAll("[role=radiogroup]")) {
        const stop = [...children].find((one) => one.getAttribute("aria-checked") === "true") ?? children[0];
        for (const one of children) one.tabIndex = one === stop ? 0 : -1;
      }
      const asks = hallucination === "tie";
      this.second.hidden = !asks;
      this.vote.classList.toggle("two", asks);
      this.first.classList.toggle("answered", asks);
      this.submit.disabled = busy || hallucination === null || (asks && helpfulness === null);
      this.busy = busy;
      this.canUndo(this.undoable);
      this.skipButton.disabled = busy || this.test;
      this.body.querySelector(".pair").inert = busy;
      this.vote.setAttribute("aria-busy", String(busy));
      const better = helpfulness ?? hallucination;
      for (const [side, card] of Object.entries(this.cards)) card.classList.toggle("better", side === better);
    }

    // --- everything else ---

    /** `undoable`: there is an answer to take back. */
    canUndo(undoable) {
      this.undoable = undoable;
      if (this.undo) this.undo.disabled = this.busy || !undoable;
    }

    /** A page without a pair. */
    screen(title, text, ...buttons) {
      this.vote.hidden = true;
      this.body.replaceChildren(el("div", { class: "screen al-card" }, el("h1", {}, title), text && el("p", {}, text), el("div", { class: "row" }, buttons)));
      this.timeLeft(null);
      this.say(`${title}. ${text}`);
      (this.body.querySelector(".primary") ?? this.body).focus({ preventScroll: true });
    }

    /** `mine`: what this labeler has done, in words; `project`: how far the project is. */
    progress(share, mine, project = "") {
      this.bar.style.width = `${Math.round(100 * share)}%`;
      this.progressBar.setAttribute("aria-valuenow", String(Math.round(100 * share)));
      this.mine.textContent = mine;
      this.project.textContent = project;
    }

    timeLeft(seconds) {
      this.left.textContent = seconds === null ? "" : seconds > 0 ? `${clock(seconds)} left` : "time is over";
      this.left.classList.toggle("soon", seconds !== null && seconds < 60);
      this.left.title = "How long this pair is held for you; it is held anew while you work on it";
    }

    /** A message that stays, with buttons; nothing: take it away. */
    tell(text = "", kind = "warn", ...buttons) {
      this.notice.replaceChildren(...(text ? [el("div", { class: `al-note ${kind}` }, el("span", {}, text), buttons)] : []));
    }

    /** Ask why a pair is skipped; calls `done(reason, note)`. */
    askReason(reasons, chosen, done) {
      const note = el("textarea", { class: "al-input", rows: 2, maxlength: 1000, name: "note" });
      const problem = el("p", { class: "al-note bad", role: "alert", hidden: true });
      const radios = Object.entries(reasons).map(([code, text], k) => {
        const radio = el("input", { type: "radio", name: "reason", value: code });
        radio.checked = code === chosen;
        return el("label", { class: "reason" }, radio, el("span", {}, align.sentence(text)), key(String(k + 1)));
      });
      const form = el("form", { method: "dialog" }, el("h1", {}, "Why skip this pair?"),
        el("p", { class: "al-hint" }, "It goes to somebody else, and does not come back to you."),
        el("div", { role: "radiogroup", "aria-label": "Reason" }, radios),
        el("label", { class: "al-field" }, el("span", {}, "Note"), note, el("span", { class: "al-hint" }, "Needed for “something else”.")), problem,
        el("div", { class: "row" }, button("Keep working", "Esc", "Close without skipping", () => view.close()), el("button", { class: "al-button primary", type: "submit" }, "Skip", key("Enter"))));
      const view = align.dialog("reasons", form);
      const fail = (text) => { problem.textContent = text; problem.hidden = false; };
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        const reason = form.elements.reason.value;
        if (!reason) return fail("Choose a reason first.");
        if (reason === "other" && !note.value.trim()) { note.focus(); return fail("Say in a few words what it is."); }
        view.close();
        done(reason, note.value.trim());
      });
      note.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        form.requestSubmit();
      });
      view.addEventListener("keydown", (event) => {
        const radio = view.querySelectorAll("input[type=radio]")[Number(event.key) - 1];
        if (event.target === note || !radio || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        radio.checked = true;
        (radio.value === "other" ? note : radio).focus();
      });
      (view.querySelector("input:checked") ?? view.querySelector("input")).focus();
    }
  }

  align.View = View;
})();
