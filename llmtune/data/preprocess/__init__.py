"""Preprocess functions of the catalogue's datasets: pure functions from a row to one that `data.formats` knows."""
