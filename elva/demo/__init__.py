"""The whole story in one command: data, three stages, two controls, the report."""
