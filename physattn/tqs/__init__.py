"""Transformer quantum states: spin chains with known answers, an autoregressive decoder as a wave function, its energy and its training.

Modules, in the order of the chapter: `chains`, `decoder`, `energies`, `vmc`.
"""
