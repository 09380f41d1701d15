"""What is deployed: onnxruntime, numpy, tokenizers, orjson and the standard library, nothing else."""
