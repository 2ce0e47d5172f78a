"""What a model is measured by, each on plain data (texts, token ids, models, folders).

`actors.evaluate.evaluation` generates the answers and joins the measurements.
"""
