"use strict";
// Sorting: numbers highest first, names in order of the alphabet; a second press turns it around; gaps stay last.
for (const table of document.querySelectorAll("table.scores")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
    const numbers = head.dataset.sort === "number";
    const first = numbers ? "descending" : "ascending";
    const turned = first === "descending" ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? turned : first;
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => row.cells[index].dataset.value;
    const keyed = [...body.rows].map((row) => ({ row, key: numbers ? parseFloat(value(row)) : value(row) }));
    keyed.sort((a, b) => {
      if (!numbers) return sign * a.key.localeCompare(b.key);
      if (Number.isNaN(a.key) || Number.isNaN(b.key)) return Number.isNaN(a.key) - Number.isNaN(b.key);
      return sign * (a.key - b.key);
    });
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    body.append(...keyed.map(({ row }) => row));
  }));
}
