"""INT8 and bf16 candidates for a target, and the choice among them; import `tsexport.quantize.<module>`.

recipes                  how candidates are made, one row each, by instruction set
onnxruntime_quantizer    recipes of ONNX Runtime's quantizer
nncf_quantizer           recipes of NNCF, for OpenVINO
tensorrt_qdq             recipes of explicit Q/DQ pairs, for TensorRT
modelopt_quantizer       recipes of nvidia-modelopt, for TensorRT, in a process of its own
candidates               one candidate from the fp32 artifacts, by a recipe
evaluation               how much worse an artifact is than its source model
selection                which artifact a bundle selects, from what was measured side by side
"""
