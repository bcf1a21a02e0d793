// Draws the charts and filters the answers. Without it the page still shows every number and every answer.
"use strict";

const { config, specs } = JSON.parse(document.getElementById("charts").textContent);
for (const place of document.querySelectorAll("[data-chart]")) {
  // ast: expressions are interpreted, because the page's policy forbids eval
  const options = { config, actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: { disableDefaultStyle: false } };
  // Vega puts its description in the place of the label that the page has written
  const spec = { ...specs[place.dataset.chart], description: place.getAttribute("aria-label") };
  vegaEmbed(place, spec, options).catch((problem) => console.error(problem));
}

const PAGE = 12; // answers that are shown at once
for (const block of document.querySelectorAll("[data-answers]")) {
  const form = block.querySelector("form");
  const more = block.querySelector("[data-more]");
  const items = [...block.querySelectorAll("li[data-run]")].map((item) => ({ item, text: item.textContent.toLowerCase() }));
  let limit = PAGE;

  const show = () => {
    const value = (name) => form.elements[name]?.value ?? "";
    const words = value("text").toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    const counts = Object.fromEntries([...form.elements.change.options].slice(1).map((option) => [option.value, 0]));
    for (const { item, text } of items) {
      const matches =
        (!value("run") || item.dataset.run === value("run")) &&
        (!value("change") || item.dataset.change === value("change")) &&
        words.every((word) => text.includes(word));
      item.hidden = !matches || found >= limit;
      found += matches;
      if (matches && item.dataset.change) counts[item.dataset.change] += 1;
    }
    more.hidden = found <= limit;
    form.querySelector("output").textContent =
      `${found} answers: ` + Object.entries(counts).map(([change, n]) => `${n} ${change}`).join(", ");
  };
  const restart = () => { limit = PAGE; show(); };

  form.hidden = false;
  form.addEventListener("input", restart);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { limit += PAGE; show(); });
  restart();
}
