"""Load an artifact and run it; import `tsexport.runtimes.<module>`.

registry      the table of runtimes, and `load`
sessions      the checks before inference that every runtime shares
comparison    outputs compared under a named tolerance
torchscript, onnxruntime, openvino, tract    one runtime each, which imports its package
"""
