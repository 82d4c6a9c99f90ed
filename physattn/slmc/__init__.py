"""Equivariant self-learning Monte Carlo: classical spins that talk through electrons, an exact sampler, and networks that learn to replace its weight.

Modules, in the order of the chapter: `lattice`, `poles`, `effective`, `training`, `sampling`, `acceptance`, `layers`, `throughput`, `inside`; commands in `cli`.
"""
