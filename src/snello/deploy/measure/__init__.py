"""Measurement: counts, memory and time of models and of files of any format."""
