"""Fill the two tables of numbers in README.md from the recorded results: readme.py after `physattn reproduce`; `readme.py --check` only asks.

No number of ours is typed here, only published and exact ones, each with where it is from."""
import re, sys
from pathlib import Path

import numpy as np

from physattn.foundations.estimates import Estimate, paired
from physattn.foundations.experiments import recall
from physattn.tqs.chains import TransverseFieldIsing

README = Path(__file__).resolve().parents[1]/'README.md'
SOURCE = 'https://github.com/physattn/physattn/blob/main/results'

def mean(values): return Estimate.from_samples(np.asarray(values, dtype=float), independent=True)

def geometric(values):
    "The geometric mean of ratios, with its error over them."
    log = mean(np.log(np.asarray(values, dtype=float)))
    return Estimate(np.exp(log.value), np.exp(log.value)*log.error, log.n)

def points(difference): return f'{100*difference.value:+.1f} [{100*difference.low:+.1f}, {100*difference.high:+.1f}]'

def signed(difference): return f'{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]'

def typeset(cell):
    "A cell with powers of ten and minus signs as they are printed."
    power = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')
    cell = re.sub(r'(?<=[\d)])e([+-]\d+)', lambda m: '\u00a0×\u00a010' + str(int(m[1])).translate(power), str(cell))
    return re.sub(r'(?<![\w-])-(?=\d)', '−', cell)

def table(head, rows):
    "Rows whose last cell names results, as a Markdown table with links to them."
    link = [', '.join(f'[{n}]({SOURCE}/{n}.json)' for n in names) for *_, names in rows]
    lines = [head, ['---']*len(head), *([*map(typeset, cells), file] for (*cells, _), file in zip(rows, link))]
    return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |' for row in lines)

