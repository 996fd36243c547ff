"""What is checked of tables and of a pipeline, and how a finding is shown."""
