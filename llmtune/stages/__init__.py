"""The stages of training, a short outline each: samples, model, objective."""
