/* Paper is light: a dark page is printed with the colours of a light one. And what the theme leaves without a name gets one. */
(() => {
  "use strict";
  const page = document.documentElement;
  let kept = null;
  addEventListener("beforeprint", () => { kept = page.dataset.theme; page.dataset.theme = "light"; });
  addEventListener("afterprint", () => { if (kept) page.dataset.theme = kept; kept = null; });
  const name = () => {
    for (const summary of document.querySelectorAll("nav details > summary:not([aria-label])"))
      summary.setAttribute("aria-label", `Pages of ${summary.closest("li").querySelector("a").textContent.trim()}`);
  };
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", name) : name();
})();
