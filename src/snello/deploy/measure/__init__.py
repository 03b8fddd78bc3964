"""Measurement of counts, memory and latency of models and of files of any format."""
