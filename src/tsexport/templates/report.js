"use strict";
// Sorting, filtering and opening: the page says everything without them.
const number = cell => {
  const text = cell.dataset.order ?? cell.textContent.trim();
  const value = parseFloat(text.replace(/^[<~]\s*/, ""));
  return Number.isNaN(value) ? null : value;
};
const compare = (a, b, isNumber) => {
  if (!isNumber) return a.textContent.trim().localeCompare(b.textContent.trim(), "en");
  const [x, y] = [number(a), number(b)];
  return x === y ? 0 : x === null ? 1 : y === null ? -1 : x - y;
};
const sort = (table, header, column) => {
  const descending = header.getAttribute("aria-sort") === "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [a.cells[column], b.cells[column]];
    const isNumber = header.classList.contains("number");
    // What is not a number stays at the end, whichever way the rest goes.
    if (isNumber && (number(x) === null || number(y) === null)) return compare(x, y, true);
    return (descending ? -1 : 1) * compare(x, y, isNumber);
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...rows);
};
for (const table of document.querySelectorAll("table.sortable")) {
  if (table.tBodies[0].rows.length < 3) continue;
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    if (!header.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sort(table, header, column));
  });
}
for (const table of document.querySelectorAll("table.filterable")) {
  if (table.tBodies[0].rows.length < 8) continue;
  const label = document.createElement("label");
  const input = document.createElement("input");
  label.className = "filter";
  input.type = "search";
  label.append("Show rows with ", input);
  table.closest(".scroll").before(label);
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
// A link to a bundle opens it; print shows all that is closed on the screen.
const openTarget = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const closed = target && target.querySelector("details.bundle");
  if (closed) { closed.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", openTarget);
openTarget();
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of opened) one.open = false;
});
