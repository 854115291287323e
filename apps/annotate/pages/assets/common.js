// The global `align`: requests, the session, sign-in, elements, messages and colours, for all pages.
(() => {
  "use strict";
  /** What a request waits for an answer, in ms. */
  const PATIENCE = 20000;
  /** What the project is called. */
  const title = document.querySelector("meta[name=align-title]").content;
  let csrf = "";
  let known = null;

  /** An element; children that are no nodes become text, so nothing is ever read as HTML. */
  function el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on") && typeof value === "function") made.addEventListener(name.slice(2), value);
      else if (name === "class") made.className = value;
      else if (name === "value") made.value = value;
      else made.setAttribute(name, value === true ? "" : String(value));
    }
    const nodes = children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false);
    made.append(...nodes.map((one) => (one instanceof Node ? one : document.createTextNode(String(one)))));
    return made;
  }

  class ApiError extends Error {
    constructor(code, status, message, wait = null) {
      super(message);
      this.name = "ApiError";
      this.code = code;
      this.status = status;
      this.wait = wait;
    }
  }

  async function send(method, path, body) {
    const headers = { Accept: "application/json" };
    const options = { method, headers, credentials: "same-origin", cache: "no-store" };
    if (method !== "GET") {
      headers["Content-Type"] = "application/json";
      headers["X-CSRF-Token"] = csrf;
      options.body = JSON.stringify(body ?? {});
    }
    const stop = new AbortController();
    const timer = setTimeout(() => stop.abort(), PATIENCE);
    let response, data;
    try {
      response = await fetch(path.startsWith("/") ? path : `/api/${path}`, { ...options, signal: stop.signal });
      data = await response.json().catch((error) => {
        if (error instanceof SyntaxError) return null;
        throw error;
      });
    } catch (error) {
      throw new ApiError("network", 0, "the server cannot be reached; check the connection");
    } finally {
      clearTimeout(timer);
    }
    if (response.ok && data !== null) return data;
    const told = data?.error ?? {};
    const wait = Number(response.headers.get("Retry-After")) || null;
    throw new ApiError(told.code ?? "unknown", response.status, told.message ?? `the server answered ${response.status}`, wait);
  }

  /** One request; `path` is relative to /api/, or begins with "/". A refusal rejects with code, status, message. */
  async function api(method, path, body) {
    try {
      return await send(method, path, body);
    } catch (error) {
      // another tab may have signed in anew: the cookie is shared, this token is then an old one
      if (method === "GET" || error.status !== 403 || known === null) throw error;
      const before = [known.user.name, csrf];
      const now = await session();
      if (now === null) throw new ApiError("unauthorized", 401, "you are signed out");
      if (now.user.name !== before[0]) {
        location.reload();
        throw new ApiError("unauthorized", 401, "somebody else has signed in here");
      }
      if (csrf === before[1]) throw error;
      return send(method, path, body);
    }
  }

  function keep(found) {
    known = found;
    csrf = found?.csrf ?? "";
    return found;
  }

  /** {user, csrf, expires}, or null where nobody is signed in. */
  async function session() {
    try {
      return keep(await send("GET", "session"));
    } catch (error) {
      if (error.status === 401) return keep(null);
      throw error;
    }
  }

  async function signOut() {
    try {
      await api("POST", "logout");
    } catch (error) {
      if (error.status !== 401) throw error;
    }
    keep(null);
  }

  /** A request of a page that is being closed: nobody waits for its answer. */
  function farewell(path) {
    const headers = { "Content-Type": "application/json", "X-CSRF-Token": csrf };
    fetch(`/api/${path}`, { method: "POST", headers, body: "{}", keepalive: true }).catch(() => {});
  }

  // --- messages ---

  let toasts = null;
  /** A message that goes by itself; kind: "", "good", "warn" or "bad". */
  function toast(text, kind = "") {
    if (toasts === null || !toasts.isConnected) {
      toasts = el("div", { class: "al-toasts", role: "status", "aria-live": "polite", popover: "manual" });
      document.body.append(toasts);
    }
    const close = el("button", { type: "button", "aria-label": "Close this message" }, "×");
    const one = el("div", { class: `al-note ${kind}` }, el("span", {}, text), close);
    const timer = setTimeout(() => one.remove(), kind === "bad" ? 12000 : 5000);
    close.addEventListener("click", () => { clearTimeout(timer); one.remove(); });
    toasts.append(one);
    while (toasts.children.length > 3) toasts.firstChild.remove();
    // above a dialog that was opened meanwhile
    toasts.hidePopover?.();
    toasts.showPopover?.();
  }

  /** A modal dialog of the class al-dialog and `kind`, open; it goes when it is closed. */
  function dialog(kind, ...children) {
    const made = el("dialog", { class: `al-dialog ${kind}` }, children);
    made.addEventListener("close", () => made.remove());
    made.addEventListener("click", (event) => { if (event.target === made && kind !== "must") made.close(); });
    const named = made.querySelector("h1, h2, h3");
    if (named !== null) {
      named.id = `al-${kind}-title`;
      made.setAttribute("aria-labelledby", named.id);
    }
    (document.querySelector(".align-root") ?? document.body).append(made);
    made.showModal();
    return made;
  }

  // --- signing in ---

  /** Draw the form into `container`; `done(session)` is called once somebody is in. `said`: why it is shown. */
  function signIn(container, done, said = "") {
    const code = location.hash.startsWith("#join=") ? location.hash.slice(6) : null;
    const joins = code !== null;
    const problem = el("div", { class: "al-note bad", role: "alert", hidden: true });
    const name = el("input", {
      class: "al-input", name: "username", autocomplete: "username", required: true, maxlength: 40, autocapitalize: "none", spellcheck: "false",
    });
    const word = el("input", {
      class: "al-input", name: "password", type: "password", required: true, minlength: joins ? 8 : null,
      autocomplete: joins ? "new-password" : "current-password",
    });
    const button = el("button", { class: "al-button primary", type: "submit" }, joins ? "Make my account" : "Sign in");
    const field = (label, input, hint) =>
      el("label", { class: "al-field" }, el("span", {}, label), input, hint && el("span", { class: "al-hint" }, hint));

    async function enter(event) {
      event.preventDefault();
      problem.hidden = true;
      button.disabled = true;
      const body = { name: name.value.trim(), password: word.value };
      try {
        const found = keep(await send("POST", joins ? "join" : "login", joins ? { code, ...body } : body));
        if (joins) history.replaceState(null, "", location.pathname + location.search);
        form.remove();
        done(found);
      } catch (error) {
        problem.textContent = sentence(error.message);
        problem.hidden = false;
        button.disabled = false;
        (error.status === 401 ? word : name).focus();
      }
    }

    const card = el("form", { class: "al-card", onsubmit: enter },
      el("p", { class: "al-hint al-project" }, title),
      el("h1", {}, joins ? "Welcome" : "Sign in"),
      el("p", { class: "al-hint" }, joins
        ? "You were invited. Choose a name and a password; you sign in with them from now on."
        : "With the name and password of your account. New here? Use the link of your invitation."),
      said && el("div", { class: "al-note warn" }, said),
      problem,
      field("Name", name, joins && "1 to 40 letters, digits or . _ @ + -"),
      field("Password", word, joins && "8 characters or more"),
      button,
      joins && el("p", { class: "al-hint", style: "margin: .9rem 0 0" }, "You have an account already? ",
        el("a", { href: location.pathname, onclick: (event) => {
          event.preventDefault();
          history.replaceState(null, "", location.pathname + location.search);
          form.remove();
          signIn(container, done, said);
        } }, "Sign in")));
    const form = el("main", { class: "al-sign" }, card);
    container.replaceChildren(form);
    name.focus();
  }

  /** Spans in order, those that touch or overlap as one. */
  function joined(spans) {
    const made = [];
    for (const [start, end] of [...spans].sort((a, b) => a[0] - b[0])) {
      const last = made.at(-1);
      if (last && start <= last[1]) last[1] = Math.max(last[1], end);
      else made.push([start, end]);
    }
    return made;
  }

  /** A refusal's message as a sentence. */
  function sentence(text) {
    const made = text.charAt(0).toUpperCase() + text.slice(1);
    return /[.!?]$/.test(made) ? made : `${made}.`;
  }

  // --- colours ---

  const system = matchMedia("(prefers-color-scheme: dark)");
  function chosen() {
    try { return localStorage.getItem("align.theme"); } catch { return null; }
  }
  function isDark() {
    const said = chosen();
    return said === null ? system.matches : said === "dark";
  }
  function paint() {
    document.documentElement.dataset.theme = isDark() ? "dark" : "light";
    document.body?.classList.toggle("dark", isDark());
    document.dispatchEvent(new Event("align:theme"));
  }
  function toggleTheme() {
    const next = isDark() ? "light" : "dark";
    try { localStorage.setItem("align.theme", next); } catch { /* a browser that keeps nothing */ }
    paint();
  }
  /** A button that changes between light and dark. */
  function themeButton() {
    const button = el("button", { class: "al-button quiet", type: "button", onclick: toggleTheme });
    const name = () => {
      const label = isDark() ? "Light colours" : "Dark colours";
      button.textContent = isDark() ? "☀" : "☾";
      button.title = label;
      button.setAttribute("aria-label", label);
    };
    document.addEventListener("align:theme", name);
    name();
    return button;
  }
  system.addEventListener("change", paint);
  paint();

  /** Call `fill(element)` once the page has the element of that id. */
  function ready(id, fill) {
    const look = () => {
      const found = document.getElementById(id);
      if (found === null) return false;
      paint();
      fill(found);
      return true;
    };
    if (look()) return;
    const watch = new MutationObserver(() => { if (look()) watch.disconnect(); });
    watch.observe(document.documentElement, { childList: true, subtree: true });
  }

  window.align = { title, api, farewell, session, signOut, signIn, el, toast, dialog, themeButton, ready, sentence, joined };
})();
