"""Variational Monte Carlo of physattn against NetKet at equal processor time: the quick profile of `tqs/peers`.

Prints relative errors of the energy by full sum (one run each, one thread); the full size is `physattn reproduce tqs/peers --profile full`.
"""

from physattn.foundations.experiments import reproduce

try:
    for name, run in reproduce("tqs/peers").values.items():
        if not name.startswith("lanczos"):
            print(f"{name}: relative error {run['exact_error']:.1e} in {run['cpu']} s")
except ImportError as error:
    print(f"skipped: {error}")
