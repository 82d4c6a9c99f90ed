/* Turns a document of sections into slides: one at a time on a wide screen, one below the other on a phone and on paper.
   Every slide has its place in the layout all the time, so that formulas and sizes can be measured before it is seen. */
(() => {
  "use strict";
  const slides = [...document.querySelectorAll(".slide")], dialog = document.querySelector("dialog"), root = document.documentElement;
  const narrow = matchMedia("(max-width: 720px)"), print = matchMedia("print");
  let current = 0;

  const theme = name => { root.dataset.theme = name; };
  const number = () => Math.min(slides.length, Math.max(1, parseInt(location.hash.slice(1), 10) || 1)) - 1;

  function show(i) {
    current = Math.min(slides.length - 1, Math.max(0, i));
    slides.forEach((s, k) => s.classList.toggle("current", k === current));
    if (!narrow.matches) history.replaceState(null, "", `#${current + 1}`);
  }

  // A slide that is too full is set in smaller type, down to six tenths.
  function fit(slide) {
    const content = slide.querySelector(".content");
    for (let size = 1; size >= 0.58; size -= 0.06) {
      content.style.setProperty("--fit", size.toFixed(2));
      if (content.scrollHeight <= content.clientHeight + 4 && content.scrollWidth <= content.clientWidth + 4) break;
    }
  }
  const fitAll = () => slides.forEach(s => narrow.matches && !print.matches ? s.querySelector(".content").style.removeProperty("--fit") : fit(s));

  const actions = {
    next: () => show(current + 1),
    back: () => show(current - 1),
    first: () => show(0),
    last: () => show(slides.length - 1),
    contents: () => dialog.open ? dialog.close() : dialog.showModal(),
    theme: () => theme(root.dataset.theme === "dark" ? "light" : "dark"),
    full: () => document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen?.(),
  };
  const keys = {ArrowRight: "next", ArrowDown: "next", PageDown: "next", " ": "next", ArrowLeft: "back", ArrowUp: "back", PageUp: "back",
    Home: "first", End: "last", o: "contents", t: "theme", f: "full"};

  addEventListener("keydown", e => {
    if (e.ctrlKey || e.metaKey || e.altKey || !(e.key in keys) || narrow.matches && /Arrow|Page|Home|End| /.test(e.key)) return;
    if (dialog.open && keys[e.key] !== "contents" || e.key === " " && e.target.closest("button, a")) return;
    e.preventDefault();
    actions[e.key === " " && e.shiftKey ? "back" : keys[e.key]]();
  });
  document.querySelectorAll("[data-do]").forEach(b => b.addEventListener("click", () => actions[b.dataset.do]()));
  dialog.addEventListener("click", e => { if (e.target === dialog || e.target.closest("a")) dialog.close(); });
  addEventListener("hashchange", () => show(number()));

  let touch = null;
  addEventListener("touchstart", e => { touch = e.changedTouches[0]; }, {passive: true});
  addEventListener("touchend", e => {
    const dx = e.changedTouches[0].clientX - touch.clientX, dy = e.changedTouches[0].clientY - touch.clientY;
    if (!narrow.matches && !dialog.open && Math.abs(dx) > 60 && Math.abs(dx) > 2 * Math.abs(dy)) actions[dx < 0 ? "next" : "back"]();
  }, {passive: true});

  let waiting;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(fitAll, 120); });
  print.addEventListener("change", fitAll);

  theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.classList.add("slides");
  const target = narrow.matches && location.hash ? slides[number()] : null;
  show(number());
  MathJax.startup.promise.then(() => MathJax.typesetPromise(slides)).then(() => {
    fitAll();
    target?.scrollIntoView();
    root.dataset.ready = "yes";
  });
})();
