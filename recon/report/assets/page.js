"use strict";
// The page is complete without this: it only filters and sorts the photos and names the cells of the link matrix.
const grid = document.querySelector(".photos");
const buttons = document.querySelectorAll(".tools button");
for (const button of buttons) {
  button.addEventListener("click", () => {
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    for (const photo of grid.children) photo.hidden = !button.value.split(" ").some((c) => !c || photo.classList.contains(c));
  });
}
const order = document.querySelector(".tools select");
if (order) {
  const original = [...grid.children];
  order.addEventListener("change", () => {
    const [key, sign] = order.value.split(":");
    const value = (photo) => (photo.dataset[key] === undefined ? Infinity : sign * Number(photo.dataset[key]));
    const sorted = key ? [...original].sort((a, b) => value(a) - value(b)) : original;
    grid.append(...sorted);
  });
}
const matrix = document.querySelector(".matrix");
if (matrix) {
  const { names, pairs } = JSON.parse(matrix.querySelector("script").textContent);
  const matches = new Map(pairs.map(([i, j, k]) => [Math.min(i, j) * names.length + Math.max(i, j), k]));
  const picture = matrix.querySelector("image");
  const readout = matrix.querySelector(".readout");
  matrix.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const j = Math.floor(((event.clientX - box.left) / box.width) * names.length);
    const i = Math.floor(((event.clientY - box.top) / box.height) * names.length);
    if (i < 0 || j < 0 || i >= names.length || j >= names.length || i === j) return;
    const found = matches.get(Math.min(i, j) * names.length + Math.max(i, j)) || 0;
    readout.textContent = `${names[i]} and ${names[j]}: ${found ? found + " verified matches" : "no link"}`;
  });
}
