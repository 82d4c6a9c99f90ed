/* Paper is light: a dark page is printed with the colours of a light one. What the theme leaves without a name gets one, and a table that is wider than its page can be reached by key. */
(() => {
  "use strict";
  const page = document.documentElement;
  let kept = null;
  addEventListener("beforeprint", () => { kept = page.dataset.theme; page.dataset.theme = "light"; });
  addEventListener("afterprint", () => { if (kept) page.dataset.theme = kept; kept = null; });
  const name = () => {
    for (const summary of document.querySelectorAll("nav details > summary:not([aria-label])"))
      summary.setAttribute("aria-label", `Pages of ${summary.closest("li").querySelector("a").textContent.trim()}`);
    for (const button of document.querySelectorAll("button.copybtn:not([aria-label])")) button.setAttribute("aria-label", button.dataset.tooltip);
    for (const table of document.querySelectorAll("article table"))
      if (table.scrollWidth > table.clientWidth) table.tabIndex = 0;
  };
  // Other scripts bring their buttons when the document is read; by now they have.
  document.readyState === "complete" ? name() : addEventListener("load", name);
})();
