"""Evaluation: accuracy, time and density of the method against its baselines, on one's own model.

`results` is the file that `sweep` writes and the report reads; `tasks` makes the prompts;
`harness` is a model type for the lm-evaluation-harness. Modules are imported by name: reading
results needs no torch.
"""
