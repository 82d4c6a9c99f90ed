/* The oscillator that plays without a kernel: sliders for omega0, gamma, dt and the integrator; the phase portrait and
   the rollout are computed here. Mounts on <div class="physattn-play" data-play="oscillator">. The matrices are those of
   physattn.sho.oscillator and physattn.sho.integrators; tests/test_sho.py compares the two. */
(() => {
  "use strict";

  // 2 x 2 matrices as [a, b, c, d], row by row.
  const ONE = [1, 0, 0, 1];
  const mul = (m, n) => [m[0] * n[0] + m[1] * n[2], m[0] * n[1] + m[1] * n[3], m[2] * n[0] + m[3] * n[2], m[2] * n[1] + m[3] * n[3]];
  const add = (m, n, s = 1) => m.map((v, i) => v + s * n[i]);
  const scale = (m, s) => m.map(v => v * s);
  const det = m => m[0] * m[3] - m[1] * m[2];
  const inverse = m => scale([m[3], -m[1], -m[2], m[0]], 1 / det(m));
  const apply = (m, [x, p]) => [m[0] * x + m[1] * p, m[2] * x + m[3] * p];
  const generatorStep = (w, g, h) => [0, h, -w * w * h, -2 * g * h];

  const exact = (w, g, t) => {
    const disc = (g - w) * (g + w), s = disc * t * t;
    if (s >= 0.25) {
      const q = Math.sqrt(disc), fast = g + q, slow = w * w / fast, fade = Math.exp(-fast * t), linger = Math.exp(-slow * t);
      const b = (linger - fade) / (2 * q);
      return [(fast * linger - slow * fade) / (2 * q), b, -w * w * b, (fast * fade - slow * linger) / (2 * q)];
    }
    let even = 0, odd = 0;
    if (s <= -0.25) {
      const omega = Math.sqrt(-disc);
      even = Math.cos(omega * t); odd = Math.sin(omega * t) / omega;
    } else {
      let term = 1;
      for (let k = 0; k < 10; k++) { even += term; odd += term / (2 * k + 1); term *= s / ((2 * k + 1) * (2 * k + 2)); }
      odd *= t;
    }
    const f = Math.exp(-g * t);
    return [f * (even + g * odd), f * odd, -w * w * f * odd, f * (even - g * odd)];
  };
  const taylor = order => (w, g, h) => {
    const z = generatorStep(w, g, h);
    let m = ONE;
    for (let k = order; k > 0; k--) m = add(ONE, scale(mul(z, m), 1 / k));
    return m;
  };
  const pade = (even, odd) => (w, g, h) => {
    const z = generatorStep(w, g, h), e = add(ONE, mul(z, z), even), o = scale(z, odd);
    return mul(inverse(add(e, o, -1)), add(e, o));
  };
  const drift = h => [1, h, 0, 1];
  const kick = (w, g, h) => [1, 0, -w * w * (g * h ? -Math.expm1(-2 * g * h) / (2 * g) : h), Math.exp(-2 * g * h)];
  const splitting = stages => (w, g, h) => {
    const count = s => Math.max(1, stages.split(s).length - 1);
    const flows = { d: drift(h / count("d")), k: kick(w, g, h / count("k")) };
    return [...stages].reduce((m, s) => mul(flows[s], m), ONE);
  };
  const yoshida = (w, g, h) => {
    const outer = 1 / (2 - Math.cbrt(2)), frog = splitting("kdk"), a = frog(w, g, outer * h);
    return mul(a, mul(frog(w, g, (1 - 2 * outer) * h), a));
  };
  const INTEGRATORS = {
    "euler": ["forward Euler", taylor(1)],
    "backward-euler": ["backward Euler", (w, g, h) => inverse(add(ONE, generatorStep(w, g, h), -1))],
    "euler-kd": ["symplectic Euler, kick first", splitting("kd")],
    "euler-dk": ["symplectic Euler, drift first", splitting("dk")],
    "leapfrog": ["leapfrog (velocity Verlet)", splitting("kdk")],
    "verlet": ["position Verlet", splitting("dkd")],
    "midpoint": ["implicit midpoint", pade(0, 0.5)],
    "rk2": ["RK2 (Taylor 2)", taylor(2)],
    "rk3": ["RK3 (Taylor 3)", taylor(3)],
    "rk4": ["RK4 (Taylor 4)", taylor(4)],
    "yoshida4": ["Yoshida 4", yoshida],
    "gauss4": ["Gauss 4", pade(1 / 12, 0.5)],
    "exact": ["matrix exponential", exact],
  };
  const regime = (w, g) => g === 0 ? "undamped" : g < w ? "underdamped" : g === w ? "critically damped" : "overdamped";
  if (typeof document === "undefined") { globalThis.physattnOscillator = { INTEGRATORS, regime }; return; }

  const { element, slider, readings, colours, prepared, redrawn, mount } = physattnPlay;
  const STYLE = `
.pp-views{grid-template-columns:minmax(0,2fr) minmax(0,3fr)}
.play-key .pp-dots{border-top-style:dotted}
[data-play=oscillator] dl{--least:10.5rem}`;

  const SLIDERS = [
    ["omega0", "ω₀, natural frequency (rad/s)", 0, 4, 0.05, 2],
    ["gamma", "γ, damping (1/s)", 0, 4, 0.05, 0.05],
    ["dt", "Δt, time step (s)", 0.01, 1, 0.01, 0.3],
  ];
  const STEPS = 200;
  const short = v => !Number.isFinite(v) ? "overflow" : v === 0 ? "0" : Math.abs(v) >= 1e4 || Math.abs(v) < 1e-3 ? v.toExponential(1) : v.toPrecision(4);
  const drifted = v => !Number.isFinite(v) ? "overflow" : Math.abs(v) < 1e-9 ? "0 to rounding" : (v > 0 ? "+" : "−") + short(Math.abs(v));

  const plot = (canvas, [x0, x1], [y0, y1], xlabel, ylabel, curve, points, c, joined) => {
    const [ctx, width, height] = prepared(canvas);
    if (!width) return;
    const left = 44, right = width - 8, top = 8, bottom = height - 34;
    const X = x => left + (x - x0) / (x1 - x0) * (right - left), Y = y => bottom - (y - y0) / (y1 - y0) * (bottom - top);
    const ticks = (a, b) => {
      const raw = (b - a) / 5, ten = 10 ** Math.floor(Math.log10(raw)), step = ten * [1, 2, 5, 10].find(k => k * ten >= raw);
      return Array.from({ length: Math.floor(b / step) - Math.ceil(a / step) + 1 }, (_, k) => (Math.ceil(a / step) + k) * step);
    };
    const tidy = v => String(Number(v.toPrecision(3))).replace("-", "−");

    ctx.strokeStyle = c.grid; ctx.fillStyle = c.fg; ctx.lineWidth = 1;
    ctx.textAlign = "center"; ctx.textBaseline = "top";
    for (const t of ticks(x0, x1)) { ctx.beginPath(); ctx.moveTo(X(t), top); ctx.lineTo(X(t), bottom); ctx.stroke(); ctx.fillText(tidy(t), X(t), bottom + 4); }
    ctx.fillText(xlabel, (left + right) / 2, bottom + 19);
    ctx.textAlign = "right"; ctx.textBaseline = "middle";
    for (const t of ticks(y0, y1)) { ctx.beginPath(); ctx.moveTo(left, Y(t)); ctx.lineTo(right, Y(t)); ctx.stroke(); ctx.fillText(tidy(t), left - 5, Y(t)); }
    ctx.save(); ctx.translate(10, (top + bottom) / 2); ctx.rotate(-Math.PI / 2); ctx.textAlign = "center"; ctx.fillText(ylabel, 0, 0); ctx.restore();

    ctx.save(); ctx.beginPath(); ctx.rect(left, top, right - left, bottom - top); ctx.clip();
    ctx.strokeStyle = c.exact; ctx.lineWidth = 2; ctx.beginPath();
    curve.forEach(([x, y], k) => k ? ctx.lineTo(X(x), Y(y)) : ctx.moveTo(X(x), Y(y)));
    ctx.stroke();
    const near = points.filter(([x, y]) => Math.abs(X(x)) < 1e4 && Math.abs(Y(y)) < 1e4);
    ctx.strokeStyle = ctx.fillStyle = c.step;
    if (joined) {
      ctx.lineWidth = 0.7; ctx.globalAlpha = 0.5; ctx.beginPath();
      near.forEach(([x, y], k) => k ? ctx.lineTo(X(x), Y(y)) : ctx.moveTo(X(x), Y(y)));
      ctx.stroke(); ctx.globalAlpha = 1;
    }
    for (const [x, y] of near) { ctx.beginPath(); ctx.arc(X(x), Y(y), 2, 0, 2 * Math.PI); ctx.fill(); }
    ctx.restore();
  };

  mount("oscillator", STYLE, (root, id) => {
    const sliders = SLIDERS.map(([name, title, min, max, step, value]) => slider(`${id}-${name}`, title, min, max, step, value));
    const choice = element("select", { id: `${id}-integrator` },
      ...Object.entries(INTEGRATORS).map(([key, [title]]) => element("option", { value: key }, title)));
    choice.value = root.dataset.integrator in INTEGRATORS ? root.dataset.integrator : "leapfrog";
    const phase = element("canvas", { role: "img", "aria-label": "phase portrait" });
    const rollout = element("canvas", { role: "img", "aria-label": "rollout of x over time" });
    const [said, list] = readings([["regime", "regime"], ["det", "det M"], ["target", "exp(−2γΔt)"], ["drift", `energy over the exact one, minus 1, after ${STEPS} steps`]]);
    const line = element("i"), dots = element("i", { class: "pp-dots" });
    root.replaceChildren(
      element("div", { class: "play-controls", role: "group", "aria-label": "parameters of the oscillator" }, ...sliders.map(s => s.box),
        element("div", { class: "play-control" }, element("label", { for: choice.id }, "integrator"), choice)),
      element("div", { class: "play-views pp-views" }, phase, rollout),
      element("p", { class: "play-key" }, element("span", {}, line, "exact"), element("span", {}, dots, "integrator")), list);

    const draw = () => {
      const [w, g, h] = sliders.map(({ input }) => Number(input.value));
      for (const { input, say } of sliders) say(Number(input.value).toFixed(2));
      const M = INTEGRATORS[choice.value][1](w, g, h), start = [1, 0];
      const steps = [start], truth = [], fine = Math.max(1, Math.ceil(600 / STEPS));
      for (let k = 0; k < STEPS; k++) steps.push(apply(M, steps[k]));
      for (let k = 0; k <= STEPS * fine; k++) truth.push(apply(exact(w, g, k * h / fine), start));
      const energy = ([x, p]) => (p * p + w * w * x * x) / 2;

      const c = colours(root, { fg: "fg", grid: "grid", exact: "c0", step: "c1" });
      line.style.borderColor = c.exact; dots.style.borderColor = c.step;
      const reach = Math.max(1.2, ...truth.map(s => Math.abs(s[0]))) * 1.35;
      const speed = Math.max(0.5, 1.2 * w, ...truth.map(s => Math.abs(s[1]))) * 1.35;
      plot(phase, [-reach, reach], [-speed, speed], "x (m)", "p (kg m/s)", truth, steps, c, true);
      plot(rollout, [0, STEPS * h], [-reach, reach], "t (s)", "x (m)", truth.map((s, k) => [k * h / fine, s[0]]), steps.map((s, k) => [k * h, s[0]]), c, false);

      const last = energy(truth[truth.length - 1]), ratio = energy(steps[STEPS]) / last - 1;
      said.regime.textContent = w === 0 && g === 0 ? "free particle" : regime(w, g);
      said.det.textContent = short(det(M));
      said.target.textContent = short(Math.exp(-2 * g * h));
      said.drift.textContent = last > 1e-250 ? drifted(ratio) : "no energy to compare";
      phase.setAttribute("aria-label", `Phase portrait, ${said.regime.textContent}: ${INTEGRATORS[choice.value][0]} in dots against the exact curve.`);
      rollout.setAttribute("aria-label", `x over ${(STEPS * h).toFixed(0)} seconds; energy error after ${STEPS} steps ${said.drift.textContent}.`);
    };

    for (const { input } of sliders) input.addEventListener("input", draw);
    choice.addEventListener("change", draw);
    redrawn(root, draw);
    draw();
  });
})();
