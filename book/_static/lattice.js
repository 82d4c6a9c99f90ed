/* A lattice of spins that plays without a kernel: 8 x 8 classical spins under the linear effective model of the double-exchange electrons, moved by a
   heat bath here. Mounts on <div class="physattn-play" data-play="lattice">. MODEL holds the result slmc/playable (couplings by shell, the weights of one
   block "c", staggered structure factors), rounded; tests/test_slmc_inside.py compares. */
(() => {
  "use strict";

  const L = 8, N = L * L;
  const MODEL = {
    couplings: [0.18315, -0.24013, -0.01148, 0.05037, -0.10161, 0.01063, -0.01502, 0.01339, -0.00674, 0.01282, -0.04886, -0.03298, 0.01348, -0.2693],
    smear: [1.0, -0.0011, 0.02227, 0.00142, -0.00303, 0.01754, 0.00025, 4e-05, -0.00118, 0.00189, -0.00468, 0.01156, 0.00588, -0.00221, 0.04523],
    exact: 0.2585,
    strengths: [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5],
    mQ2: [0.0157, 0.0219, 0.0359, 0.0835, 0.2568, 0.4506, 0.5645],
  };

  // The class of a distance on the torus is its two components, folded and sorted; shells are ordered by length.
  const fold = d => Math.min((d + L) % L, (L - d) % L);
  const SHELLS = [];
  for (let a = 0; a <= L / 2; a++) for (let b = a; b <= L / 2; b++) SHELLS.push([a, b]);
  SHELLS.sort((p, q) => p[0] ** 2 + p[1] ** 2 - q[0] ** 2 - q[1] ** 2);
  const shellOf = new Map(SHELLS.map(([a, b], n) => [a * L + b, n]));
  const between = (i, j) => {
    const x = fold((i / L | 0) - (j / L | 0)), y = fold(i % L - j % L);
    return shellOf.get(Math.min(x, y) * L + Math.max(x, y));
  };
  const matrix = weights => Float64Array.from({ length: N * N }, (_, k) => weights[between(k / N | 0, k % N)]);
  const J = matrix([0, ...MODEL.couplings]), W = matrix(MODEL.smear);

  // Small seeded generator (mulberry32), so that a figure starts alike for everybody.
  const generator = seed => () => {
    seed = seed + 0x6D2B79F5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
  const along = (axis, w, phi) => {
    const [x, y, z] = axis, e = Math.abs(z) < 0.9 ? [-y, x, 0] : [0, -z, y], n = Math.hypot(...e);
    const u = e.map(v => v / n), v = [y * u[2] - z * u[1], z * u[0] - x * u[2], x * u[1] - y * u[0]];
    const s = Math.sqrt(Math.max(0, 1 - w * w)), c = s * Math.cos(phi), d = s * Math.sin(phi);
    return [0, 1, 2].map(k => w * axis[k] + c * u[k] + d * v[k]);
  };
  const summed = (weights, S, i) => {
    const h = [0, 0, 0];
    for (let j = 0; j < N; j++) for (let k = 0; k < 3; k++) h[k] += weights[i * N + j] * S[3 * j + k];
    return h;
  };
  const random = rng => {
    const S = new Float64Array(3 * N);
    for (let i = 0; i < N; i++) S.set(along([0, 0, 1], 2 * rng() - 1, 2 * Math.PI * rng()), 3 * i);
    return S;
  };
  // One sweep in a shuffled order; each spin is drawn anew from exp(h . S), exactly.
  const sweep = (S, strength, rng) => {
    const order = Array.from({ length: N }, (_, i) => i);
    for (let i = N - 1; i > 0; i--) { const j = rng() * (i + 1) | 0; [order[i], order[j]] = [order[j], order[i]]; }
    for (const i of order) {
      const h = summed(J, S, i).map(v => -strength * v), kappa = Math.hypot(...h), u = rng();
      const w = kappa > 1e-9 ? 1 + Math.log(u + (1 - u) * Math.exp(-2 * kappa)) / kappa : 2 * u - 1;
      S.set(along(kappa > 1e-9 ? h.map(v => v / kappa) : [0, 0, 1], Math.max(-1, w), 2 * Math.PI * rng()), 3 * i);
    }
  };
  const effective = S => {
    const out = new Float64Array(3 * N);
    for (let i = 0; i < N; i++) { const h = summed(W, S, i), n = Math.hypot(...h); out.set(h.map(v => v / n), 3 * i); }
    return out;
  };
  const staggered = S => {
    const m = [0, 0, 0];
    for (let i = 0; i < N; i++) for (let k = 0; k < 3; k++) m[k] += ((i / L | 0) + i % L) % 2 ? -S[3 * i + k] : S[3 * i + k];
    return (m[0] ** 2 + m[1] ** 2 + m[2] ** 2) / N ** 2;
  };
  const reference = strength => {
    const { strengths, mQ2 } = MODEL, k = Math.min(strengths.length - 2, strengths.findLastIndex(s => s <= strength));
    return mQ2[k] + (mQ2[k + 1] - mQ2[k]) * (strength - strengths[k]) / (strengths[k + 1] - strengths[k]);
  };
  if (typeof document === "undefined") { globalThis.physattnLattice = { MODEL, SHELLS, J, W, generator, random, sweep, effective, staggered, reference }; return; }

  const { element, slider, readings, colours, prepared, redrawn, mount } = physattnPlay;
  const STYLE = `
.pl-controls{display:flex;flex-wrap:wrap;align-items:end;gap:.6rem 1.2rem}
.pl-controls .play-control{flex:1 1 13rem}
.pl-check{display:flex;gap:.45rem;align-items:center;min-height:2.1rem}
.pl-check input{width:1.1rem;height:1.1rem;margin:0;accent-color:var(--physattn-c0)}
.pl-lattice{height:auto;aspect-ratio:1}
.pl-curve{height:15rem}
.pl-bar{height:.7rem;border-radius:.2rem}
.pl-ends{display:flex;justify-content:space-between;font-size:.82rem;color:var(--physattn-muted)}
[data-play=lattice] dl{--least:8.5rem}`;

  const KEPT = 240, MOST = MODEL.strengths[MODEL.strengths.length - 1], EVERY = 90;
  const rgb = text => {
    const hex = /^#([0-9a-f]{6})$/i.exec(text);
    return hex ? [0, 2, 4].map(k => parseInt(hex[1].slice(k, k + 2), 16)) : [128, 128, 128];
  };

  const arrows = (canvas, S, c) => {
    const [ctx, width] = prepared(canvas);
    if (!width) return;
    const cell = width / L, ends = [rgb(c.low), rgb(c.muted), rgb(c.high)];
    ctx.lineCap = "round";
    for (let i = 0; i < N; i++) {
      const [x, y, z] = S.subarray(3 * i, 3 * i + 3), [from, to, part] = z < 0 ? [1, 0, -z] : [1, 2, z];
      const X = ((i / L | 0) + 0.5) * cell, Y = (L - i % L - 0.5) * cell, plane = Math.hypot(x, y), half = 0.42 * cell;
      ctx.fillStyle = ctx.strokeStyle = `rgb(${ends[from].map((v, k) => Math.round(v + part * (ends[to][k] - v))).join()})`;
      ctx.lineWidth = Math.max(1.5, 0.06 * cell);
      const [a, b] = [x * half, -y * half], head = Math.min(0.32 * cell, plane * cell * 0.45), angle = Math.atan2(b, a);
      if (plane < 0.15) { ctx.beginPath(); ctx.arc(X, Y, 0.09 * cell, 0, 7); ctx.fill(); continue; }
      ctx.beginPath(); ctx.moveTo(X - a, Y - b); ctx.lineTo(X + a - 0.6 * head * Math.cos(angle), Y + b - 0.6 * head * Math.sin(angle)); ctx.stroke();
      ctx.beginPath(); ctx.moveTo(X + a, Y + b);
      for (const turn of [2.65, -2.65]) ctx.lineTo(X + a + head * Math.cos(angle + turn), Y + b + head * Math.sin(angle + turn));
      ctx.fill();
    }
  };
  const curveOf = (canvas, history, level, c) => {
    const [ctx, width, height] = prepared(canvas);
    if (!width) return;
    const left = 40, right = width - 6, top = 8, bottom = height - 32;
    const X = k => left + (k + KEPT - history.length) / (KEPT - 1) * (right - left), Y = v => bottom - v * (bottom - top);
    ctx.strokeStyle = c.grid; ctx.fillStyle = c.fg; ctx.lineWidth = 1; ctx.textBaseline = "middle"; ctx.textAlign = "right";
    for (const v of [0, 0.2, 0.4, 0.6, 0.8, 1]) { ctx.beginPath(); ctx.moveTo(left, Y(v)); ctx.lineTo(right, Y(v)); ctx.stroke(); ctx.fillText(String(v), left - 5, Y(v)); }
    ctx.textBaseline = "top";
    for (const back of [200, 100, 0]) { ctx.textAlign = back ? "center" : "right"; ctx.fillText(back ? `−${back}` : "now", left + (KEPT - 1 - back) / (KEPT - 1) * (right - left), bottom + 4); }
    ctx.textAlign = "center"; ctx.fillText("sweeps", (left + right) / 2 + 8, bottom + 18);
    ctx.save(); ctx.translate(9, (top + bottom) / 2); ctx.rotate(-Math.PI / 2); ctx.textBaseline = "middle"; ctx.fillText("m²(π, π)", 0, 0); ctx.restore();
    const line = (colour, thick, pick) => {
      ctx.strokeStyle = colour; ctx.lineWidth = thick; ctx.beginPath();
      history.forEach((h, k) => k ? ctx.lineTo(X(k), Y(pick(h))) : ctx.moveTo(X(k), Y(pick(h))));
      ctx.stroke();
    };
    line(c.muted, 1, h => h[0]);
    ctx.strokeStyle = c.high; ctx.lineWidth = 2; ctx.setLineDash([6, 4]); ctx.beginPath(); ctx.moveTo(left, Y(level)); ctx.lineTo(right, Y(level)); ctx.stroke(); ctx.setLineDash([]);
    line(c.low, 2.5, h => h[1]);
  };

  mount("lattice", STYLE, (root, id) => {
    const calm = matchMedia("(prefers-reduced-motion: reduce)");
    const play = element("button", { type: "button" }), step = element("button", { type: "button" }, "One sweep"), shuffle = element("button", { type: "button" }, "Random spins");
    const couplings = slider(`${id}-strength`, "strength of the couplings", 0, MOST, 0.05, 1);
    const smear = element("input", { type: "checkbox", id: `${id}-smear` });
    const lattice = element("canvas", { class: "pl-lattice", role: "img" }), curve = element("canvas", { class: "pl-curve", role: "img" });
    const bar = element("div", { class: "pl-bar" }), lines = {}, key = element("p", { class: "play-key" });
    for (const [name, title] of [["now", "each sweep"], ["mean", "mean since the last change"], ["reference", "long simulation"]]) {
      lines[name] = element("i");
      key.append(element("span", {}, lines[name], title));
    }
    const [said, list] = readings([["sweeps", "sweeps since the change"], ["mean", "mean m²(π, π)"], ["reference", "long simulation"], ["exact", "with the electrons"], ["smeared", "mean of the effective spins"]], {});
    root.replaceChildren(
      element("div", { class: "play-controls pl-controls", role: "group", "aria-label": "controls of the lattice" }, play, step, shuffle, couplings.box,
        element("label", { class: "pl-check" }, smear, "show the effective spins")),
      element("div", { class: "play-views" },
        element("div", {}, lattice, bar, element("div", { class: "pl-ends" }, element("span", {}, "into the page"), element("span", {}, "out of the page"))),
        element("div", {}, curve, key, list)));

    const rng = generator(7);
    let S = random(rng), history = [], total = 0, smeared = 0, count = 0, running = !calm.matches, visible = true, then = 0;
    const forget = () => { total = 0; smeared = 0; count = 0; };
    const strength = () => Number(couplings.input.value);
    const advance = () => {
      sweep(S, strength(), rng);
      const m = staggered(S);
      total += m; smeared += staggered(effective(S)); count += 1;
      history.push([m, total / count]);
      if (history.length > KEPT) history.shift();
    };

    const draw = () => {
      const c = colours(root, { fg: "fg", grid: "grid", low: "c0", high: "c1", muted: "muted" });
      lines.now.style.borderColor = c.muted; lines.mean.style.borderColor = c.low; lines.reference.style.borderColor = c.high;
      bar.style.background = `linear-gradient(90deg, ${c.low}, ${c.muted}, ${c.high})`;
      arrows(lattice, smear.checked ? effective(S) : S, c);
      curveOf(curve, history, reference(strength()), c);
      couplings.say(strength().toFixed(2));
      play.textContent = running ? "Pause" : "Play";
      said.sweeps.textContent = String(count);
      said.mean.textContent = count ? (total / count).toFixed(3) : "–";
      said.smeared.textContent = count ? (smeared / count).toFixed(3) : "–";
      said.reference.textContent = reference(strength()).toFixed(3);
      said.exact.textContent = strength() === 1 ? MODEL.exact.toFixed(3) : "at strength 1 only";
      lattice.setAttribute("aria-label", `${smear.checked ? "Effective spins" : "Spins"} on 8 by 8 sites, staggered structure factor ${staggered(smear.checked ? effective(S) : S).toFixed(2)}.`);
      curve.setAttribute("aria-label", `Staggered structure factor over the last ${history.length} sweeps, mean ${said.mean.textContent}, long simulation ${said.reference.textContent}.`);
    };
    const tick = now => {
      if (running && visible && now - then >= EVERY) { then = now; advance(); draw(); }
      if (running) requestAnimationFrame(tick);
    };
    play.addEventListener("click", () => { running = !running; if (running) requestAnimationFrame(tick); draw(); });
    step.addEventListener("click", () => { advance(); draw(); });
    shuffle.addEventListener("click", () => { S = random(rng); forget(); draw(); });
    couplings.input.addEventListener("input", () => { forget(); draw(); });
    smear.addEventListener("change", draw);
    new IntersectionObserver(([seen]) => { visible = seen.isIntersecting; }).observe(root);
    redrawn(root, draw);
    draw();
    if (running) requestAnimationFrame(tick);
  });
})();
