// Filters of a gallery: what matches stays. Without scripts the page shows everything.
// A page that reloads itself while it is read keeps what was chosen, where the browser lets a file do so.
const remember = (key, values) => {
  try {
    if (values) sessionStorage.setItem(key, JSON.stringify(values));
    return JSON.parse(sessionStorage.getItem(key)) || [];
  } catch {
    return [];
  }
};
for (const [place, gallery] of document.querySelectorAll("section.gallery").entries()) {
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
  const key = `filters of ${location.pathname}, ${place}`;
  const controls = [...form.querySelectorAll("select, input")];
  remember(key).forEach((value, k) => {
    const control = controls[k];
    if (control && [...(control.options || [{ value }])].some((option) => option.value === value)) control.value = value;
  });
  form.addEventListener("input", () => {
    remember(key, controls.map((control) => control.value));
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  show();
}
