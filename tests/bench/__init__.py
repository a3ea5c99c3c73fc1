"""Comparisons with other programs, run by hand. Figures of qvl alone come from `qvl infer --stats`."""
