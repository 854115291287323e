// The picture alone, to look at closely: wheel, pinch, drag, double click, keys.
(() => {
  "use strict";
  const { el } = align;
  const MOST = 12;

  /** Open the zoom view over a picture that has been loaded. */
  align.zoom = (picture) => {
    let scale = 1, x = 0, y = 0;
    const fingers = new Map();
    const image = el("img", { src: picture.src, alt: picture.alt, draggable: "false" });
    const level = el("output", { class: "level", "aria-live": "polite" });
    const stage = el("div", { class: "stage", tabindex: -1 }, image);
    const tool = (label, text, work) => el("button", { class: "al-button", type: "button", title: label, "aria-label": label, onclick: work }, text);

    function show() {
      const box = stage.getBoundingClientRect();
      // no further than the picture's middle
      const [wide, high] = [image.clientWidth * scale / 2, image.clientHeight * scale / 2];
      x = Math.max(-wide, Math.min(wide, x));
      y = Math.max(-high, Math.min(high, y));
      if (scale === 1 && wide * 2 <= box.width && high * 2 <= box.height) [x, y] = [0, 0];
      image.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
      level.textContent = `${Math.round(scale * 100)} %`;
      stage.classList.toggle("moves", scale > 1);
    }

    /** Zoom so that what is at (px, py), measured from the stage's middle, stays there. */
    function to(next, px = 0, py = 0) {
      next = Math.max(1, Math.min(MOST, next));
      x = px - (px - x) * next / scale;
      y = py - (py - y) * next / scale;
      scale = next;
      show();
    }

    function fromMiddle(event) {
      const box = stage.getBoundingClientRect();
      return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    }

    const spread = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]);
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      to(scale * Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0018)), ...fromMiddle(event));
    }, { passive: false });
    stage.addEventListener("dblclick", (event) => to(scale > 1 ? 1 : 3, ...fromMiddle(event)));
    stage.addEventListener("pointerdown", (event) => {
      stage.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, fromMiddle(event));
    });
    stage.addEventListener("pointermove", (event) => {
      if (!fingers.has(event.pointerId)) return;
      const before = [...fingers.values()];
      const here = fromMiddle(event), [px, py] = fingers.get(event.pointerId);
      fingers.set(event.pointerId, here);
      if (fingers.size === 1) {
        x += here[0] - px;
        y += here[1] - py;
        show();
      } else if (fingers.size === 2) {
        const now = [...fingers.values()];
        to(scale * spread(now) / Math.max(1, spread(before)), (now[0][0] + now[1][0]) / 2, (now[0][1] + now[1][1]) / 2);
      }
    });
    for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, (event) => fingers.delete(event.pointerId));

    const keys = {
      "+": () => to(scale * 1.4), "=": () => to(scale * 1.4), "-": () => to(scale / 1.4), 0: () => to(1),
      ArrowLeft: () => { x += 60; show(); }, ArrowRight: () => { x -= 60; show(); },
      ArrowUp: () => { y += 60; show(); }, ArrowDown: () => { y -= 60; show(); }, z: () => view.close(),
    };
    const tools = el("div", { class: "tools" },
      tool("Smaller (-)", "−", keys["-"]), level, tool("Larger (+)", "+", keys["+"]),
      tool("Whole picture (0)", "Fit", keys[0]), tool("Close (Esc)", "Close", () => view.close()));
    const view = align.dialog("zoom", el("h2", { class: "al-hidden" }, "The picture, enlarged"), stage, tools);
    view.addEventListener("keydown", (event) => {
      const work = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (work === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      work();
    });
    image.addEventListener("load", show);
    show();
    stage.focus();
  };
})();
