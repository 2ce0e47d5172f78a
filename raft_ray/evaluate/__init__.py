"""What a model is measured by: domain accuracy, IFEval, drift, response length, weight distance.

Each module measures one thing on plain data (texts, token ids, models, folders) and knows nothing about
Ray or vLLM; `actors.evaluate.evaluation` generates the answers and joins the measurements.
"""
