/* Flip a spin and see what every later spin thinks of it: the conditional probabilities of exact ground states of twelve spins, computed here. Mounts on
   <div class="physattn-play" data-play="decoder">. GROUND holds |psi|^2, one number for each class of configurations under translations, reflections and the flip
   of all spins, in the order of the smallest code in the class; a hidden cell of nbs/tqs/09_saliency.ipynb makes it, tests/test_tqs_saliency.py compares. */
(() => {
  "use strict";

  const N = 12, SIZE = 1 << N;
  const RINGS = { "ising": "critical Ising ring", "haldane-shastry": "modified Haldane–Shastry ring", "neighbours": "Heisenberg ring, neighbours only" };
  const GROUND = {
    "ising": [0.134988599,0.0103487871,0.00339712764,0.000938447252,0.00178963193,0.00083113644,0.000364232972,0.00121665314,0.000810595075,0.000292512957,9.17788463e-05,0.000221230827,0.000170803488,0.000985919845,0.000804641653,0.000277331231,7.83840489e-05,0.000166790048,3.96887488e-05,4.28836746e-05,0.000171188014,0.000115596626,0.000123254523,0.000921953584,0.000803219183,0.000273046179,7.5642521e-05,0.000154903294,6.84884628e-05,3.25918576e-05,3.33403135e-05,0.0001241627,2.98145026e-05,9.64477003e-06,2.72487886e-05,2.30260052e-05,3.05128148e-05,0.00015803148,0.000103594431,7.58851461e-05,2.01905195e-05,0.000112613464,0.000105133514,7.50616515e-05,0.000152306944,6.66816379e-05,3.1203268e-05,3.13712708e-05,0.000114342098,2.56292164e-05,8.09800657e-06,2.18057611e-05,2.64293851e-05,1.73920801e-05,2.25399206e-05,2.77955359e-05,7.85854838e-06,1.90489312e-05,4.74387232e-06,5.2213375e-06,2.4374945e-05,1.49504248e-05,1.94802263e-05,2.00439264e-05,2.75779202e-05,0.000100968438,6.61344158e-05,1.43399083e-05,6.69800502e-05,1.67892108e-05,1.51153574e-05,5.96123461e-05,6.54172833e-05,2.51804487e-05,7.85807754e-06,2.108533e-05,1.64838316e-05,2.45481501e-05,6.86013146e-06,1.63446817e-05,6.90603858e-06,3.95194058e-06,4.26287303e-06,1.17777168e-05,4.03504005e-06,1.46738574e-05,1.69699666e-05,1.47752394e-05,7.57384951e-06,1.77098088e-05,3.75157836e-06,3.83340617e-06,3.53803855e-06,1.14454908e-06,3.92847622e-06,3.41930327e-06,4.4463807e-06,1.35196968e-05,1.19098613e-05,3.26433258e-06,3.70409775e-06,1.24572843e-05,1.12487064e-05,9.80787473e-06,1.14642336e-05,2.96574916e-06,5.23103279e-05,6.13484666e-06,3.40232048e-06,3.12439859e-06,9.87715859e-07,2.91329558e-06,2.63161895e-06,9.60190744e-07,7.48568148e-07,8.01256874e-07,2.39246366e-06,8.11631685e-07,2.46823907e-06,2.49713321e-06,7.22368741e-06,2.20776589e-07],
    "haldane-shastry": [8.72859215e-06,3.35556377e-05,5.81550959e-05,6.81174415e-05,0.000193202655,0.00026186617,0.000229070046,0.00013165305,0.000134489927,0.000370427327,0.000385496295,0.000172372121,0.000413824117,0.000390990974,0.00117055856,0.00129752388,0.000773978628,0.000624566962,0.00144364714,0.00102919481,0.000526099729,0.000811037776,0.000702511121,0.00189059664,0.000227704025,0.00160369256,0.00208676369,0.00561388354,0.00456758932,0.00252685676,0.0043500223,0.00239036367,0.00226844796,0.00132731611,0.0144399147],
    "neighbours": [2.85043109e-10,1.55558128e-08,1.2621165e-07,2.44872693e-07,2.7183014e-06,7.87090259e-06,5.15339195e-06,7.49782122e-07,2.61670085e-06,2.68588862e-05,2.75545174e-05,6.49093649e-06,3.33068544e-05,2.87135724e-05,0.000340490756,0.000433765678,9.65405015e-05,0.000123005888,0.00063344896,0.000220859504,7.48385671e-05,0.00024699141,0.00019372019,0.00141441532,1.89927515e-05,0.00075092946,0.00165504445,0.0121443519,0.00671477027,0.00254785896,0.00571228298,0.00232420214,0.00190952707,0.000790061525,0.0767060765],
  };

  const turned = code => ((code << 1) | (code >> (N - 1))) & (SIZE - 1);
  const mirrored = code => { let out = 0; for (let i = 0; i < N; i++) out |= ((code >> i) & 1) << (N - 1 - i); return out; };
  const smallest = code => {
    let least = SIZE;
    for (let t = 0; t < N; t++, code = turned(code))
      for (const image of [code, mirrored(code)]) least = Math.min(least, image, SIZE - 1 - image);
    return least;
  };
  const CLASS = Uint16Array.from({ length: SIZE }, (_, code) => smallest(code));

  // Level i holds the probabilities of all beginnings of i spins, in binary order; the first spin is the highest bit.
  const beginnings = name => {
    const value = new Map();
    let next = 0;
    const balanced = code => code.toString(2).replaceAll("0", "").length === N / 2;
    for (let code = 0; code < SIZE; code++)
      if (CLASS[code] === code && (name === "ising" || balanced(code))) value.set(code, GROUND[name][next++]);
    const levels = [Float64Array.from(CLASS, c => value.get(c) ?? 0)];
    while (levels[0].length > 1) levels.unshift(Float64Array.from({ length: levels[0].length / 2 }, (_, c) => levels[0][2 * c] + levels[0][2 * c + 1]));
    return levels.map(level => level.map(p => p / levels[0][0]));
  };
  // p(spin i is up | spins before it), or NaN where those cannot occur.
  const conditionals = (levels, spins) => {
    let code = 0;
    return spins.map((spin, i) => {
      const up = levels[i][code] > 0 ? levels[i + 1][2 * code] / levels[i][code] : NaN;
      code = 2 * code + spin;
      return up;
    });
  };
  const entropy = p => p <= 0 || p >= 1 ? 0 : -p * Math.log(p) - (1 - p) * Math.log1p(-p);
  const jensenShannon = (p, q) => Math.max(0, entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2);
  const changes = (levels, spins, site) => {
    const before = conditionals(levels, spins), after = conditionals(levels, spins.map((b, i) => i === site ? 1 - b : b));
    return after.map((p, i) => i <= site ? 0 : jensenShannon(before[i], p));
  };
  if (typeof document === "undefined") { globalThis.physattnDecoder = { RINGS, beginnings, conditionals, changes }; return; }

  const { element, mount } = physattnPlay;
  const STYLE = `
.physattn-play .pd-controls{display:flex;flex-wrap:wrap;gap:.5rem;margin-bottom:.8rem}
.physattn-play .pd-row{display:grid;grid-template-columns:repeat(12,minmax(0,1fr));gap:clamp(2px,.6vw,6px)}
.physattn-play .pd-spins button{padding:0;min-height:2.6rem;font-size:1.25rem;line-height:1}
.physattn-play .pd-spins button[aria-pressed=true]{background:var(--physattn-fg);color:var(--physattn-bg)}
.physattn-play .pd-spins button.pd-last{border:2px solid var(--physattn-c1)}
.physattn-play .pd-title{display:flex;justify-content:space-between;gap:1rem;margin:.8rem 0 .2rem;font-size:.85rem}
.physattn-play .pd-title span+span{color:var(--physattn-muted);white-space:nowrap}
.physattn-play .pd-plot{height:6.5rem;border-block:1px solid var(--physattn-muted);background:linear-gradient(var(--physattn-grid),var(--physattn-grid)) 0 50%/100% 1px no-repeat}
.physattn-play .pd-plot.pd-low{height:4.5rem;background:none}
.physattn-play .pd-cell{position:relative;height:100%}
.physattn-play .pd-bar{position:absolute;inset:auto 0 0;background:var(--physattn-c0);transition:height .25s}
.physattn-play .pd-low .pd-bar{background:var(--physattn-c1)}
.physattn-play .pd-was{position:absolute;inset-inline:-1px;border-top:2px solid var(--physattn-fg)}
.physattn-play .pd-none .pd-bar{height:100%!important;opacity:.3;background:repeating-linear-gradient(45deg,var(--physattn-muted) 0 2px,transparent 2px 7px)!important}
.physattn-play .pd-sites{margin-top:.2rem;font-size:.75rem;text-align:center;color:var(--physattn-muted)}
.physattn-play .pd-said{margin:.7rem 0 0;font-size:.9rem;min-height:2.9em;font-variant-numeric:tabular-nums}
@media(prefers-reduced-motion:reduce){.physattn-play .pd-bar{transition:none}}`;

  const START = [0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1];

  mount("decoder", STYLE, (root, id) => {
    const memory = {};
    let spins = [...START], flipped = null;

    const choice = element("select", { "aria-label": "ground state of" }, ...Object.entries(RINGS).map(([key, title]) => element("option", { value: key }, title)));
    choice.value = root.dataset.ring in RINGS ? root.dataset.ring : "ising";
    const redraw = element("button", { type: "button" }, "draw a configuration");
    const buttons = spins.map((_, i) => element("button", { type: "button", "data-site": i }));
    const plot = extra => {
      const cells = spins.map(() => element("div", { class: "pd-cell" }, element("div", { class: "pd-bar" })));
      return [cells, element("div", { class: `pd-row pd-plot ${extra}`, role: "img" }, ...cells)];
    };
    const [bars, upper] = plot(""), [moves, lower] = plot("pd-low");
    const marks = bars.map(cell => cell.appendChild(element("div", { class: "pd-was" })));
    const title = (left, right) => element("div", { class: "pd-title" }, element("span", {}, left), element("span", {}, right));
    const said = element("p", { class: "pd-said", id: `${id}-said`, "aria-live": "polite" });
    root.replaceChildren(
      element("div", { class: "pd-controls" }, choice, redraw),
      element("div", { class: "pd-row pd-spins", role: "group", "aria-label": "the chain: press a spin to flip it" }, ...buttons),
      title("p(up | spins to the left); line: before the flip", "0 to 1"), upper,
      title("Jensen–Shannon divergence of before and after", "0 to ln 2 nats"), lower,
      element("div", { class: "pd-row pd-sites", "aria-hidden": "true" }, ...spins.map((_, i) => element("span", {}, `${i + 1}`))), said);

    const draw = () => {
      const levels = memory[choice.value] ??= beginnings(choice.value);
      const now = conditionals(levels, spins), was = flipped === null ? now : conditionals(levels, spins.map((b, i) => i === flipped ? 1 - b : b));
      const change = now.map((p, i) => flipped === null || i <= flipped ? 0 : jensenShannon(was[i], p));
      spins.forEach((spin, i) => {
        buttons[i].textContent = spin ? "↓" : "↑";
        buttons[i].setAttribute("aria-pressed", spin === 1);
        buttons[i].setAttribute("aria-label", `spin ${i + 1} is ${spin ? "down" : "up"}`);
        buttons[i].classList.toggle("pd-last", i === flipped);
        bars[i].classList.toggle("pd-none", Number.isNaN(now[i]));
        bars[i].firstChild.style.height = `${100 * (now[i] || 0)}%`;
        marks[i].style.bottom = `calc(${100 * (was[i] || 0)}% - 1px)`;
        marks[i].hidden = flipped === null || i <= flipped || Number.isNaN(was[i]);
        moves[i].classList.toggle("pd-none", Number.isNaN(change[i]));
        moves[i].firstChild.style.height = `${100 * (change[i] || 0) / Math.LN2}%`;
      });
      const largest = change.reduce((best, x, i) => x > change[best] || Number.isNaN(change[best]) ? i : best, 0);
      const impossible = now.findIndex(Number.isNaN), sum = change.reduce((a, x) => a + (x || 0), 0);
      const parts = [flipped === null ? "Press a spin to flip it." : change[largest] > 0
        ? `Spin ${flipped + 1} was flipped: the largest change is ${change[largest].toFixed(3)} nats, at spin ${largest + 1}, of ${sum.toFixed(3)} in all.`
        : `Spin ${flipped + 1} was flipped: no spin behind it can tell.`];
      if (impossible >= 0) parts.push(`Spins 1 to ${impossible} together never occur in this state, and from spin ${impossible + 1} on there is nothing to condition on (hatched).`);
      said.textContent = parts.join(" ");
      upper.setAttribute("aria-label", `Probability of up given the spins to the left, spin by spin: ${now.map(p => Number.isNaN(p) ? "undefined" : p.toFixed(2)).join(", ")}.`);
      lower.setAttribute("aria-label", `Jensen–Shannon divergence in nats, spin by spin: ${change.map(p => Number.isNaN(p) ? "undefined" : p.toFixed(3)).join(", ")}.`);
    };

    buttons.forEach((button, i) => button.addEventListener("click", () => { spins[i] = 1 - spins[i]; flipped = i; draw(); }));
    choice.addEventListener("change", () => { spins = [...START]; flipped = null; draw(); });
    redraw.addEventListener("click", () => {
      const levels = memory[choice.value];
      spins = spins.map(() => 0); flipped = null;
      for (let i = 0; i < N; i++) spins[i] = Math.random() < conditionals(levels, spins)[i] ? 0 : 1;
      draw();
    });
    draw();
  });
})();
