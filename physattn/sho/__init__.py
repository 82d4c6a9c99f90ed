"""The simple harmonic oscillator: exact maps and integrators, the one-token transformer and its identification, oscillators in context.

Modules, in the order of the chapter: `oscillator`, `integrators`, `one_token`, `identify`, `in_context`, `context_transformer`, `probes`,
`interventions`; `cli` holds the commands `physattn sho ...`.
"""
