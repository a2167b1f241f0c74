"""The data that they are trained on."""
