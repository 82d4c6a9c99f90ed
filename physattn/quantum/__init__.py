"""Quantum-friendly normalization: norms of real models, layers whose norms are bounded, what that costs in accuracy, and the attention head as a quantum circuit.

Modules, in the order of the chapter: `norms`, `normalized`, `data`, `classifier`, `claim`, `reduction`, `encodings`, `circuit`, `resources`; commands in `cli`.
"""
