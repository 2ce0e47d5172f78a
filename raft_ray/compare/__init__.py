"""What a comparison of methods shows: intervals, paired tests, retention, the Pareto front, and a verdict in words.

Pure statistics on plain numbers: knows nothing about models, files, Ray or how anything was measured.
"""
