"""`import physattn` against `import torch`, each in a process of its own.

Prints the time ratio (ours/torch, asked for: below 1.2) of interleaved repetitions, with its quartiles, and the same for
the modules of every chapter.
"""

import pkgutil
import subprocess
import sys

from interleaved import ratio

import physattn


def importing(names: str):
    def run():
        subprocess.run([sys.executable, "-c", f"import {names}"], check=True)

    return run


chapters = [
    f"physattn.{part.name}.{module.name}"
    for part in pkgutil.iter_modules(physattn.__path__)
    if part.ispkg and part.name != "foundations"
    for module in pkgutil.iter_modules([f"{physattn.__path__[0]}/{part.name}"])
]
for title, names in {
    "physattn": "physattn",
    "the command line": "physattn.cli",
    "foundations": "physattn.foundations.runs, physattn.foundations.experiments",
    "every module of every chapter": ", ".join(chapters),
}.items():
    print(f"{title}: {ratio(importing('torch'), importing(names), 20)} (torch)")
