/* What the figures that play have in common: elements, sliders, readings, colours, canvases, and when to draw. Comes before <name>.js on every page with a
   <div class="physattn-play" data-play="name">; what they look like together stands in physattn.css. */
const physattnPlay = (() => {
  "use strict";

  const fill = (node, attributes, children) => {
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const drawn = (tag, attributes = {}, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // A label, what the slider stands at, and the slider; `say` shows the former to eyes and ears.
  const slider = (id, title, min, max, step, value) => {
    const input = element("input", { type: "range", id, min, max, step, value }), shown = element("output", { for: id });
    const say = text => { shown.textContent = text; input.setAttribute("aria-valuetext", text); };
    return { input, say, box: element("div", { class: "play-control" }, element("label", { for: id }, title), shown, input) };
  };

  // Where each number stands, by key, and the list of them with their names; without a class, or the theme indents it.
  const readings = (rows, attributes = { "aria-live": "polite" }) => {
    const at = Object.fromEntries(rows.map(([key]) => [key, element("dd")]));
    return [at, element("dl", attributes, ...rows.map(([key, title]) => element("div", {}, element("dt", {}, title), at[key])))];
  };

  // The colours of the theme, by the names that they have in physattn.css.
  const colours = (root, names) => {
    const css = getComputedStyle(root);
    return Object.fromEntries(Object.entries(names).map(([key, name]) => [key, css.getPropertyValue(`--physattn-${name}`).trim()]));
  };

  // A canvas in the pixels of the screen, measured in those of the page; without a width it is not to be seen.
  const prepared = canvas => {
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight, ctx = canvas.getContext("2d");
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    ctx.scale(ratio, ratio);
    ctx.font = "12px system-ui, sans-serif";
    return [ctx, width, height];
  };

  // A canvas knows neither its size nor the theme: it is drawn again when one of them changes.
  const redrawn = (root, draw) => {
    new ResizeObserver(draw).observe(root);
    new MutationObserver(draw).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme", "data-mode", "class"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  };

  // Scripts are deferred: the page is there.
  const mount = (name, style, build) => {
    document.head.append(element("style", {}, style));
    document.querySelectorAll(`.physattn-play[data-play=${name}]`).forEach((root, i) => build(root, `play-${name}-${i}`));
  };

  return { element, drawn, slider, readings, colours, prepared, redrawn, mount };
})();
