"""Transformer quantum states: spin chains with known answers, and an autoregressive decoder as a wave function.

Modules, in the order of the chapter: `chains`, `decoder`.
"""
