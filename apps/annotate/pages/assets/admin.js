// The admin page's frame: who is signed in, the tabs, and what is fetched when.
(() => {
  "use strict";
  const { el } = admin;
  const ORDER = ["overview", "labelers", "agreement", "bias", "disagreements", "export"];
  /** name -> {section, panel, body, told, at, loading} */
  const places = new Map();

  // --- asking the server ---

  /** Once more where the network or the store did not answer; a refusal is an answer. */
  admin.twice = async (ask) => {
    try {
      return await ask();
    } catch (error) {
      if (error.status !== 0 && error.status !== 503) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000));
      return ask();
    }
  };

  /** Do something for a form or dialog, which waits meanwhile; tells what goes wrong. */
  admin.doing = async (where, work) => {
    if (admin.busy) return;
    admin.busy = true;
    where.setAttribute("aria-busy", "true");
    try {
      await work();
    } catch (error) {
      if (!(await turned(error))) align.toast(align.sentence(error.message), "bad");
    } finally {
      admin.busy = false;
      where.removeAttribute("aria-busy");
    }
  };

  /** Whether somebody must sign in first (again), or may not be here; the page then says so. */
  async function turned(error) {
    if (error.status === 401) {
      start("Your session is over. Sign in again.");
      return true;
    }
    if (error.status === 403 && (await align.session())?.user.role !== "admin") {
      start();
      return true;
    }
    return false;
  }

  // --- sections ---

  async function load(name) {
    const one = places.get(name);
    if (one.loading) return;
    one.loading = true;
    one.panel.setAttribute("aria-busy", "true");
    try {
      const found = await one.section.load();
      if (!one.panel.isConnected) return;
      if (one.fault) one.fault.remove();
      one.fault = null;
      one.section.draw(one.body, found);
      one.at = Date.now();
      one.told.replaceChildren(`Updated ${new Date().toLocaleTimeString("en-GB")}`);
    } catch (error) {
      if (one.panel.isConnected && !(await turned(error))) failed(one, name, error);
    } finally {
      one.loading = false;
      one.panel.removeAttribute("aria-busy");
    }
  }

  function failed(one, name, error) {
    const again = el("button", { type: "button", class: "al-button", onclick: () => load(name) }, "Try again");
    const fault = el("div", { class: "al-note bad ad-fault", role: "alert" }, el("span", {}, align.sentence(error.message)), again);
    if (one.fault) one.fault.replaceWith(fault);
    else one.body.before(fault);
    one.fault = fault;
    if (!one.at) one.body.replaceChildren();
  }

  admin.refresh = () => load(admin.shown);

  function section(one) {
    const told = el("span", { class: "ad-soft" });
    const again = el("button", { type: "button", class: "al-button", onclick: () => load(one.name) }, "Refresh");
    const body = el("div", { class: "ad-stack" }, el("div", { class: "ad-wait", role: "status" }, "Loading…"));
    const panel = el("section", { id: `ad-${one.name}`, role: "tabpanel", "aria-labelledby": `ad-tab-${one.name}`, tabindex: "-1" },
      el("div", { class: "ad-bar" }, el("h2", {}, one.title), told, again), body);
    places.set(one.name, { section: one, panel, body, told, at: 0, loading: false, fault: null });
    return panel;
  }

  function show(name, focus = false) {
    admin.shown = name;
    document.title = `${places.get(name).section.title} · ${align.title} · admin`;
    for (const [other, { panel }] of places) {
      const tab = document.getElementById(`ad-tab-${other}`);
      panel.hidden = other !== name;
      tab.setAttribute("aria-selected", String(other === name));
      tab.tabIndex = other === name ? 0 : -1;
      if (other === name) {
        if (focus) tab.focus();
        tab.scrollIntoView({ block: "nearest", inline: "nearest" });
      }
    }
    load(name);
  }

  const asked = () => {
    const name = location.hash.slice(1);
    return places.has(name) ? name : ORDER[0];
  };

  function tabs() {
    const list = el("div", { class: "ad-tabs", role: "tablist", "aria-label": "Sections" });
    for (const name of ORDER) {
      const { title } = places.get(name).section;
      list.append(el("a", { role: "tab", id: `ad-tab-${name}`, href: `#${name}`, "aria-controls": `ad-${name}` }, title));
    }
    list.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const next = ORDER[(ORDER.indexOf(admin.shown) + by + ORDER.length) % ORDER.length];
      history.replaceState(null, "", `#${next}`);
      show(next, true);
    });
    return list;
  }

  // --- who is here ---

  const leave = () => admin.doing(admin.root, async () => {
    await align.signOut();
    await start();
  });

  function frame(inside, who) {
    const out = el("button", { type: "button", class: "al-button quiet", onclick: leave }, "Sign out");
    const head = el("header", { class: "ad-head" },
      el("div", { class: "ad-brand" }, el("b", { title: align.title }, align.title), el("span", {}, "annotation · admin")),
      el("div", { class: "ad-who" }, el("span", { class: "ad-soft ad-user" }, who.name), el("a", { class: "al-button quiet", href: "/" }, "Label"), align.themeButton(), out));
    admin.root.replaceChildren(head, inside);
  }

  function refuse(who) {
    const other = el("button", { type: "button", class: "al-button", onclick: leave }, "Sign in as somebody else");
    frame(el("main", { class: "ad-main" }, el("div", { class: "ad-empty", role: "alert" }, el("h2", {}, "This page is for admins"),
      el("p", {}, `You are signed in as ${who.name}, a labeler. Your pairs are on the other page.`),
      el("div", { class: "ad-decisions" }, el("a", { class: "al-button primary", href: "/" }, "To the pairs"), other))), who);
  }

  async function start(said = "") {
    places.clear();
    admin.shown = null;
    try {
      admin.session = await admin.twice(() => align.session());
    } catch (error) {
      const again = el("button", { type: "button", class: "al-button", onclick: () => start(said) }, "Try again");
      admin.root.replaceChildren(el("main", { class: "ad-main" }, el("div", { class: "al-note bad ad-fault", role: "alert" }, el("span", {}, align.sentence(error.message)), again)));
      return;
    }
    if (admin.session === null || location.hash.startsWith("#join=")) {
      align.signIn(admin.root, () => start(), said);
      return;
    }
    if (admin.session.user.role !== "admin") {
      refuse(admin.session.user);
      return;
    }
    const by = new Map(admin.sections.map((one) => [one.name, one]));
    const panels = ORDER.map((name) => section(by.get(name)));
    const main = el("main", { class: "ad-main" }, panels);
    frame(el("div", {}, tabs(), main), admin.session.user);
    show(asked());
  }

  addEventListener("hashchange", () => {
    if (admin.shown !== null && asked() !== admin.shown) show(asked());
  });

  // only what is looked at is kept fresh
  setInterval(() => {
    const one = places.get(admin.shown);
    if (one?.section.every && !document.hidden && Date.now() - one.at > 1000 * one.section.every) load(admin.shown);
  }, 5000);

  align.ready("align-admin", (root) => {
    admin.root = root;
    start();
  });
})();
