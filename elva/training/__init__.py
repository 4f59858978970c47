"""The training stages: base, text, instruct, rl. `elva.training.run.run_stage` is the door."""
