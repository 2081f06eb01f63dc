(() => {
  const by = (id) => document.getElementById(id);
  const figures = [...document.querySelectorAll("figure")];
  const promptOf = (figure) =>
    (figure.querySelector("p") || figure.closest("article").querySelector("h2")).textContent;
  let texts = null;  // made at the first use: a set may have 30,000 images
  const filter = by("filter");
  const show = () => {
    texts = texts || figures.map((one) => (promptOf(one) + " " + one.querySelector("small").textContent).toLowerCase());
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    figures.forEach((one, i) => {
      one.hidden = !words.every((word) => texts[i].includes(word));
      count += !one.hidden;
    });
    for (const part of document.querySelectorAll("article, details")) {
      part.hidden = !part.querySelector("figure:not([hidden])");
      if (words.length && part.localName === "details" && !part.hidden && count <= 2000) part.open = true;
    }
    by("found").textContent = words.length ? count.toLocaleString("en") + " of " + figures.length.toLocaleString("en") : "";
    by("none").hidden = count > 0;
  };
  let waiting = 0;
  filter.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, figures.length > 2000 ? 250 : 0);
  });
  by("tools").hidden = false;

  const large = by("large");
  if (!large.showModal) return;
  let at = 0;
  const enlarge = (number) => {
    at = number;
    const figure = figures[at], image = figure.querySelector("img");
    by("picture").src = image.getAttribute("src");
    by("picture").className = image.className;
    by("prompt").textContent = promptOf(figure);
    by("facts").replaceChildren(...[...figure.querySelectorAll("small span")].map((one) => one.cloneNode(true)));
    by("file").href = by("file").textContent = image.getAttribute("src");
    if (!large.open) large.showModal();
  };
  const step = (by_) => {
    for (let i = at + by_; i >= 0 && i < figures.length; i += by_) {
      if (!figures[i].hidden) { enlarge(i); return; }
    }
  };
  document.querySelector("main").addEventListener("click", (event) => {
    const link = event.target.closest("a.frame");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;  // a tab of its own
    event.preventDefault();
    enlarge(figures.indexOf(link.closest("figure")));
  });
  large.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  by("before").addEventListener("click", () => step(-1));
  by("after").addEventListener("click", () => step(1));
  by("close").addEventListener("click", () => large.close());
  large.addEventListener("close", () => figures[at].querySelector("a").focus());
})();
