"""Speed as ratios: ours and a baseline measured side by side in one process, with the noise of that very run, and quality beside speed.

Knows how to measure; each file measures one thing. Absolute times are printed too, but only ratios are meant to be compared.
"""
