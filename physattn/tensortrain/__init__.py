"""Tensor trains under the microscope: trains of tensors, layers made of them, networks that have them, what saliency maps say about both, compression, entropy and the geometry of trains.

Modules, in the order of the chapter: `trains`, `layers`, `networks`, `maps`, `keras`, `evidence`, `compression`, `entropy`, `geometry`.
"""
