/* What a head costs on a quantum computer, playable without a kernel: sliders for norm, temperature, tokens and accuracy; the cost is computed here, the
   accuracies of trained classifiers are points. Mounts on <div class="physattn-play" data-play="quantum">. LAW holds the slopes and offsets of the result
   quantum/degrees, MODELS the result quantum/promoters, rounded; tests/test_quantum_play.py compares with designed_cost and with the results. */
(() => {
  "use strict";

  const ROOM = 4, HEADROOM = 0.9, SIGNAL = 0.5;
  const LAW = {"reaches": [0.5, 1.0, 2.0], "digits": [1, 2, 3, 4], "slope": [[0.5, 1.37143, 1.64286, 2.64286], [0.9, 1.22857, 1.85714, 2.5], [1.27143, 1.85714, 2.55, 3.05]], "offset": [[1.0, 0.42857, -0.14286, -0.14286], [1.0, 0.57143, 0.14286, 1.0], [0.42857, 0.14286, -1.0, 1.0]]};
  const MODELS = [{"name": "uniform, τ = 0", "tau": 0.0, "accuracy": 0.824, "error": 0.0009}, {"name": "spectral", "tau": 136.6, "accuracy": 0.8386, "error": 0.001}, {"name": "unnormalised", "tau": 740.1, "accuracy": 0.8413, "error": 0.0018}, {"name": "Frobenius", "tau": 1142.1, "accuracy": 0.8392, "error": 0.0012}];

  const cell = (x, at) => Math.min(Math.max(x.findIndex(v => v >= at) - 1, 0), x.length - 2);
  const between = (a, b, t) => (1 - t) * a + t * b;
  // Degree of the polynomial: straight lines in tau, interpolated in the logarithms of reach and eps.
  const degree = (tau, eps, reach) => {
    const log = LAW.reaches.map(Math.log2), L = Math.max(Math.log2(Math.min(reach, tau)), log[0]), n = -Math.log10(eps);
    const last = x => x.length - 2, i = L > log[log.length - 1] ? last(log) : cell(log, L), j = n > LAW.digits[LAW.digits.length - 1] ? last(LAW.digits) : cell(LAW.digits, n);
    const v = (L - log[i]) / (log[i + 1] - log[i]), w = (n - LAW.digits[j]) / (LAW.digits[j + 1] - LAW.digits[j]);
    const at = t => between(between(t[i][j], t[i + 1][j], v), between(t[i][j + 1], t[i + 1][j + 1], v), w);
    return Math.max(1, Math.ceil(at(LAW.slope) * tau + at(LAW.offset)));
  };
  const cost = (norm, temperature, length, headDim, eps) => {
    const reach = temperature * norm ** 2 / Math.sqrt(headDim), tau = length * reach, d = degree(tau, eps, reach), queries = 4 * d + 2;
    const probability = (HEADROOM / ROOM * Math.exp(-reach) * SIGNAL) ** 2, rounds = Math.floor(Math.PI / (4 * Math.asin(Math.sqrt(probability))));
    return { reach, tau, degree: d, queries, probability, repetitions: 2 * rounds + 1, total: queries * (2 * rounds + 1) };
  };
  if (typeof document === "undefined") { globalThis.physattnQuantum = { cost, MODELS }; return; }

  const STYLE = `
.physattn-play[data-play=quantum]{margin:1.5rem 0;padding:.9rem;border:1px solid var(--physattn-grid,#d5dbe1);border-radius:.4rem;color:var(--physattn-fg,#1f2933);background:var(--physattn-bg,#fff);font-size:.95rem}
.physattn-play[data-play=quantum] .pq-controls{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(15rem,100%),1fr));gap:.5rem 1.2rem;margin-bottom:.7rem}
.physattn-play[data-play=quantum] .pq-control{display:grid;grid-template-columns:1fr auto;gap:0 .5rem;min-width:0}
.physattn-play[data-play=quantum] .pq-control input{grid-column:1/-1;width:100%;min-width:0;accent-color:var(--physattn-c0,#2b6cb0);min-height:1.75rem;margin:0}
.physattn-play[data-play=quantum] input:focus-visible{outline:2px solid var(--physattn-c0,#2b6cb0);outline-offset:2px}
.physattn-play[data-play=quantum] output{font-variant-numeric:tabular-nums}
.physattn-play[data-play=quantum] .pq-views{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:.8rem}
@media(max-width:640px){.physattn-play[data-play=quantum] .pq-views{grid-template-columns:minmax(0,1fr)}}
.physattn-play[data-play=quantum] canvas{display:block;width:100%;height:17rem}
.physattn-play[data-play=quantum] dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(9rem,100%),1fr));gap:.3rem 1rem;margin:.7rem 0 0}
.physattn-play[data-play=quantum] dl div{display:flex;flex-direction:column}
.physattn-play[data-play=quantum] dt{font-weight:400;font-size:.82rem;color:var(--physattn-muted,#66727f)}
.physattn-play[data-play=quantum] dd{margin:0;font-variant-numeric:tabular-nums}`;

  // Sliders are logarithmic: value = 10 ** position.
  const SLIDERS = [
    ["norm", "norm of W_q, W_k, W_v", -0.5, 0.8, 0, v => v.toPrecision(2)],
    ["temperature", "factor on the scores", -1, 2, 0.5, v => v.toPrecision(2)],
    ["length", "tokens", 0.3, 3, 1.8, v => String(Math.round(v))],
    ["eps", "relative error", -4, -1, -3, v => v.toExponential(1)],
  ];
  const HEAD_DIM = 12;
  const READINGS = [["reach", "largest score"], ["tau", "τ"], ["degree", "degree of the polynomial"], ["queries", "queries in a run"], ["probability", "a run succeeds with"], ["repetitions", "runs, amplified"], ["total", "queries for one output"]];
  const short = v => v >= 1e4 || v < 1e-2 ? v.toExponential(1).replace("e+", " × 10^").replace("e-", " × 10^−") : Number.isInteger(v) ? String(v) : v.toPrecision(3);
  let serial = 0;
  const element = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };

  const mount = root => {
    if (root.dataset.mounted) return;
    root.dataset.mounted = "yes";
    const id = `pq${serial++}`, controls = {}, readings = {};
    const box = element("div", { class: "pq-controls", role: "group", "aria-label": "norm, factor, tokens and error" });
    for (const [name, title, min, max, value] of SLIDERS) {
      const input = element("input", { type: "range", id: `${id}-${name}`, min, max, step: 0.01, value });
      const shown = element("output", { for: input.id });
      box.append(element("div", { class: "pq-control" }, element("label", { for: input.id }, title), shown, input));
      controls[name] = { input, shown };
    }
    const price = element("canvas", { role: "img", "aria-label": "queries against the factor on the scores" });
    const accuracy = element("canvas", { role: "img", "aria-label": "accuracy of trained classifiers against tau" });
    const list = element("dl", { "aria-live": "polite" });
    for (const [key, title] of READINGS) {
      readings[key] = element("dd");
      list.append(element("div", {}, element("dt", {}, title), readings[key]));
    }
    root.replaceChildren(box, element("div", { class: "pq-views" }, price, accuracy), list);

    const draw = () => {
      const at = {};
      for (const [name, , , , , text] of SLIDERS) {
        const { input, shown } = controls[name];
        at[name] = 10 ** Number(input.value);
        shown.textContent = text(at[name]);
        input.setAttribute("aria-valuetext", shown.textContent);
      }
      at.length = Math.round(at.length);
      const now = cost(at.norm, at.temperature, at.length, HEAD_DIM, at.eps);
      for (const [key] of READINGS) readings[key].textContent = short(now[key]);
      const css = getComputedStyle(root), colour = (name, fallback) => css.getPropertyValue(`--physattn-${name}`).trim() || fallback;
      const c = { fg: colour("fg", "#1f2933"), grid: colour("grid", "#d5dbe1"), line: colour("c0", "#2b6cb0"), mark: colour("c1", "#c2410c") };
      const curve = Array.from({ length: 121 }, (_, k) => 10 ** (-1 + k / 40)).map(t => [t, cost(at.norm, t, at.length, HEAD_DIM, at.eps).total]);
      plot(price, [0.1, 100], [1, 1e12], true, "factor on the scores", "queries for one output", curve, [[at.temperature, now.total]], null, [], c);
      const accuracies = MODELS.map(m => m.accuracy), low = Math.min(...accuracies) - 0.01, high = Math.max(...accuracies) + 0.01;
      plot(accuracy, [1, 2000], [low, high], false, "τ", "balanced accuracy", [], [], now.tau, MODELS, c);
      price.setAttribute("aria-label", `Queries for one output against the factor on the scores; ${short(now.total)} at the present one.`);
      accuracy.setAttribute("aria-label", `Balanced accuracy of trained classifiers against tau: ${MODELS.map(m => `${m.name} ${m.accuracy.toFixed(3)} at ${m.tau}`).join(", ")}; tau is now ${short(now.tau)}.`);
    };
    for (const { input } of Object.values(controls)) input.addEventListener("input", draw);
    new ResizeObserver(draw).observe(root);
    new MutationObserver(draw).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme", "data-mode", "class"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    draw();
  };

  const plot = (canvas, [x0, x1], [y0, y1], logarithmic, xlabel, ylabel, curve, marks, cursor, models, c) => {
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight, ctx = canvas.getContext("2d");
    if (!width) return;
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    ctx.scale(ratio, ratio);
    ctx.font = "12px system-ui, sans-serif";
    const left = 64, right = width - 10, top = 8, bottom = height - 34;
    const part = (v, a, b, log) => log ? Math.log(v / a) / Math.log(b / a) : (v - a) / (b - a);
    const X = x => left + part(x, x0, x1, true) * (right - left), Y = y => bottom - part(y, y0, y1, logarithmic) * (bottom - top);
    const decades = (a, b, every) => Array.from({ length: Math.floor(Math.log10(b) + 1e-9) - Math.ceil(Math.log10(a) - 1e-9) + 1 }, (_, k) => Math.ceil(Math.log10(a) - 1e-9) + k).filter(k => k % every === 0);
    const power = k => k === 0 ? "1" : k === 1 ? "10" : "10" + [...String(k)].map(d => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(d)]).join("");
    ctx.strokeStyle = c.grid; ctx.fillStyle = c.fg; ctx.lineWidth = 1;
    ctx.textAlign = "center"; ctx.textBaseline = "top";
    for (const k of decades(x0, x1, 1)) { const x = X(10 ** k); ctx.beginPath(); ctx.moveTo(x, top); ctx.lineTo(x, bottom); ctx.stroke(); ctx.fillText(power(k), x, bottom + 4); }
    ctx.fillText(xlabel, (left + right) / 2, bottom + 19);
    ctx.textAlign = "right"; ctx.textBaseline = "middle";
    const rows = logarithmic ? decades(y0, y1, 3).map(k => [10 ** k, power(k)]) : Array.from({ length: 5 }, (_, k) => y0 + (k + 0.5) * (y1 - y0) / 5).map(v => [v, v.toFixed(3)]);
    for (const [v, text] of rows) { ctx.beginPath(); ctx.moveTo(left, Y(v)); ctx.lineTo(right, Y(v)); ctx.stroke(); ctx.fillText(text, left - 5, Y(v)); }
    ctx.save(); ctx.translate(10, (top + bottom) / 2); ctx.rotate(-Math.PI / 2); ctx.textAlign = "center"; ctx.fillText(ylabel, 0, 0); ctx.restore();
    ctx.save(); ctx.beginPath(); ctx.rect(left, top, right - left, bottom - top); ctx.clip();
    ctx.strokeStyle = c.line; ctx.lineWidth = 2; ctx.beginPath();
    curve.forEach(([x, y], k) => k ? ctx.lineTo(X(x), Y(y)) : ctx.moveTo(X(x), Y(y)));
    ctx.stroke();
    ctx.fillStyle = ctx.strokeStyle = c.mark;
    for (const [x, y] of marks) { ctx.beginPath(); ctx.arc(X(x), Y(y), 5, 0, 2 * Math.PI); ctx.fill(); }
    if (cursor !== null) { ctx.setLineDash([4, 4]); ctx.beginPath(); ctx.moveTo(X(cursor), top); ctx.lineTo(X(cursor), bottom); ctx.stroke(); ctx.setLineDash([]); }
    ctx.strokeStyle = c.line; ctx.fillStyle = c.line; ctx.lineWidth = 1.5; ctx.textBaseline = "bottom";
    for (const m of models) {
      const x = X(Math.max(m.tau, x0)), flip = x > (left + right) / 2;
      ctx.beginPath(); ctx.moveTo(x, Y(m.accuracy - m.error)); ctx.lineTo(x, Y(m.accuracy + m.error)); ctx.stroke();
      ctx.beginPath(); ctx.arc(x, Y(m.accuracy), 3.5, 0, 2 * Math.PI); ctx.fill();
      ctx.textAlign = flip ? "right" : "left"; ctx.fillStyle = c.fg; ctx.fillText(m.name, x + (flip ? -7 : 7), Y(m.accuracy) - 2); ctx.fillStyle = c.line;
    }
    ctx.restore();
  };

  const start = () => {
    document.head.append(element("style", {}, STYLE));
    document.querySelectorAll('.physattn-play[data-play="quantum"]').forEach(mount);
  };
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", start) : start();
})();
