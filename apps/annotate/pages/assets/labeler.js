// The labeler's session: from sign-in to the last pair. Requests are sent until they are acknowledged.
(() => {
  "use strict";
  const { api } = align;
  const token = () => crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");
  /** What may pass by itself: no answer, or a server that says so. */
  const passing = (error) => [0, 429, 502, 503, 504].includes(error.status);
  /** seconds: the longest time of a vote that the API takes */
  const LONGEST = 7 * 86400;

  class Labeler {
    constructor(root) {
      this.root = root;
      this.drafts = new Map();
      this.forget();
      align.labelerEvents(this);
    }

    forget() {
      Object.assign(this, { task: null, passages: null, choice: { hallucination: null, helpfulness: null }, busy: false, counts: null, again: null });
    }

    // --- coming and going ---

    async begin() {
      try {
        const session = await align.session();
        if (session === null || location.hash.startsWith("#join=")) this.signIn();
        else await this.enter(session);
      } catch (error) {
        this.root.textContent = "";
        this.root.append(align.el("main", { class: "al-sign" }, align.el("div", { class: "al-card" },
          align.el("h1", {}, "The server cannot be reached"), align.el("p", { class: "al-hint" }, "Check the connection."),
          align.el("button", { class: "al-button primary", type: "button", onclick: () => location.reload() }, "Try again"))));
      }
    }

    signIn(said = "") {
      this.forget();
      this.view = null;
      align.signIn(this.root, (session) => this.enter(session), said);
    }

    async enter(session) {
      this.session = session;
      this.view = new align.View(this.root, this.actions(), session);
      this.view.screen("One moment", "");
      try {
        [this.guide, this.reasons] = await Promise.all([this.patiently("GET", "guide"), this.patiently("GET", "reasons"), this.count()]);
      } catch (error) {
        this.stuck(error);
        return;
      }
      this.loadDraft();
      const seen = `align.guide.${session.user.name}`;
      if (this.kept(seen) === this.guide.version) this.next();
      else align.showGuide(this.guide, true, this.test(), () => { this.kept(seen, this.guide.version); this.next(); });
    }

    /** What was chosen and marked outlives a reload of the tab, if the same pair comes again. */
    saveDraft() {
      const draft = { name: this.session.user.name, pair: this.task.pair, choice: this.choice, marks: this.marks() };
      try {
        sessionStorage.setItem("align.draft", JSON.stringify(draft));
      } catch { /* a browser that keeps nothing */ }
    }

    loadDraft() {
      try {
        const draft = JSON.parse(sessionStorage.getItem("align.draft"));
        sessionStorage.removeItem("align.draft");
        if (draft?.name === this.session.user.name) this.drafts.set(draft.pair, draft);
      } catch { /* nothing was kept */ }
    }

    kept(name, value) {
      try {
        if (value !== undefined) localStorage.setItem(name, value);
        return localStorage.getItem(name);
      } catch {
        return null; // a browser that keeps nothing: instructions come again
      }
    }

    async leave() {
      if (this.busy) return align.toast("Your answer is not kept yet; wait a moment.", "warn");
      try {
        if (this.task) await api("POST", "release");
        await align.signOut();
      } catch (error) {
        if (error.status !== 401) return align.toast(align.sentence(error.message), "bad");
      }
      this.drafts.clear();
      this.signIn();
      align.toast("You are signed out.", "good");
    }

    /** Sign in over the page, which stays as it is. */
    signInAgain() {
      if (this.again === null) {
        this.again = new Promise((resolve) => {
          const place = align.el("div", {});
          const view = align.dialog("must", place);
          view.addEventListener("cancel", (event) => event.preventDefault());
          // however it was closed: a session that is still over asks again
          view.addEventListener("close", () => { this.again = null; resolve(); });
          align.signIn(place, (session) => {
            if (session.user.name !== this.session.user.name) {
              this.busy = false; // no warning: it was not this person's
              return location.reload();
            }
            view.close();
          }, `The session of ${this.session.user.name} is over. Sign in again; what you chose and marked is still here.`);
        });
      }
      return this.again;
    }

    // --- requests ---

    /** Send until there is an answer; the token in the body makes a repeated request count once. */
    async patiently(method, path, body) {
      for (let tries = 0; ; tries++) {
        try {
          const found = await api(method, path, body);
          if (tries > 0) this.view.tell();
          return found;
        } catch (error) {
          if (error.status === 401) await this.signInAgain();
          else if (passing(error)) await this.pause(error, error.wait ?? Math.min(15, 2 ** tries), path);
          else {
            this.view.tell();
            throw error;
          }
        }
      }
    }

    pause(error, seconds, path) {
      const what = { vote: "Not kept yet", skip: "Not kept yet", undo: "Not taken back yet" }[path] ?? "Waiting";
      return new Promise((resolve) => {
        const end = () => { clearTimeout(timer); removeEventListener("online", end); resolve(); };
        const timer = setTimeout(end, seconds * 1000);
        addEventListener("online", end);
        const now = align.el("button", { class: "al-button", type: "button", onclick: end }, "Try now");
        this.view.tell(`${what}: ${error.message}. It is sent again by itself.`, "bad", now);
      });
    }

    /** Do one thing at a time; a refusal is told. */
    async doing(work, refused = (error) => this.stuck(error)) {
      if (this.busy) return;
      this.setBusy(true);
      try {
        await work();
      } catch (error) {
        if (!("code" in error)) throw error;
        this.setBusy(false);
        refused(error);
      } finally {
        this.setBusy(false);
      }
    }

    setBusy(busy) {
      this.busy = busy;
      if (this.task && this.view) this.view.chosen(this.choice, busy);
    }

    stuck(error) {
      this.view.screen("This did not work", align.sentence(error.message),
        align.el("button", { class: "al-button primary", type: "button", onclick: () => location.reload() }, "Load the page again"));
      this.task = null;
    }

    // --- pairs ---

    next() {
      return this.doing(async () => this.show(await this.patiently("POST", "next")));
    }

    show(found) {
      this.setTask(null);
      this.view.tell();
      if (found.kind === "none") this.nothing(found);
      else this.setTask(found);
    }

    setTask(task) {
      if (this.task) this.drafts.set(this.task.pair, { choice: this.choice, marks: this.marks() });
      clearTimeout(this.waiting);
      this.task = task;
      this.choice = { hallucination: null, helpfulness: null };
      if (task === null) return;
      this.passages = Object.fromEntries(task.responses.map((shown) => [shown.side, new align.Passage(shown, () => this.touched())]));
      const draft = task.before ? { choice: { hallucination: task.before.hallucination, helpfulness: task.before.helpfulness }, marks: task.before.marks } : this.drafts.get(task.pair);
      this.drafts.delete(task.pair);
      this.lease(task.seconds_left, true);
      this.active = 0;
      this.since = document.hidden ? null : performance.now();
      this.view.task(task, this.passages, task.has_image ? `/api/image/${encodeURIComponent(task.pair)}` : null);
      if (draft) {
        this.choice = draft.choice;
        for (const [side, marks] of Object.entries(draft.marks)) this.passages[side]?.set(marks);
      }
      this.view.chosen(this.choice, false);
      this.showCounts();
      this.view.say(task.of === null ? "The next pair." : `Item ${task.number} of ${task.of} of the test.`);
    }

    nothing({ reason, wait }) {
      const undo = this.undoable() && align.el("button", { class: "al-button", type: "button", onclick: () => this.undo() }, "Undo my last answer");
      const given = `You have given ${this.counts?.votes ?? "your"} votes.`;
      if (reason === "failed") {
        this.view.screen("The test was not passed", "Thank you for your time. Fewer of your answers agreed with ours than this project needs. If you would like to try once more, ask whoever invited you.");
      } else if (reason === "limit") this.view.screen("You have reached your number", `${given} That is as many as this project wants of one person. Thank you!`, undo);
      else if (reason === "done") this.view.screen("All done", `${given} There is no pair left for you. Thank you!`, undo);
      else {
        this.view.screen("Nothing free right now", `Others are at the pairs that are left. The page looks again by itself in ${Math.ceil(Math.min(wait, 30))} s.`,
          align.el("button", { class: "al-button primary", type: "button", onclick: () => this.next() }, "Look now"), undo);
        this.waiting = setTimeout(() => this.next(), Math.min(wait, 30) * 1000);
      }
      this.count();
    }

    passed(task) {
      this.setTask(null);
      this.view.screen("You passed the test", "From here on it is the real work. You can stop at any time; every answer is kept at once.",
        align.el("button", { class: "al-button primary", type: "button", onclick: () => this.show(task) }, "Start"));
    }

    marks() {
      return Object.fromEntries(Object.values(this.passages).filter((one) => one.marks.length).map((one) => [one.side, one.marks]));
    }

    /** Whether somebody can see the page: its time counts then. */
    looking(seen) {
      if (!this.task) return;
      if (!seen && this.since !== null) this.active += performance.now() - this.since;
      this.since = seen ? performance.now() : null;
    }

    seconds() {
      const seconds = (this.active + (this.since === null ? 0 : performance.now() - this.since)) / 1000;
      return Math.min(LONGEST, Math.round(seconds * 1000) / 1000);
    }

    choose(group, value) {
      if (this.busy || !this.task) return;
      if (group === "hallucination") this.choice = { hallucination: value, helpfulness: value === this.choice.hallucination ? this.choice.helpfulness : null };
      else this.choice = { hallucination: "tie", helpfulness: value };
      this.view.chosen(this.choice, false);
      this.view.say(value === "tie" ? "Tie. Which is more helpful, or less incorrect?" : `${value} chosen. Enter submits.`);
    }

    /** One choice back. */
    back() {
      const { hallucination, helpfulness } = this.choice;
      this.choice = { hallucination: helpfulness === null ? null : hallucination, helpfulness: null };
      this.view.chosen(this.choice, this.busy);
    }

    submit() {
      const { hallucination, helpfulness } = this.choice;
      if (!this.task || this.busy) return;
      if (hallucination === null || (hallucination === "tie" && helpfulness === null)) {
        return align.toast(hallucination === null ? "Choose A, B or tie first." : "After a tie, choose the better one: A or B.", "warn");
      }
      const body = { pair: this.task.pair, token: token(), hallucination, marks: this.marks(), seconds: this.seconds(), next: true };
      if (helpfulness !== null) body.helpfulness = helpfulness;
      return this.doing(async () => {
        const { vote, next } = await this.patiently("POST", "vote", body);
        this.drafts.delete(body.pair);
        this.done("votes", next);
        if (vote.qualification === "passed" && next.kind === "task") return this.passed(next);
        this.show(next);
        if (vote.qualification === "passed") align.toast("You passed the test.", "good");
      }, (error) => this.lost(error));
    }

    /** What was shown is settled: no draft of it is kept. */
    done(what, next) {
      const test = this.task.stage === "qualification";
      this.task = null;
      if (this.counts && !test) this.counts[what] += 1;
      if (Date.now() - this.counted > 20000 || test || next?.kind === "none") this.count();
    }

    skip(reason = null) {
      if (!this.task || this.busy) return;
      if (this.task.stage === "qualification") return align.toast("The items of the test cannot be skipped.", "warn");
      this.view.askReason(this.reasons, reason, (code, note) => this.doing(async () => {
        await this.patiently("POST", "skip", { pair: this.task.pair, token: token(), reason: code, note });
        this.done("skips");
        this.show(await this.patiently("POST", "next"));
        align.toast("Skipped. U brings it back.");
      }, (error) => this.lost(error)));
    }

    undo() {
      return this.doing(async () => {
        const found = await this.patiently("POST", "undo", { token: token() });
        this.show(found);
        this.view.tell("Your last answer is taken back. Change it, and submit it again.", "good");
        this.count();
      }, (error) => align.toast(align.sentence(error.message), "warn"));
    }

    /** A pair that is not this labeler's any more, or an answer that was turned down. */
    lost(error) {
      if (![404, 409].includes(error.status)) return align.toast(align.sentence(error.message), "bad");
      this.task = null;
      align.toast(`${align.sentence(error.message)} Here is the next one.`, "bad");
      this.next();
    }

    // --- time ---

    lease(seconds, fresh) {
      this.until = Date.now() + seconds * 1000;
      this.renewed = Date.now();
      this.over = false;
      if (fresh || seconds * 1000 > this.full) this.full = seconds * 1000;
    }

    tick() {
      if (!this.view || !this.task) return;
      const left = (this.until - Date.now()) / 1000;
      this.view.timeLeft(left);
      if (left > 0 || this.over) return;
      this.over = true;
      this.view.tell("The time for this pair is over. Your answer is still taken, unless somebody else has been given the pair.");
    }

    /** Somebody works: hold the pair anew, now and then. */
    async touched() {
      const every = Math.min(30000, (this.full ?? 0) / 3);
      if (!this.task || this.busy || this.again || Date.now() - this.renewed < every) return;
      this.renewed = Date.now();
      const pair = this.task.pair;
      try {
        const found = await api("POST", "renew", { pair });
        if (this.task?.pair === pair) this.lease(found.seconds_left, false);
      } catch (error) {
        if (this.task?.pair !== pair || this.busy) return;
        if (error.status === 401) await this.signInAgain();
        else if (error.status === 409) this.lost(error);
      }
    }

    /** Whether there is an answer to take back: none of a test that is over, which holds for good. */
    undoable() {
      if (this.task?.stage === "qualification" && this.task.number > 1) return true;
      return this.counts !== null && this.counts.votes + this.counts.skips > 0;
    }

    /** The test that is still to be taken: {items, pass}; null where there is none. */
    test() {
      const { counts } = this;
      return counts?.test_items && counts.qualification === null ? { items: counts.test_items, pass: counts.test_pass } : null;
    }

    async count() {
      this.counted = Date.now();
      try {
        this.counts = await api("GET", "progress");
      } catch {
        return; // a figure alone; the next vote asks again
      }
      this.showCounts();
    }

    showCounts() {
      const { counts, task, view } = this;
      view?.canUndo(this.undoable());
      if (!counts || !view) return;
      if (task?.stage === "qualification") return view.progress((task.number - 1) / task.of, `test: item ${task.number} of ${task.of}`);
      const mine = `${counts.votes} ${counts.limit === null ? (counts.votes === 1 ? "vote" : "votes") : `of ${counts.limit} votes`}`;
      const share = counts.limit === null ? counts.pairs_done / Math.max(1, counts.pairs) : counts.votes / Math.max(1, counts.limit);
      view.progress(Math.min(1, share), mine, ` · project: ${counts.pairs_done} of ${counts.pairs} pairs`);
    }

    // --- what the browser tells ---

    actions() {
      return {
        choose: (group, value) => this.choose(group, value), submit: () => this.submit(), undo: () => this.undo(), skip: (reason) => this.skip(reason),
        mark: () => this.passages?.A.focus(), markSelected: () => this.marker.markTouched(), guide: () => this.guide && align.showGuide(this.guide, false, this.test()),
        zoom: () => this.view.image?.complete && this.view.image.naturalWidth > 0 && align.zoom(this.view.image), leave: () => this.leave(), back: () => this.back(),
      };
    }
  }

  align.ready("align-labeler", (root) => new Labeler(root).begin());
})();
