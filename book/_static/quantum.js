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

  const { element, slider, readings, colours, prepared, redrawn, mount } = physattnPlay;
  const STYLE = `
[data-play=quantum] dl{--least:9rem}`;

  // Sliders are logarithmic: value = 10 ** position.
  const SLIDERS = [
    ["norm", "norm of W_q, W_k, W_v", -0.5, 0.8, 0, v => v.toPrecision(2)],
    ["temperature", "factor on the scores", -1, 2, 0.5, v => v.toPrecision(2)],
    ["length", "tokens", 0.3, 3, 1.8, v => String(Math.round(v))],
    ["eps", "relative error", -4, -1, -3, v => scientific(v)],
  ];
  const HEAD_DIM = 12;
  const READINGS = [["reach", "largest score"], ["tau", "τ"], ["degree", "degree of the polynomial"], ["queries", "queries in a run"], ["probability", "a run succeeds with"], ["repetitions", "runs, amplified"], ["total", "queries for one output"]];
  const raised = k => [...String(Number(k))].map(d => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(d)]).join("");
  const scientific = v => v.toExponential(1).replace(/e(.*)/, (_, k) => ` × 10${raised(k)}`);
  const short = v => v >= 1e4 || v < 1e-2 ? scientific(v) : Number.isInteger(v) ? String(v) : v.toPrecision(3);

  const plot = (canvas, [x0, x1], [y0, y1], logarithmic, xlabel, ylabel, curve, marks, cursor, models, c) => {
    const [ctx, width, height] = prepared(canvas);
    if (!width) return;
    const left = 64, right = width - 10, top = 8, bottom = height - 34;
    const part = (v, a, b, log) => log ? Math.log(v / a) / Math.log(b / a) : (v - a) / (b - a);
    const X = x => left + part(x, x0, x1, true) * (right - left), Y = y => bottom - part(y, y0, y1, logarithmic) * (bottom - top);
    const decades = (a, b, every) => Array.from({ length: Math.floor(Math.log10(b) + 1e-9) - Math.ceil(Math.log10(a) - 1e-9) + 1 }, (_, k) => Math.ceil(Math.log10(a) - 1e-9) + k).filter(k => k % every === 0);
    const power = k => k === 0 ? "1" : k === 1 ? "10" : "10" + raised(k);
    ctx.strokeStyle = c.grid; ctx.fillStyle = c.fg; ctx.lineWidth = 1;
    ctx.textAlign = "center"; ctx.textBaseline = "top";
    for (const k of decades(x0, x1, 1)) { const x = X(10 ** k); ctx.beginPath(); ctx.moveTo(x, top); ctx.lineTo(x, bottom); ctx.stroke(); ctx.fillText(power(k), x, bottom + 6); }
    ctx.fillText(xlabel, (left + right) / 2, bottom + 20);
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
    // Names of neighbours stand below and above in turns, so that none covers another.
    ctx.strokeStyle = c.line; ctx.fillStyle = c.line; ctx.lineWidth = 1.5;
    models.forEach((m, k) => {
      const x = X(Math.max(m.tau, x0)), flip = x > (left + right) / 2, below = k % 2;
      ctx.beginPath(); ctx.moveTo(x, Y(m.accuracy - m.error)); ctx.lineTo(x, Y(m.accuracy + m.error)); ctx.stroke();
      ctx.beginPath(); ctx.arc(x, Y(m.accuracy), 3.5, 0, 2 * Math.PI); ctx.fill();
      ctx.textAlign = flip ? "right" : "left"; ctx.textBaseline = below ? "top" : "bottom";
      ctx.fillStyle = c.fg; ctx.fillText(m.name, x + (flip ? -7 : 7), Y(m.accuracy) + (below ? 3 : -2)); ctx.fillStyle = c.line;
    });
    ctx.restore();
  };

  mount("quantum", STYLE, (root, id) => {
    const sliders = SLIDERS.map(([name, title, min, max, value]) => slider(`${id}-${name}`, title, min, max, 0.01, value));
    const price = element("canvas", { role: "img", "aria-label": "queries against the factor on the scores" });
    const accuracy = element("canvas", { role: "img", "aria-label": "accuracy of trained classifiers against tau" });
    const [said, list] = readings(READINGS);
    root.replaceChildren(
      element("div", { class: "play-controls", role: "group", "aria-label": "norm, factor, tokens and error" }, ...sliders.map(s => s.box)),
      element("div", { class: "play-views" }, price, accuracy), list);

    const draw = () => {
      const at = {};
      SLIDERS.forEach(([name, , , , , text], i) => {
        at[name] = 10 ** Number(sliders[i].input.value);
        sliders[i].say(text(at[name]));
      });
      at.length = Math.round(at.length);
      const now = cost(at.norm, at.temperature, at.length, HEAD_DIM, at.eps);
      for (const [key] of READINGS) said[key].textContent = short(now[key]);
      const c = colours(root, { fg: "fg", grid: "grid", line: "c0", mark: "c1" });
      const curve = Array.from({ length: 121 }, (_, k) => 10 ** (-1 + k / 40)).map(t => [t, cost(at.norm, t, at.length, HEAD_DIM, at.eps).total]);
      plot(price, [0.1, 100], [1, 1e12], true, "factor on the scores", "queries for one output", curve, [[at.temperature, now.total]], null, [], c);
      const accuracies = MODELS.map(m => m.accuracy), low = Math.min(...accuracies) - 0.01, high = Math.max(...accuracies) + 0.01;
      plot(accuracy, [1, 2000], [low, high], false, "τ", "balanced accuracy", [], [], now.tau, MODELS, c);
      price.setAttribute("aria-label", `Queries for one output against the factor on the scores; ${short(now.total)} at the present one.`);
      accuracy.setAttribute("aria-label", `Balanced accuracy of trained classifiers against tau: ${MODELS.map(m => `${m.name} ${m.accuracy.toFixed(3)} at ${m.tau}`).join(", ")}; tau is now ${short(now.tau)}.`);
    };
    for (const { input } of sliders) input.addEventListener("input", draw);
    redrawn(root, draw);
    draw();
  });
})();
