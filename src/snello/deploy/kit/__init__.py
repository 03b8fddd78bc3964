"""Kit for another device: a folder with models and a script that times them on it."""
