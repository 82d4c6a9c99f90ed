"""Transformer quantum states: spin chains with known answers, an autoregressive decoder as a wave function, its energy, its training, and what it looks at.

Modules, in the order of the chapter: `chains`, `decoder`, `energies`, `vmc`, `observables`, `dmrg`, `rings`, `words`, `saliency`, `peers`; commands in `cli`.
"""
