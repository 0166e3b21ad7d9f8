// Column headings of sortable tables become buttons, and wide tables show that they scroll; without
// scripts the tables stay as they are.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => compare(a, b, up ? 1 : -1));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
// A link to something in a folded part opens it.
const reveal = () => {
  const at = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const fold = at && at.closest("details.part");
  if (fold && !fold.open) { fold.open = true; at.scrollIntoView(); }
};
addEventListener("hashchange", reveal);
reveal();
function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === ""); // what is missing goes last
  const [x, y] = [Number(a), Number(b)];
  return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
}
for (const box of document.querySelectorAll(".scroll")) {
  const update = () => {
    const left = box.scrollWidth - box.clientWidth - box.scrollLeft;
    box.classList.toggle("more", left > 1);
    box.classList.toggle("less", box.scrollLeft > 1);
    box.previousElementSibling.classList.toggle("shown", box.scrollWidth > box.clientWidth + 1);
  };
  box.addEventListener("scroll", update, { passive: true });
  new ResizeObserver(update).observe(box);
}
