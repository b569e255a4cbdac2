"""Rewrites that make a graph fast without changing what it answers.

Two kinds, both `requires -> call -> ensures`: module rewrites replace parts of a torch module before it is exported
(`encoder`), graph rewrites change an ONNX graph after it.  `proofs` runs them in order and keeps a rewrite only where
the rewritten model answers as the model did before, on feeds of two batch sizes.
"""
