"""Bundles over HTTP: the Open Inference Protocol (KServe V2) with JSON and binary tensors, `/predict` and `/health`.

A request's way: `observing` (may it come in) -> `app` (routes) -> `bodies` (limits, decompression) -> `protocol` or
`plain` (tensors) -> `batcher` (bounded queue, one thread a model) -> the session -> and back.  `gate` counts what is in
flight and knows of the shutdown, `served` verifies and loads bundles, `server` runs all of it in uvicorn.
"""
