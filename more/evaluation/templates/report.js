"use strict";
// The page works without this script; with it galleries can be filtered and sorted, tables
// sorted, and a picture opened in full size. All text is put in as text, never as HTML.
(() => {
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

  // ---- galleries: filter by class and IoU, sort, one layer or all ----
  function updateGallery(gallery) {
    const form = gallery.querySelector("form");
    const value = name => form.elements[name] ? form.elements[name].value : "";
    const least = Number(value("least") || 0) / 100;
    const most = value("most") === "" ? 1 : Number(value("most")) / 100;
    const cards = all(".card", gallery);
    let shown = 0;
    for (const card of cards) {
      const iou = card.dataset.iou === "" ? null : Number(card.dataset.iou);
      const wanted = !value("class") || card.dataset.classes.split(" ").includes(value("class"));
      // Figures are compared as they are shown, so that 33.33 % is not above 33.33.
      const inside = iou === null || (iou >= least - 5e-5 && iou <= most + 5e-5);
      card.hidden = !(wanted && inside);
      shown += !card.hidden;
      for (const tile of all(".tile", card))
        tile.hidden = Boolean(value("layer")) && tile.dataset.layer !== value("layer");
    }
    const order = value("order");
    const key = card => card.dataset.iou === "" ? 2 : Number(card.dataset.iou);
    const byName = (a, b) => a.dataset.id < b.dataset.id ? -1 : 1;
    cards.sort((a, b) => order === "worst" ? key(a) - key(b) || byName(a, b)
      : order === "best" ? key(b) - key(a) || byName(a, b) : byName(a, b));
    gallery.querySelector(".cards").append(...cards);
    gallery.classList.toggle("single", Boolean(value("layer")));
    form.querySelector("output").textContent = `${shown} of ${cards.length} pictures`;
  }
  for (const gallery of all(".gallery")) {
    const form = gallery.querySelector("form");
    form.hidden = false;
    form.addEventListener("input", () => updateGallery(gallery));
    form.addEventListener("submit", event => event.preventDefault());
    updateGallery(gallery);
  }

  // ---- tables: a click on a heading sorts by it, another one the other way ----
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((head, column) => {
      head.tabIndex = 0;
      head.title = "sort by this column";
      const sort = () => {
        const falling = head.getAttribute("aria-sort") === "ascending"
          || (!head.hasAttribute("aria-sort") && column > 0);
        all("thead th", table).forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const sign = falling ? -1 : 1;
        const rows = all("tbody tr", table).sort((a, b) => {
          const [left, right] = [a.cells[column], b.cells[column]];
          return sign * (column ? left.dataset.value - right.dataset.value
            : left.textContent.localeCompare(right.textContent));
        });
        table.tBodies[0].append(...rows);
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
    });
  }

  // ---- one picture in full size, two of its layers side by side under a slider ----
  const viewer = document.getElementById("viewer");
  const part = selector => viewer.querySelector(selector);
  const frame = part(".frame"), wipe = part(".wipe"), strength = part(".strength");
  const choices = { left: part("select.left"), right: part("select.right") };
  let open = null;

  function showSide(side) {
    const box = part(`.side.${side}`);
    box.replaceChildren();
    const tile = all(".tile", open).find(item => item.dataset.layer === choices[side].value);
    const drawn = tile.querySelector("img"), names = tile.querySelector(".names");
    if (drawn) {
      const layer = new Image();
      layer.src = drawn.src;
      layer.alt = drawn.alt;
      box.append(layer);
    }
    if (names) {
      const copy = names.cloneNode(true);
      copy.hidden = false;
      box.append(copy);
    }
    const caption = document.createElement("b");
    caption.textContent = all("figcaption span", tile).map(item => item.textContent).join(" ");
    box.append(caption);
  }
  function place() {
    frame.style.setProperty("--wipe", `${wipe.value}%`);
    frame.style.setProperty("--strength", strength.value / 100);
  }
  function fit() {
    if (!open) return;
    const [width, height] = [Number(open.dataset.width), Number(open.dataset.height)];
    const most = Math.min((window.innerWidth - 60) / width, (window.innerHeight - 190) / height, 3);
    frame.style.width = `${Math.floor(width * most)}px`;
    frame.style.height = `${Math.floor(height * most)}px`;
  }
  function show(card, layer) {
    const before = layer || choices.right.value;
    open = card;
    part(".id").textContent = card.dataset.id;
    part(".tags").replaceChildren(...all("header .tags > span", card).map(tag => tag.cloneNode(true)));
    const tiles = all(".tile", card).filter(tile => tile.querySelector(".picture"));
    const keys = tiles.map(tile => tile.dataset.layer);
    for (const [side, select] of Object.entries(choices)) {
      const kept = side === "left" && layer ? "image" : side === "left" ? select.value : before;
      select.replaceChildren(...tiles.map(tile => new Option(tile.dataset.caption, tile.dataset.layer)));
      select.value = keys.includes(kept) ? kept : side === "left" ? "image" : keys[keys.length - 1];
      showSide(side);
    }
    frame.style.setProperty("--picture", card.style.getPropertyValue("--picture"));
    fit();
    place();
    if (!viewer.open) viewer.showModal();
  }
  function step(by) {
    const cards = all(".card", open.closest(".gallery")).filter(card => !card.hidden);
    show(cards[(cards.indexOf(open) + by + cards.length) % cards.length]);
  }
  for (const button of all(".picture")) button.addEventListener("click", () => {
    const layer = button.closest(".tile").dataset.layer;
    show(button.closest(".card"), layer === "image" ? "truth" : layer);
  });
  for (const [side, select] of Object.entries(choices))
    select.addEventListener("input", () => showSide(side));
  for (const slider of [wipe, strength]) slider.addEventListener("input", place);
  function drag(event) {
    if (!event.buttons && event.type === "pointermove") return;
    const box = frame.getBoundingClientRect();
    wipe.value = 100 * (event.clientX - box.left) / box.width;
    place();
  }
  frame.addEventListener("pointerdown", drag);
  frame.addEventListener("pointermove", drag);
  part(".previous").addEventListener("click", () => step(-1));
  part(".following").addEventListener("click", () => step(1));
  part(".close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", event => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", event => {
    if (/^(INPUT|SELECT)$/.test(event.target.tagName)) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  window.addEventListener("resize", fit);

  // ---- the next command, into the clipboard ----
  for (const button of all(".copy")) {
    button.hidden = !(navigator.clipboard && window.isSecureContext);
    button.addEventListener("click", () => navigator.clipboard.writeText(
      button.parentElement.querySelector(".command").textContent
    ).then(() => { button.textContent = "copied"; }, () => { button.textContent = "not allowed"; }));
  }
})();
