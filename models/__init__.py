"""Reference models, checkpoints, and everything else a build can start from.

`tsexport.models.registry` lists the models, `tsexport.models.sources` opens one (or a factory, or a file).  Nothing is
imported here: listing models needs no torch.
"""
