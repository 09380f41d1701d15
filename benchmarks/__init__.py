"""Compares torch with ONNX: JSON results first, tables and the README's figures from them."""
