"""INT8 and bf16 candidates for a target, and the choice among them; import `tsexport.quantize.<module>`.

recipes                  how candidates are made, one row each, by instruction set
onnxruntime_quantizer    recipes of ONNX Runtime's quantizer
fused_attention          dynamic recipes with attention as one operator of ONNX Runtime's own
nncf_quantizer           recipes of NNCF, for OpenVINO
openvino_dynamic         INT8 weights in OpenVINO, activations quantized at run time
inc_quantizer            recipes of Intel Neural Compressor, brought to ONNX by integer_weights
tensorrt_qdq             recipes of explicit Q/DQ pairs, for TensorRT
candidates               one candidate from the fp32 artifacts, by a recipe
sensitivity              how much each layer costs in accuracy when it alone is quantized
search                   which layers of a recipe stay in floating point, so that its error holds the budget
operations               what an ONNX graph computes, operator by operator
coverage                 what of an artifact is computed in int8, and what is lost on the way
balance                  what this machine sustains, to hold an artifact's work against
evaluation               how much worse an artifact is than its source model
selection                which artifact a bundle selects, from what was measured side by side
"""
