"""The planner: in which items a round does its steps and decodes, and where its plans are kept."""
