"""The coordinator: enforces batch alignment and the λ schedule, answers with soft targets, keeps the log."""
