// Filters of a gallery: what matches stays. Without scripts the page shows everything.
for (const gallery of document.querySelectorAll("section.gallery")) {
  const form = gallery.querySelector("form");
  if (!form) continue;
  const items = [...gallery.querySelectorAll("figure")];
  const texts = items.map((item) => item.textContent.toLowerCase());
  const show = () => {
    const choices = [...form.querySelectorAll("select")].map((select) => select.value);
    const wanted = form.querySelector("input").value.trim().toLowerCase();
    let shown = 0;
    items.forEach((item, k) => {
      const tags = JSON.parse(item.dataset.tags);
      const fits = choices.every((choice, i) => !choice || tags[i] === choice) && texts[k].includes(wanted);
      item.hidden = !fits;
      shown += fits;
    });
    form.querySelector("output").textContent = `${shown} of ${items.length}`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  show();
}