def results():
    "What the chapters found, a row for each number: what, measured, beside it, verdict, from."
    identify, contexts, splice = recall('sho/identify'), recall('sho/in-context'), recall('sho/mechanism')['network']['splice']
    read = [abs(e) for regime in identify.values.values() for k in ('omega0', 'gamma') for e in regime[k]]
    four = {who: Estimate(e.value[3], e.error[3], e.n) for who in ('', ' AR', ' Bayes') for e in [contexts[f'nmse{who}']]}
    yield 'ω₀ and γ from the weights of one-token networks', f'largest error of {len(read)//2} networks {max(read):.0e}', 'exact: 0', 'the weights hold both, in closed form', ['sho/identify']
    yield 'error² / variance of the next token, oscillator to be inferred from four', four[''], f'Bayes, the least there is: {four[" Bayes"]}; best linear predictor: {four[" AR"]}', 'it infers, and stops short of Bayes', ['sho/in-context']
    yield 'share of its response to a kick that "identify, then propagate" explains', splice['identify-then-propagate']['prediction'], f'a machine that does so: 1; the next of four mechanisms: {splice["Cayley-Hamilton"]["prediction"]}', 'nearest to it, and not a clean case', ['sho/mechanism']

    hundred, saliency, judge = recall('tqs/hundred'), recall('tqs/saliency'), recall('tqs/dmrg')
    E0, longer = TransverseFieldIsing(100).exact_energy(), hundred['100-longer-0']
    yield 'energy of 100 critical Ising spins, relative error', longer['error'], f'free fermions: 0; source: {(-126.885 - E0)/abs(E0):.1e}', 'better than the source, by natural gradients', ['tqs/hundred']
    agree = saliency['ising-12']['agreement']
    yield 'does "attention × gradient" say where it looks? Rank correlation with the exact information', agree['trained/attention'], f'the truth: 1; spin flips: {agree["trained/flip"]}; before training: {agree["untrained/attention"]}', 'flips do; this does not', ['tqs/saliency']
    half = {n: judge[f'mhs-{n}']['S1'][n//2 - 1] for n in (8, max(int(k.split('-')[1]) for k in judge.values if k.startswith('mhs')))}
    (short, a), (long, b) = half.items()
    yield f'entropy of half the modified ring, {long} sites over {short}', f'{b/a:.2f}', f'"volume law" (source): {long/short:.2f}', "the source's claim fails: it is logarithmic", ['tqs/dmrg']

    layers, speed = recall('slmc/layers'), recall('slmc/throughput')
    six = [r for key, r in layers['attention, 0'].items() if key != 'seconds'][-1]['measured']
    yield 'acceptance on 6 × 6 sites, linear model with all shells', layers['shells']['9']['measured'], f'source: 0.21, linear; ours with three shells: {layers["shells"]["3"]["measured"]}; with six blocks of attention: {six}', 'attention helps; much of it was repair of a cut', ['slmc/layers']

    found, heads = recall('quantum/promoters')['promoters'], recall('quantum/head').values
    def against(first, other): return points(paired(*(found[n]['runs']['accuracy, all frames'] for n in (first, other))))
    yield 'what bounded (spectral) norms cost on promoters, in points of accuracy', against('spectral', 'unnormalised'), f'source: −0.7 (one seed); attention against none (uniform): {against("spectral", "uniform")}', 'about a point at most, on a task that hardly needs attention', ['quantum/promoters']
    spectral = [run['output_error'] for name, run in heads.items() if 'spectral' in name]
    yield f'attention as a circuit, largest error of {len(spectral)} heads', f'{max(spectral):.0e}', 'exact: 0; asked for: 1e-03', 'it works; it succeeds rarely', ['quantum/head']

    seeds, looks = recall('tensortrain/seeds'), recall('tensortrain/evidence')
    area = {h: seeds.tensors[f'{h}/loss'].mean(1) for h in ('tt', 'dense')}
    yield 'training loss over ten epochs, tensor train minus dense', signed(paired(area['tt'], area['dense'])), 'source: "always converging faster", below 0', "the source's claim fails: it is slower", ['tensortrain/seeds']
    def looked(measure, kind='cifar'): return signed(paired(*(looks.tensors[f'{kind}/{h}/{measure}'] for h in ('tt', 'dense'))))
    yield "sharpness of GradCAM, Gini coefficient, tensor train minus dense", looked('GradCAM/gini'), "source, read off its pictures: +0.086", f'sharper in this pair; not more often right: {looked("GradCAM/mass in box", "digits")} of it in the box', ['tensortrain/evidence']

def benchmarks():
    "Ours against a peer in the same time or on the same work: what, peer, ratio, from."
    peers = recall('tqs/peers')
    def errors(n, who, key): return [run[key] for k, run in peers.values.items() if k.startswith(f'{n}-{who}-')]
    def twenty(who): return geometric(np.divide(*(errors(20, w, 'exact_error') for w in (who, 'ours'))))
    def forty(who):
        a, b = (errors(40, w, 'error') for w in (who, 'ours'))
        return sum(a[1:], a[0])/len(a)/(sum(b[1:], b[0])/len(b))
    for who, name in {'rbm-tuned': 'Boltzmann machine, tuned', 'dense-sr': 'autoregressive'}.items():
        yield 'error of the energy in equal processor time, 20 and 40 Ising spins', f'NetKet, {name}', f'{twenty(who)} and {forty(who)}', ['tqs/peers']
    dmrg, rings = recall('tqs/dmrg'), recall('tqs/rings')
    longest = max((k for k in rings.values if 'grown' in k and f'mhs-{k.split("-")[1]}' in dmrg.values), key=lambda k: int(k.split('-')[1]))
    n = longest.split('-')[1]
    judge = dmrg[f'mhs-{n}']
    above, missing = rings[longest]['energy'] - judge['energy'], judge['missing']
    yield f'error of the energy of the modified ring of {n} spins', 'matrix products (quimb)', missing/above, ['tqs/rings', 'tqs/dmrg']

    local, speed = recall('slmc/local'), recall('slmc/throughput')
    for L in (6, 10): yield f'sweeps a second of exact local updates, {L} × {L} sites, 16 chains', 'diagonalising (LAPACK)', f'{local[f"{L}x{L}, chains=16"]["ratio"]:.1f}', ['slmc/local']
    size = list(speed.values)[-1]
    for name, key in {'linear model': 'linear', 'attention': 'a', 'smearing': 'c'}.items():
        yield f'independent samples a second, {size.replace("x", " × ")} sites, {name}', 'our own local updates', speed[size][key]['rate']/speed[size]['poles']['rate'], ['slmc/throughput']

    plans = [v for v in recall('tensortrain/plans').values.values() if isinstance(v, dict) and 'tuned' in v]
    for other, name in {'peer': 'tensorly-torch', 'dense': 'dense layer (torch)'}.items():
        for rank in (4, 64):
            ratio = [v[other]/v['tuned'] for v in plans if v['rank'] == rank]
            yield f'passes a second through a tensor-train layer, bonds up to {rank}', name, f'{geometric(ratio).value:.2f} [{min(ratio):.2f}, {max(ratio):.2f}]', ['tensortrain/plans']

TABLES = {
    'results': lambda: table(['what', 'measured', 'beside it', 'which means', 'from'], list(results())),
    'benchmarks': lambda: table(['what', 'peer', 'ours is better by a factor of', 'from'], list(benchmarks())),
}

def filled(text):
    "The text with everything between the marks written anew."
    for name, make in TABLES.items():
        text, n = re.subn(rf'(<!-- {name}: [^>]*-->\n).*?(\n<!-- end of {name} -->)', lambda m: f'{m[1]}\n{make()}\n{m[2]}', text, flags=re.S)
        if n != 1: sys.exit(f'README.md has {n} places for the table {name!r}: it should have one')
    return text

if __name__ == '__main__':
    old = README.read_text(encoding='utf-8')
    new = filled(old)
    if '--check' in sys.argv[1:]: sys.exit('README.md is not what the results say: run python book/readme.py' if new != old else 0)
    README.write_text(new, encoding='utf-8')
