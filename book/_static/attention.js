/* Attention that plays without a kernel: one query, fifteen keys, and the Gibbs distribution between them; sliders for the temperature, the direction of the
   query and the price of distance. Mounts on <div class="physattn-play" data-play="attention">. tests/test_book_reader.py compares `gibbs` with the library. */
(() => {
  "use strict";

  // Directions of the keys in degrees, from seven places left of the query to seven right of it.
  const KEYS = [150, 20, 85, -60, 35, 170, -15, 60, 100, -35, 15, -120, 50, 5, -80];
  const MIDDLE = 7, RAD = Math.PI / 180;

  // Pair energies, Gibbs weights, and what thermodynamics makes of them. The values are the keys.
  const gibbs = (degrees, temperature, price) => {
    const energies = KEYS.map((key, j) => -Math.cos((degrees - key) * RAD) + price * Math.abs(j - MIDDLE));
    const lowest = Math.min(...energies), factors = energies.map(e => Math.exp((lowest - e) / temperature));
    const Z = factors.reduce((a, b) => a + b), weights = factors.map(f => f / Z);
    const average = x => x.reduce((sum, v, j) => sum + weights[j] * v, 0);
    const mean = average(energies), free = lowest - temperature * Math.log(Z), entropy = (mean - free) / temperature;
    return {
      energies, weights, mean, free, entropy, seen: Math.exp(entropy), heat: average(energies.map(e => (e - mean) ** 2)) / temperature ** 2,
      distance: average(KEYS.map((_, j) => Math.abs(j - MIDDLE))),
      received: [average(KEYS.map(k => Math.cos(k * RAD))), average(KEYS.map(k => Math.sin(k * RAD)))],
    };
  };
  if (typeof document === "undefined") { globalThis.physattnAttention = { gibbs, KEYS }; return; }

  const { element, drawn, slider, readings, mount } = physattnPlay;
  const STYLE = `
.pa-controls{--least:13rem}
.pa-views{grid-template-columns:minmax(0,3fr) minmax(0,2fr)}
.pa-views svg{display:block;width:100%;height:auto;max-width:100%}
.pa-views svg text{fill:var(--physattn-fg);font:11px system-ui,sans-serif}
.pa-axis{stroke:var(--physattn-muted);stroke-width:1;fill:none}
.pa-key{stroke:var(--physattn-c0);stroke-width:2;fill:none;stroke-linecap:round;stroke-linejoin:round}
.pa-query{stroke:var(--physattn-c1);stroke-width:2.6}
.pa-received{stroke:var(--physattn-c2);stroke-width:2.6}
.pa-bar{fill:var(--physattn-c0)}
.pa-law{stroke:var(--physattn-c1);stroke-width:1.5;fill:none}
[data-play=attention] dl{--least:5.5rem}`;

  // The temperature is logarithmic: value = 10 ** position.
  const SLIDERS = [
    ["temperature", "temperature", -3, 1, 0.01, -0.5, v => (10 ** v).toPrecision(2)],
    ["degrees", "direction of the query", -180, 180, 1, 25, v => `${v}°`],
    ["price", "price of distance", 0, 0.5, 0.01, 0, v => v.toFixed(2)],
  ];
  const READINGS = [
    ["seen", "keys seen, e^S"], ["distance", "mean distance"], ["mean", "energy ⟨E⟩"], ["entropy", "entropy S"], ["free", "⟨E⟩ − TS"], ["heat", "heat capacity"],
  ];
  const arrow = (x, y, [u, v], length, kind) => {
    const size = Math.hypot(u, v), a = length * u / 2, b = -length * v / 2, head = Math.min(5, length * size / 3);
    const tip = size < 1e-9 ? "" : [1, -1].map(s => {
      const angle = Math.atan2(b, a) + s * 2.6;
      return `M${x + a} ${y + b}l${head * Math.cos(angle)} ${head * Math.sin(angle)}`;
    }).join("");
    return drawn("path", { class: `pa-key ${kind}`, d: `M${x - a} ${y - b}L${x + a} ${y + b}${tip}` });
  };
  const unit = degrees => [Math.cos(degrees * RAD), Math.sin(degrees * RAD)];
  const label = (x, y, text, anchor = "middle") => drawn("text", { x, y, "text-anchor": anchor }, text);

  const ceiling = now => [0.1, 0.2, 0.5].find(top => Math.max(...now.weights) <= top) || 1;
  const row = (degrees, now) => {
    const X = j => 16 + 24.9 * j, base = 176, tall = 92 / ceiling(now);
    const parts = [label(6, 12, "query, keys, and the vector that is received", "start")];
    KEYS.forEach((key, j) => {
      parts.push(arrow(X(j), 58, unit(key), 21, ""));
      parts.push(drawn("rect", { class: "pa-bar", x: X(j) - 7, y: base - tall * now.weights[j], width: 14, height: tall * now.weights[j] }));
    });
    parts.push(arrow(X(MIDDLE) - 13, 29, unit(degrees), 21, "pa-query"), arrow(X(MIDDLE) + 13, 29, now.received, 21, "pa-received"));
    parts.push(drawn("path", { class: "pa-axis", d: `M6 ${base}H${X(14) + 10}` }));
    [-6, -3, 0, 3, 6].forEach(d => parts.push(label(X(MIDDLE + d), base + 14, String(d).replace("-", "−"))));
    parts.push(label(X(MIDDLE), base + 29, "distance from the query; bars are the attention"));
    return parts;
  };
  const levels = (temperature, now) => {
    const left = 34, right = 252, base = 176, top = 22, low = -1.2, high = Math.max(1.2, ...now.energies) + 0.2;
    const roof = ceiling(now);
    const X = e => left + (e - low) / (high - low) * (right - left), Y = p => base - p / roof * (base - top);
    const law = Array.from({ length: 81 }, (_, k) => low + k * (high - low) / 80).map(e => [X(e), Y(Math.exp((now.free - e) / temperature))]);
    const points = law.filter(([, y]) => y >= top);
    return [
      drawn("path", { class: "pa-axis", d: `M${left} ${top}V${base}H${right}` }),
      label(left - 4, base + 4, "0", "end"), label(left - 4, top + 4, String(roof), "end"),
      label(X(-1), base + 14, "−1"), label(X(0), base + 14, "0"), label(X(1), base + 14, "1"),
      label((left + right) / 2, base + 29, "pair energy"), label(left, 12, "attention, and Gibbs' law", "start"),
      drawn("path", { class: "pa-law", d: points.map(([x, y], k) => `${k ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("") }),
      ...now.weights.map((p, j) => drawn("circle", { class: "pa-bar", cx: X(now.energies[j]), cy: Y(p), r: 3.2 })),
    ];
  };

  mount("attention", STYLE, (root, id) => {
    const sliders = SLIDERS.map(([name, title, min, max, step, value]) => slider(`${id}-${name}`, title, min, max, step, value));
    const views = [drawn("svg", { viewBox: "0 0 384 210", role: "img" }), drawn("svg", { viewBox: "0 0 258 210", role: "img" })];
    const [said, list] = readings(READINGS);
    root.replaceChildren(
      element("div", { class: "play-controls pa-controls", role: "group", "aria-label": "temperature, query and price of distance" }, ...sliders.map(s => s.box)),
      element("div", { class: "play-views pa-views" }, ...views), list);

    const draw = () => {
      const at = {};
      SLIDERS.forEach(([name, , , , , , text], i) => {
        const value = Number(sliders[i].input.value);
        at[name] = name === "temperature" ? 10 ** value : value;
        sliders[i].say(text(value));
      });
      const now = gibbs(at.degrees, at.temperature, at.price);
      for (const [key] of READINGS) said[key].textContent = now[key].toFixed(2).replace("-", "−");
      views[0].replaceChildren(...row(at.degrees, now));
      views[1].replaceChildren(...levels(at.temperature, now));
      const best = now.weights.indexOf(Math.max(...now.weights));
      views[0].setAttribute("aria-label", `Fifteen keys and their attention; the largest, ${now.weights[best].toFixed(2)}, goes to the key at distance ${best - MIDDLE}, and ${now.seen.toFixed(1)} keys are seen.`);
      views[1].setAttribute("aria-label", `Attention against pair energy: fifteen points on the exponential of Gibbs at temperature ${at.temperature.toPrecision(2)}.`);
    };
    for (const { input } of sliders) input.addEventListener("input", draw);
    draw();
  });
})();
