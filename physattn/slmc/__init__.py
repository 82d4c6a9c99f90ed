"""Equivariant self-learning Monte Carlo: classical spins that talk through electrons, an exact sampler, and networks that learn to replace its weight."""
